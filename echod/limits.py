"""The limits on clients: every limit, its default and the reason for it.

Pure and frozen: checked once, when made. If a limit is a setting, `echod.settings` takes its
default from here, and docs/settings.md also its reason.
"""

from __future__ import annotations

from dataclasses import field, fields
from typing import NamedTuple, TypeVar

from echod.value import Value

T = TypeVar("T", int, float)


def limit(default: T, why: str) -> T:
    """Return a field of `Limits` that carries the reason for its default."""
    return field(default=default, metadata={"why": why})


# How many log lines of one kind are logged a second. More are of no use to a reader, and a client
# that connects in a loop could fill a disk: at this rate, the two lines of each connection come to
# 2 GB a day.
LOG_RATE = 100

# The highest seed of faults on purpose: each reader of JSON takes it exactly.
HIGHEST_SEED = 2**53


class Limits(Value):
    """Bounds on clients; times in seconds, sizes in bytes; 0 is no limit.

    Raises:
        ValueError: a limit is negative.
    """

    max_connections: int = limit(
        16_384,
        "that many idle connections cost 50 MiB. In the worst case, when no client reads and each "
        "connection holds its 0.3 MiB, they cost 5 GiB. Set a lower value on a small machine.",
    )
    max_connections_per_address: int = limit(
        12_288,
        "three quarters of all, so that no single address can shut out the others. It cannot be "
        "much lower, because a load balancer or a large office is a single address; if each "
        "client has its own address, 100 is plenty. An address may also have at most three "
        "quarters of the threads, or of the places in a queue, and less when others hold some.",
    )
    max_accept_rate: int = limit(
        20_000,
        "about as many as one core can accept and greet, so above this rate clients would only "
        "wait for one another. It is a long-run rate: as many as `max-connections`, or a "
        "second's worth if that is more, may connect at once, as they do after a restart.",
    )
    first_byte_timeout: float = limit(
        120.0,
        "a client normally sends soon after it connects. A person reads the greeting and types "
        "within two minutes, and a connection pool is used within that time. The connection of a "
        "port scan, or of a load balancer that only checks the port, ends soon.",
    )
    idle_timeout: float = limit(
        600.0,
        "long enough for a person at netcat to take a break; short enough that the connection of "
        "a peer that vanished silently ends within the hour.",
    )
    message_timeout: float = limit(
        60.0,
        "a person at a terminal that sends each key as it is pressed takes less for a message; a "
        "program sends a message at once.",
    )
    min_rate: int = limit(
        128,
        "the rate of a telephone modem of 1200 baud. It bounds the cost of a slow client: the "
        "longest message of `length` framing, 32 KiB, may take five minutes, but not longer.",
    )
    write_timeout: float = limit(
        60.0,
        "at 1 KiB/s a client reads within this time the 64 KiB that the daemon holds for it.",
    )
    max_pending: int = limit(
        64 * 1024,
        "enough that a slow handler never waits for input. A client that sends without reading "
        "costs this much and one read, which is 256 KiB at most.",
    )
    max_unsent: int = limit(
        1024 * 1024,
        "enough for ten thousand short messages, or some seconds of a fast stream, while a client "
        "is slow for a moment. A client that does not read costs this much, and 64 KiB that its "
        "transport holds.",
    )
    handler_timeout: float = limit(
        0.0,
        "only the handler's author knows how long its work may take; `slow-handler` shows which "
        "calls take long.",
    )
    threads: int = limit(
        16,
        "threads are for handlers that wait for a database or a disk. These seldom gain from "
        "more, because the database is the bottleneck. Handlers that compute gain nothing.",
    )
    max_queue: int = limit(
        16_384,
        "as many as `max-connections`. Each connection has at most one message waiting, so no "
        "connected client is refused because the others are many. The last message waits for "
        "`max-queue` times the handler's time, divided by `threads`. If your handler is slow, "
        "choose a value that keeps this wait acceptable for clients.",
    )
    max_threads: int = limit(
        342,
        "256 for clients of one address, and a third as many for others. Each thread uses about "
        "100 KiB of stack, and all of them share one interpreter; with many more threads, "
        "switching between them costs more than the work.",
    )
    max_processes: int = limit(
        86,
        "64 for clients of one address, and a third as many for others. A program in Python or "
        "Perl takes some 10 MB, so this many need less than 1 GB.",
    )
    serial_timeout: float = limit(
        10.0, "enough time to type a line, while other clients wait in `serial`."
    )
    serial_queue: int = limit(
        171,
        "128 for clients of one address, and a third as many for others. For thirty years 128 was "
        "also the length of the kernel's queue (SOMAXCONN).",
    )
    handshake_timeout: float = limit(
        10.0, "a TLS handshake takes two round trips, so this is enough even on a slow link."
    )
    proxy_timeout: float = limit(
        8.0,
        "a proxy sends its header immediately. The specification demands at least 3 seconds, "
        "which allows for one lost packet; 8 seconds allow for two.",
    )
    linger: float = limit(
        2.0,
        "how long to wait for the client's FIN after the daemon's own: an immediate close with "
        "unread input would send RST, and RST destroys the reply.",
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            if getattr(self, one.name) < 0:
                raise ValueError(f"{one.name} must not be negative")

    @property
    def bounds_addresses(self) -> bool:
        """Whether an address may have only a share of the threads and of the places in a queue."""
        return self.max_connections_per_address > 0

    def message_time(self, size: int) -> float:
        """Return how long a message may take of which `size` bytes have arrived."""
        if not self.message_timeout:
            return float("inf")
        return self.message_timeout + (size / self.min_rate if self.min_rate else 0.0)


class Level(NamedTuple):
    """How much of a limit is in use.

    Attributes:
        limit: the limit's name; its setting's name if there is one.
        used: how much of it is in use now.
        most: the highest value that it allows.
    """

    limit: str
    used: int
    most: int
