"""Cut a stream where its messages end, and keep every byte.

A framer gives messages, without their delimiters and lengths. `Cutter` gives the bytes on the wire
that each message was, for code that looks at messages on their way, and passes the bytes on. The
pieces are the same however the reads fall, except with `Chunk`, whose messages are what the reads
give.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from echod.messages.framing import BufferingFramer, Chunk, Framer, Framing


class Piece(NamedTuple):
    """A part of the stream.

    Attributes:
        data: its bytes.
        message: the message that they are; None if they are none.
    """

    data: bytes
    message: bytes | None


class Cutter:
    """Cuts one stream.

    It holds an incomplete message, which the framing bounds. Once the stream violates the framing,
    all that follows is passed on, as no message.
    """

    def __init__(self, framing: Framing) -> None:
        """Set up for the messages of this framing."""
        self._size = framing.max_message if type(framing) is Chunk else 0
        self._framer: Framer | None = None if self._size else framing.framer()
        self._held = bytearray()

    def take(self, data: bytes) -> Iterator[Piece]:
        """Take the data of one read."""
        if self._framer is not None:
            yield from self._messages(data)
        elif self._size:
            for start in range(0, len(data), self._size):
                piece = data[start : start + self._size]
                yield Piece(piece, piece)
        else:
            yield Piece(data, None)

    def end(self) -> Iterator[Piece]:
        """Take the end of the stream: it may complete a message."""
        framer = self._framer
        if framer is None:
            return
        try:
            framer.end()
            message = framer.next_message()
        except Exception:  # of a framing of the user's, too
            message = None
        self._framer = None
        if self._held:
            yield Piece(bytes(self._held), message)
            self._held.clear()

    def rest(self) -> Iterator[bytes]:
        """Return the bytes of an incomplete message, and forget them."""
        if self._held:
            yield self._all_held().data

    def _messages(self, data: bytes) -> Iterator[Piece]:
        framer = self._framer
        # The framers of echod tell where in a read a message ends, by what they hold after it. Of
        # another one it is known only if it has not got what follows.
        size = len(data) if isinstance(framer, BufferingFramer) else 1
        for start in range(0, len(data), size):
            yield from self._feed(data[start : start + size])

    def _feed(self, data: bytes) -> Iterator[Piece]:
        self._held += data
        framer = self._framer
        if framer is None:
            yield self._all_held()
            return
        try:
            framer.feed(data)
            while (message := framer.next_message()) is not None:
                held = framer.buffered if isinstance(framer, BufferingFramer) else 0
                end = len(self._held) - held
                yield Piece(bytes(self._held[:end]), message)
                del self._held[:end]
        except Exception:  # of a framing of the user's, too
            self._framer = None
            if self._held:
                yield self._all_held()

    def _all_held(self) -> Piece:
        data = bytes(self._held)
        self._held.clear()
        return Piece(data, None)
