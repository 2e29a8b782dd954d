"""How to tell TLS from other transports without importing TLS itself: most daemons do none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.error import ConnectionLost

if TYPE_CHECKING:
    from echod.interfaces import Stream


class TLSError(ConnectionLost):
    """TLS has failed, in the handshake or at a record; the text is OpenSSL's."""

    def __str__(self) -> str:
        return str(self.args[0])


class TLSLayer:
    """The base of `TLSConnection`, which is its only subclass."""

    transport: Stream

    __slots__ = ()
