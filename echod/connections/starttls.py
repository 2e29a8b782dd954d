"""TLS that a handler of messages begins within its conversation, as STARTTLS does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from echod.tls import Context


class StartTLS:
    """The TLS that a listener offers to clients that have come in clear.

    The connections that wait for it are noted here, not each in itself: so it costs a connection
    no memory.

    Attributes:
        context: makes OpenSSL's part of each connection.
        asked: the connections whose handler has asked for TLS, and which still answer in clear.
    """

    def __init__(self, context: Context) -> None:
        """Set up."""
        self.context = context
        self.asked: set[object] = set()
