"""The reasons for a connection's end, for a refusal, and for a check, as users see them."""

from __future__ import annotations

import enum


class EndReason(enum.Enum):
    """Why a connection ended; logs, metrics and `closed(reason)` show the value."""

    CLIENT = "client closed"
    HANDLER = "handler closed"
    HANDLER_ERROR = "handler error"
    FRAMING_ERROR = "framing error"
    REFUSED = "refused"
    HANDSHAKE_ERROR = "handshake error"
    HANDSHAKE_TIMEOUT = "handshake-timeout"
    SERVED = "served"
    SERIAL_TIMEOUT = "serial-timeout"
    FIRST_BYTE_TIMEOUT = "first-byte-timeout"
    IDLE_TIMEOUT = "idle-timeout"
    MESSAGE_TIMEOUT = "message-timeout"
    HANDLER_TIMEOUT = "handler-timeout"
    WRITE_TIMEOUT = "write-timeout"
    MAX_UNSENT = "max-unsent"
    FAULT = "fault"
    DISCONNECTED = "disconnected"
    DRAINED = "drained"
    ABORTED = "aborted"
    LOST = "connection lost"


class Refusal(enum.Enum):
    """Why a client is refused.

    The value names the limit, for logs and metrics: the setting, if there is one.
    """

    # By admission.
    MAX_CONNECTIONS = "max-connections"
    PER_ADDRESS = "max-connections-per-address"
    ACCEPT_RATE = "max-accept-rate"
    # By a concurrency model.
    MAX_QUEUE = "max-queue"
    MAX_THREADS = "max-threads"
    THREADS_PER_ADDRESS = "threads-per-address"
    MAX_PROCESSES = "max-processes"
    PROCESSES_PER_ADDRESS = "processes-per-address"
    SERIAL_QUEUE = "serial-queue"
    SERIAL_QUEUE_PER_ADDRESS = "serial-queue-per-address"
    # By a listener behind a proxy.
    PROXY_HEADER = "proxy-header"
    PROXY_TIMEOUT = "proxy-timeout"
    PROXY_TRUST = "proxy-trust"
    # By the system.
    DESCRIPTORS = "descriptors"
    THREADS = "threads"
    PROCESSES = "processes"


class Check(enum.Enum):
    """How a load balancer has checked that the daemon serves, for metrics."""

    # By a listener behind a proxy: it connects, and leaves without a byte; or its header says so.
    CONNECT = "connect"
    LOCAL = "local"
    # By the status.
    HEALTHZ = "healthz"
    READYZ = "readyz"

    @property
    def by_listener(self) -> bool:
        """Whether a listener for clients counts it, and not the status."""
        return self in (Check.CONNECT, Check.LOCAL)
