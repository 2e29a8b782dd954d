"""The first message of a client, for the host that it asks for."""

from __future__ import annotations

import struct

# The longest ClientHello that OpenSSL accepts, in bytes, with the header of the message.
LARGEST = 131_396 + 4
# ... and the longest record before there are keys (RFC 8446, 5.1).
RECORD = 2**14
HANDSHAKE, CLIENT_HELLO = 22, 1
# An extension's kind, and its size; and the kind of a host's name (RFC 6066, 3).
_EXTENSION = struct.Struct(">HH")
SERVER_NAME = 0


class ClientHello:
    """The bytes of a ClientHello (RFC 8446, 4.1.2), for the host name in it.

    It may arrive in several records, each of any size, and each record in several reads. At most
    `LARGEST` bytes are kept; OpenSSL refuses a longer one.

    Python's own callback for that name prints a traceback if the name is not ASCII, and any client
    could cause that.
    """

    def __init__(self) -> None:
        # The message without the records' headers; the current header; the number of missing bytes
        # of its record; and whether the input is not a ClientHello.
        self._message = bytearray()
        self._header = bytearray()
        self._left = 0
        self._alien = False

    def feed(self, data: bytes) -> bool:
        """Take the next bytes; return whether no more are needed."""
        if self._is_one_record(data):
            self._message += data[5:]
            return self._over
        rest = memoryview(data)
        while rest and not self._over:
            if self._left:
                self._message += rest[: self._left]
                taken = min(self._left, len(rest))
                self._left -= taken
            else:
                taken = min(5 - len(self._header), len(rest))
                self._header += rest[:taken]
                self._begin_record()
            rest = rest[taken:]
        return self._over

    def _is_one_record(self, data: bytes) -> bool:
        """Return whether the first bytes are one whole record, as most clients send a hello."""
        size = len(data) - 5
        return (
            0 < size <= RECORD
            and data[0] == HANDSHAKE
            and int.from_bytes(data[3:5], "big") == size
            and not (self._message or self._header or self._left or self._alien)
        )

    def _begin_record(self) -> None:
        if len(self._header) == 5:
            self._left = int.from_bytes(self._header[3:], "big")
            self._alien = self._header[0] != HANDSHAKE or self._left > RECORD
            self._header.clear()

    @property
    def _over(self) -> bool:
        """Whether the message is complete, or is one that OpenSSL refuses."""
        message = self._message
        if len(message) < 4:
            return self._alien or message[:1] not in (b"", bytes([CLIENT_HELLO]))
        size = 4 + int.from_bytes(message[1:4], "big")
        return self._alien or message[0] != CLIENT_HELLO or not len(message) < size <= LARGEST

    @property
    def server_name(self) -> str | None:
        """The host that the client asks for; None if it asks for none, or for an invalid one."""
        # Slices beyond the end are empty, and count as 0, so no hello makes this raise.
        hello = bytes(self._message)
        if self._alien or hello[:1] != bytes([CLIENT_HELLO]):
            return None
        at = 1 + 3 + 2 + 32  # the message's kind and size, version, random
        at += 1 + int.from_bytes(hello[at : at + 1], "big")  # session
        at += 2 + int.from_bytes(hello[at : at + 2], "big")  # cipher suites
        at += 1 + int.from_bytes(hello[at : at + 1], "big")  # compression methods
        end = at + 2 + int.from_bytes(hello[at : at + 2], "big")
        extensions = hello[at + 2 : end]
        at, end, unpack = 0, len(extensions) - 4, _EXTENSION.unpack_from
        while at <= end:  # without calls of our own: there are a dozen
            kind, size = unpack(extensions, at)
            at += 4 + size
            if kind == SERVER_NAME:
                names = _Slice(_Slice(extensions[at - size : at]).block(2))
                return _host(names.block(2)) if names.take(1) == b"\0" else None
        return None


class _Slice:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        return self._data[start : self._at]

    def block(self, width: int) -> bytes:
        return self.take(int.from_bytes(self.take(width), "big"))


def _host(name: bytes) -> str | None:
    text = name.decode("ascii", "replace")
    # U+FFFD is not a letter, and "." alone is not a host; other characters must not reach logs.
    return text if text.replace(".", "").replace("-", "").replace("_", "").isalnum() else None
