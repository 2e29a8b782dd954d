"""What clients may take: every limit, its default and the reason for it; and who is let in.

Pure and frozen: checked once, when made.  Where a limit is a setting, `echod.settings` takes its
default from here, and docs/settings.md the reason too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple


def limit(default: float, why: str) -> Any:
    """Return a field of `Limits` that carries the reason for its default."""
    return field(default=default, metadata={"why": why})


# How many log lines of one kind there may be in a second.  Above that nobody reads them, and a
# client that connects in a loop could fill a disk: at this rate, of the two lines that tell of a
# connection, it is 2 GB a day.
LOG_RATE = 100


@dataclass(frozen=True)
class Limits:
    """Bounds on clients; times in seconds, sizes in bytes; 0 is no limit.

    Raises:
        ValueError: a limit is negative.
    """

    max_connections: int = limit(
        16_384,
        "idle, so many cost 50 MiB; at worst, when none of them reads and each holds the 0.3 MiB "
        "that one connection may, 5 GiB. On a small machine it should be lower.",
    )
    max_connections_per_address: int = limit(
        12_288,
        "three quarters of all: no single address can shut out the others. It cannot be much "
        "lower, because a load balancer or a large office is a single address; where clients "
        "come from addresses of their own, 100 is plenty. Where a thread or a turn is scarcer, an "
        "address may have three quarters of those, too, and less the more others have.",
    )
    max_accept_rate: int = limit(
        20_000,
        "about what one core can accept and greet at its best, so above this the clients would "
        "only wait for one another. It holds in the long run: as many as `max-connections`, or a "
        "second's worth where that is more, may come at once. After a restart, all do.",
    )
    first_byte_timeout: float = limit(
        120.0,
        "who connects has something to say. A person reads the greeting and types within two "
        "minutes, and a pool of connections is used within them; a port scan, or a load balancer "
        "that only looks whether the port is open, is forgotten soon.",
    )
    idle_timeout: float = limit(
        600.0,
        "long enough for a person at netcat to have lunch elsewhere; short enough that a peer "
        "that vanished without a word is forgotten the same hour.",
    )
    message_timeout: float = limit(
        60.0,
        "from the first byte of a message to its last a person at a terminal that sends each key "
        "as it is pressed takes less; whatever is not typed comes in one go.",
    )
    min_rate: int = limit(
        128,
        "a telephone modem of 1200 baud is as slow. What a slow client may cost is bounded by "
        "it: the longest message of `length` framing, 32 KiB, may take five minutes, not for "
        "ever.",
    )
    write_timeout: float = limit(
        60.0,
        "a client that reads at all empties the 64 KiB that we hold for it within this, at 1 "
        "KiB/s.",
    )
    max_pending: int = limit(
        64 * 1024,
        "a slower handler is never short of input. A client that sends without reading costs "
        "this and one read, which is 256 KiB at most.",
    )
    threads: int = limit(
        16,
        "handlers that wait for a database or a disk, which are what threads are for, seldom "
        "gain from more: there the database is the narrow place. Ones that compute gain nothing.",
    )
    max_queue: int = limit(
        16_384,
        "as many as there may be connections, of which each waits with one message at most: no "
        "client that is let in is sent off because the others are many. The last one waits for "
        "`max-queue` times the time of the handler, divided by `threads`: where the handler is "
        "slow, divide the wait that clients bear by that.",
    )
    max_threads: int = limit(
        342,
        "256 for clients of one address, and a third as many for others. Each thread has a stack, "
        "of which it uses 100 KiB or so, and all of them share one interpreter; with many more, "
        "switching costs more than the work.",
    )
    serial_timeout: float = limit(
        10.0, "how long a silent client may keep others waiting in `serial`: time to type a line."
    )
    serial_queue: int = limit(
        171,
        "128 for clients of one address, and a third as many for others. The kernel's own queue "
        "(SOMAXCONN) was as long as the first for thirty years.",
    )
    handshake_timeout: float = limit(
        10.0, "a TLS handshake is two round trips: slow links included, this is patience enough."
    )
    proxy_timeout: float = limit(
        8.0,
        "a proxy sends its header first of all, and at once. The specification asks for 3 seconds "
        "at least, which lets one lost packet be sent again; this lets two.",
    )
    linger: float = limit(
        2.0,
        "after our last byte and FIN, how long to wait for the client's: closing at once on "
        "input that we have not read would send RST, and RST takes the reply with it.",
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            if getattr(self, one.name) < 0:
                raise ValueError(f"{one.name} must not be negative")

    @property
    def bounds_addresses(self) -> bool:
        """Whether an address may have only a share of what is scarce."""
        return self.max_connections_per_address > 0

    def message_time(self, size: int) -> float:
        """Return how long a message may have been under way of which `size` bytes have come."""
        if not self.message_timeout:
            return float("inf")
        return self.message_timeout + (size / self.min_rate if self.min_rate else 0.0)


class Level(NamedTuple):
    """A figure beside its limit.

    Attributes:
        limit: the limit's name, as its setting has it where there is one.
        used: how much of it is taken now.
        most: how much there is.
    """

    limit: str
    used: int
    most: int
