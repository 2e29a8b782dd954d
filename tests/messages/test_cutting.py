"""A stream is cut where its messages end, and keeps every byte."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.messages.cutting import Cutter
from echod.messages.framing import BufferingFramer, Chunk, Fixed, Line
from echod.messages.guarded import guarded
from echod.messages.prefixed import Length, Netstring, Varint

MESSAGES = [b"one", b"", b"three, four", b"x" * 300]


class Doubled:
    """A framing of a user's: each message ends in two exclamation marks."""

    max_message = 1000

    def framer(self) -> Any:
        return DoubledFramer()

    def encode(self, reply: bytes) -> bytes:
        return reply + b"!!"

    encode_line = encode


class DoubledFramer:
    def __init__(self) -> None:
        self._data = b""

    @property
    def buffered(self) -> int:
        return 77 + len(self._data)  # "of memory, not of payload"

    def feed(self, data: bytes) -> None:
        self._data += data

    def end(self) -> None:
        pass

    def next_message(self) -> bytes | None:
        message, found, rest = self._data.partition(b"!!")
        if not found:
            return None
        self._data = rest
        return message


FRAMINGS: list[Any] = [
    Line(),
    Line(b"\r\n"),
    Length(),
    Netstring(),
    Varint(),
    guarded(Doubled()),
]


@given(framing=st.sampled_from(FRAMINGS), cuts=st.lists(st.integers(0, 700), max_size=20))
def test_each_piece_is_one_message_on_the_wire(framing: Any, cuts: list[int]) -> None:
    wires = [framing.encode(message) for message in MESSAGES]
    stream = b"".join(wires)
    places = sorted({0, *(cut for cut in cuts if cut < len(stream)), len(stream)})
    cutter = Cutter(framing)
    pieces = [
        piece
        for start, end in itertools.pairwise(places)
        for piece in cutter.take(stream[start:end])
    ]
    assert pieces == list(zip(wires, MESSAGES, strict=True))
    assert list(cutter.end()) == []


def test_the_end_completes_a_line() -> None:
    cutter = Cutter(Line())
    assert list(cutter.take(b"one\ntw")) == [(b"one\n", b"one")]
    assert list(cutter.take(b"o")) == []
    assert list(cutter.end()) == [(b"two", b"two")]
    fixed = Cutter(Fixed(4))
    assert list(fixed.take(b"12345")) == [(b"1234", b"1234")]
    assert list(fixed.end()) == [(b"5", None)]


def test_the_bytes_of_an_incomplete_message_can_be_had() -> None:
    cutter = Cutter(Line())
    list(cutter.take(b"one\ntw"))
    assert list(cutter.rest()) == [b"tw"]
    assert list(cutter.rest()) == []


@pytest.mark.parametrize(
    ("framing", "stream"),
    [
        (Line(max_message=4), b"one\nfar too long\nx\n"),
        (Length(), struct.pack(">I", 2**31) + b"x"),
    ],
    ids=["line", "length"],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_bytes_behind_a_violation_are_no_messages_and_none_is_lost(
    framing: Any, stream: bytes, size: int
) -> None:
    cutter = Cutter(framing)
    pieces = [
        piece
        for start in range(0, len(stream), size)
        for piece in cutter.take(stream[start : start + size])
    ]
    pieces += cutter.end()
    assert b"".join(piece.data for piece in pieces) == stream
    known = [piece.message for piece in pieces if piece.message is not None]
    assert known == ([b"one"] if isinstance(framing, Line) else [])


def test_a_chunk_is_a_piece_of_a_read() -> None:
    cutter = Cutter(Chunk(4))
    assert [piece.message for piece in cutter.take(b"123456789")] == [b"1234", b"5678", b"9"]
    assert [piece.message for piece in cutter.take(b"a")] == [b"a"]
    assert list(cutter.end()) == []


def test_the_framers_of_echod_are_not_fed_byte_by_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    feed = BufferingFramer.feed

    def counting(self: BufferingFramer, data: bytes) -> None:
        fed.append(len(data))
        feed(self, data)

    monkeypatch.setattr(BufferingFramer, "feed", counting)
    list(Cutter(Line()).take(b"one\ntwo\n" * 100))
    assert fed == [800]
