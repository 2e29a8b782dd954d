"""Decide which new connections to accept, by their number, by address, and by rate."""

from __future__ import annotations

from collections.abc import Callable

from echod.limits import Level, Limits
from echod.reasons import Refusal

_TEXTS = {
    Refusal.MAX_CONNECTIONS: "too many connections",
    Refusal.PER_ADDRESS: "too many connections from your address",
    Refusal.ACCEPT_RATE: "too many connections at once",
}


def text_of(refusal: Refusal) -> str:
    """Return the line for a client that admission refuses."""
    return f"Server busy: {_TEXTS[refusal]}, try again later"


def without_text(refusal: Refusal, how: str) -> str:
    """Return the words for the log about a client that expects TLS, and so gets no line.

    Args:
        refusal: the reason.
        how: how its connection ends: "reset" or "closed".
    """
    return f"{how} before the TLS handshake: {_TEXTS[refusal]}"


class Admission:
    """Counts connections, over all listeners, and refuses those above the limits.

    Call `accept` for each connection as soon as it is accepted, and `identify` as soon as its
    address is known, which is later behind a proxy. Each returns the reason for a refusal, or
    None. Call `release` once for each connection that was not refused.
    """

    def __init__(self, limits: Limits, seconds: Callable[[], float]) -> None:
        """Set up, without any connection.

        Args:
            limits: how many connections, and how fast.
            seconds: the clock.
        """
        self.open = 0
        # A plain dictionary: a counter's missing and last ones are calls in Python.
        self.by_address: dict[str, int] = {}
        self._seconds = seconds
        self.limits = limits

    @property
    def limits(self) -> Limits:
        """The limits; new ones apply to new connections."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        self._use(limits.max_connections)

    def _use(self, most: int) -> None:
        """Accept at most so many connections at once, if the rate allows it."""
        rate = self._limits.max_accept_rate
        self._bucket = TokenBucket(rate, max(rate, most), self._seconds())

    @property
    def levels(self) -> tuple[Level, ...]:
        """The numbers of connections, in total and from one address, with their limits."""
        limits, busiest = self._limits, max(self.by_address.values(), default=0)
        return (
            Level(Refusal.MAX_CONNECTIONS.value, self.open, limits.max_connections),
            Level(Refusal.PER_ADDRESS.value, busiest, limits.max_connections_per_address),
        )

    def accept(self) -> Refusal | None:
        """Count a connection, or return why it is refused."""
        most = self._limits.max_connections
        if most and self.open >= most:
            return Refusal.MAX_CONNECTIONS
        if self._limits.max_accept_rate and not self._bucket.take(self._seconds()):
            return Refusal.ACCEPT_RATE
        self.open += 1
        return None

    def identify(self, network: str) -> Refusal | None:
        """Count the address of an accepted connection, or return why it is refused.

        Args:
            network: see `network_of`.
        """
        most, count = self._limits.max_connections_per_address, self.by_address.get(network, 0)
        if most and count >= most:
            return Refusal.PER_ADDRESS
        self.by_address[network] = count + 1
        return None

    def release(self, network: str = "") -> None:
        """Stop counting an accepted connection, and its address, if that was counted."""
        self.open -= 1
        if network:
            if (left := self.by_address[network] - 1) > 0:
                self.by_address[network] = left
            else:
                del self.by_address[network]


class TokenBucket:
    """Limits events to a rate, and allows bursts."""

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
        """Return whether one more event is allowed `now`, and count it if so."""
        tokens = self._tokens + (now - self._updated) * self._rate
        if tokens > self._burst:  # not `min`: each connection comes here
            tokens = self._burst
        self._updated = now
        self._tokens = tokens - 1 if tokens >= 1 else tokens
        return tokens >= 1

    def spend(self, count: int, now: float) -> None:
        """Count events that happened elsewhere; there may be none left, but no debt."""
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._rate)
        self._updated = now
        self._tokens = max(0.0, self._tokens - count)

    @property
    def tokens(self) -> float:
        """How many events were allowed at once, when it was last asked."""
        return self._tokens
