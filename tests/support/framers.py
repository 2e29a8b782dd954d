"""Feed framers, in one piece and in many; and a framing of a user's own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from echod.messages.framing import BufferingFramer, Framer, Framing, FramingError


def messages(framer: Framer) -> list[bytes]:
    """Return the messages that need no more input."""
    return list(iter(framer.next_message, None))


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """Return `data` in pieces, cut at these places, counted round and round."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


def fed(framing: Framing, *reads: bytes) -> list[bytes]:
    """Feed `reads` and pull: after each as the event loop does, or after several held back.

    The messages are the same.
    """
    framer, held = framing.framer(), framing.framer()
    found: list[bytes] = []
    for read in reads:
        framer.feed(read)
        held.feed(read)
        found += messages(framer)
    assert messages(held) == found
    assert held.buffered == framer.buffered
    return found


def outcome(framing: Framing, *reads: bytes) -> tuple[list[bytes], str]:
    """Feed a whole stream, pulling after each read; return its messages, and its error."""
    framer, found, most = framing.framer(), list[bytes](), 0
    try:
        for read in reads:
            framer.feed(read)
            while (message := framer.next_message()) is not None:
                found.append(message)
            most = max(most, framer.buffered)
        framer.end()
        while (message := framer.next_message()) is not None:
            found.append(message)
        assert framer.buffered == 0
    except FramingError as error:
        return found, str(error)
    finally:
        # At most one message waits for more input, with its length and its end.
        assert most <= framing.max_message + 12
    return found, ""


@dataclass(frozen=True)
class Brackets:
    """A framing as a user writes one: each message stands in brackets."""

    max_message: int = 100

    def framer(self) -> BracketsFramer:
        return BracketsFramer(self.max_message)

    def encode(self, reply: bytes) -> bytes:
        return b"[" + reply + b"]"

    def encode_line(self, text: bytes) -> bytes:
        return self.encode(text + b"\n")


class BracketsFramer(BufferingFramer):
    """Fails at an exclamation mark in `feed`, and behind the message `?`."""

    def feed(self, data: bytes) -> None:
        super().feed(data.partition(b"!")[0])
        if b"!" in data:
            raise KeyError("no \x1b[31mgood\r")

    def next_message(self) -> bytes | None:
        if self.buffer and not self.buffer.startswith(b"["):
            raise FramingError("a message begins with a bracket")
        end = self.buffer.find(b"]")
        if end < 0:
            return None
        message = bytes(self.buffer[1:end])
        del self.buffer[: end + 1]
        if message == b"?":
            raise KeyError("no \x1b[31mgood\r")
        return message
