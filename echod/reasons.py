"""Why a connection ends, and why a client is refused: each reason once, as users see it."""

from __future__ import annotations

import enum


class EndReason(enum.Enum):
    """Why a connection ended; the value is what logs, metrics and `closed(reason)` show."""

    CLIENT = "client closed"
    HANDLER = "handler closed"
    HANDLER_ERROR = "handler error"
    FRAMING_ERROR = "framing error"
    REFUSED = "refused"
    NO_HANDSHAKE = "no TLS handshake"
    SERVED = "served"
    TURN_TAKEN = "kept others waiting"
    SILENT = "said nothing"
    IDLE = "idle"
    SLOW = "message too slow"
    STALLED = "client did not read"
    DRAINED = "drained"
    ABORTED = "aborted"
    LOST = "connection lost"


class Refusal(enum.Enum):
    """Why a client is not let in; the value names the limit, for logs and metrics."""

    MAX_CONNECTIONS = "max-connections"
    PER_ADDRESS = "max-connections-per-address"
    ACCEPT_RATE = "max-accept-rate"

    @property
    def text(self) -> str:
        """What the client is told."""
        return f"Server busy: {_TOLD[self]}, try again later"


_TOLD = {
    Refusal.MAX_CONNECTIONS: "too many connections",
    Refusal.PER_ADDRESS: "too many connections from your address",
    Refusal.ACCEPT_RATE: "too many connections at once",
}


# All that clients are turned away by, for metrics, which have each from the beginning: the above,
# and what only concurrency models and listeners with `proxy:` know.
REFUSED_BY = (
    *(refusal.value for refusal in Refusal),
    "descriptors",
    "max-queue",
    "max-threads",
    "proxy-header",
    "proxy-timeout",
    "proxy-trust",
    "serial-queue",
    "serial-queue-per-address",
    "threads",
    "threads-per-address",
)
