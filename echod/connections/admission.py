"""Which new connections are accepted: how many there are, by address, and how fast they come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from echod.limits import Level, Limits
from echod.reasons import Refusal

_TEXTS = {
    Refusal.MAX_CONNECTIONS: "too many connections",
    Refusal.PER_ADDRESS: "too many connections from your address",
    Refusal.ACCEPT_RATE: "too many connections at once",
}


def text_of(refusal: Refusal) -> str:
    """Return what a client is told that admission refuses."""
    return f"Server busy: {_TEXTS[refusal]}, try again later"


class Admission:
    """Who is let in: counts connections, over all listeners.

    `accept` is for each connection as soon as it is accepted, `identify` for each as soon as it
    is known where it comes from, which behind a proxy is later.  Each says why to refuse, or
    None; a connection that was not refused is given back by `release`, once.
    """

    def __init__(self, limits: Limits, seconds: Callable[[], float]) -> None:
        """Let in up to the limits.

        Args:
            limits: how many, and how fast.
            seconds: the clock.
        """
        self.open = 0
        self.by_address: Counter[str] = Counter()
        self._seconds = seconds
        self.limits = limits

    @property
    def limits(self) -> Limits:
        """The limits; new ones hold for those who come from now on."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        rate = limits.max_accept_rate
        self._bucket = TokenBucket(rate, max(rate, limits.max_connections), self._seconds())

    @property
    def levels(self) -> tuple[Level, ...]:
        """How many connections there are, and from one address, beside what there may be."""
        limits, busiest = self._limits, max(self.by_address.values(), default=0)
        return (
            Level(Refusal.MAX_CONNECTIONS.value, self.open, limits.max_connections),
            Level(Refusal.PER_ADDRESS.value, busiest, limits.max_connections_per_address),
        )

    def accept(self) -> Refusal | None:
        """Count a connection, or say why not."""
        most = self._limits.max_connections
        if most and self.open >= most:
            return Refusal.MAX_CONNECTIONS
        if self._limits.max_accept_rate and not self._bucket.take(self._seconds()):
            return Refusal.ACCEPT_RATE
        self.open += 1
        return None

    def identify(self, network: str) -> Refusal | None:
        """Count where an accepted connection comes from, or say why it cannot stay.

        Args:
            network: see `network_of`.
        """
        most = self._limits.max_connections_per_address
        if most and self.by_address[network] >= most:
            return Refusal.PER_ADDRESS
        self.by_address[network] += 1
        return None

    def release(self, network: str = "") -> None:
        """Count an accepted connection out; with where it came from, if that was counted."""
        self.open -= 1
        if network:
            self.by_address[network] -= 1
            if not self.by_address[network]:
                del self.by_address[network]


class TokenBucket:
    """Lets things happen at a rate, and some at once."""

    __slots__ = ("_burst", "_rate", "_tokens", "_updated")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        """Start full.

        Args:
            rate: how many a second, in the long run.
            burst: how many at once.
            now: the time, in seconds.
        """
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._updated = now

    def take(self, now: float) -> bool:
        """Return whether one more may happen `now`; then it has."""
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._rate)
        self._updated = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
