"""A framing of a user's own cannot do without what the interface asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.messages.framing import (
    BufferingFramer,
    Chunk,
    Fixed,
    Framer,
    Framing,
    FramingError,
    Line,
    MessageTooLong,
)
from echod.messages.guarded import ALLOWANCE, guarded
from echod.messages.prefixed import Length, Netstring, Varint
from tests.support.framers import cut, fed, messages, outcome


class Careless(BufferingFramer):
    """Lines, of any length."""

    def next_message(self) -> Any:
        line, newline, rest = bytes(self.buffer).partition(b"\n")
        if not newline:
            return None
        self.buffer[:] = rest
        return line


class Hasty(Careless):
    """Refuses an exclamation mark at once, and an end within a line."""

    def feed(self, data: bytes) -> None:
        accepted, mark, _ = data.partition(b"!")
        super().feed(accepted)
        if mark:
            raise FramingError("no shouting")

    def end(self) -> None:
        if self.buffer and not self.buffer.endswith(b"\n"):
            raise FramingError("no end")


class Buffers(Careless):
    def next_message(self) -> Any:
        return None if (message := super().next_message()) is None else bytearray(message)


class Exits(Careless):
    def feed(self, data: bytes) -> None:
        super().feed(data)
        if b"!" in data:
            raise SystemExit("no shouting")


class Own(Line):
    """A subclass of a built-in framing, which has none of its properties."""

    made: type[Careless] = Careless

    def framer(self) -> Any:
        return self.made(self.max_message)


def framing_of(made: type[Careless], max_message: int = 100) -> Framing:
    @dataclass(frozen=True)
    class Made(Own):
        pass

    Made.made = made
    return guarded(Made(max_message=max_message))


@pytest.mark.parametrize(
    "framing", [Chunk(), Line(), Fixed(1), Length(), Netstring(), Varint()], ids=str
)
def test_a_built_in_framing_stays_as_it_is(framing: Framing) -> None:
    assert guarded(framing) is framing


def test_a_framing_of_ones_own_frames_as_it_did() -> None:
    framing = framing_of(Careless)
    assert framing.max_message == 100
    assert framing.encode(b"x") == framing.encode_line(b"x") == b"x\n"


def test_a_reply_that_is_framed_in_a_buffer_may_wait_while_that_is_used_again() -> None:
    class Reuses(Own):
        buffer = bytearray()

        def encode(self, reply: bytes) -> Any:
            self.buffer[:] = reply
            return self.buffer

    framing = guarded(Reuses())
    assert b"".join([framing.encode(b"a"), framing.encode(b"b")]) == b"ab"


def test_a_reply_that_is_framed_as_anything_else_is_an_error_at_once() -> None:
    class Decodes(Own):
        def encode(self, reply: bytes) -> Any:
            return reply.decode()

    with pytest.raises(TypeError, match="encode returns bytes, not str"):
        guarded(Decodes()).encode(b"a")


@given(st.lists(st.binary(max_size=20)), st.lists(st.integers(0, 10**6)))
def test_messages_come_whole_however_the_stream_was_segmented(
    lines: list[bytes], places: list[int]
) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    reads = cut(stream, places)
    assert fed(framing_of(Careless), *reads) == stream.split(b"\n")[:-1]
    assert outcome(framing_of(Careless), *reads) == (stream.split(b"\n")[:-1], "")


def test_a_message_beyond_the_limit_is_refused_although_the_framer_gives_it() -> None:
    assert fed(framing_of(Careless), b"x" * 100 + b"\n") == [b"x" * 100]
    with pytest.raises(MessageTooLong, match="the limit is 100 bytes"):
        fed(framing_of(Careless), b"x" * 101 + b"\n")


def test_a_framer_that_holds_ever_more_is_stopped() -> None:
    framer: Framer = framing_of(Careless).framer()
    for _ in range(100 + ALLOWANCE):
        framer.feed(b"x")
        assert framer.next_message() is None
    framer.feed(b"x")
    with pytest.raises(MessageTooLong, match="the limit is 100 bytes"):
        framer.next_message()


def test_a_long_read_of_many_messages_is_not_too_long() -> None:
    framer = framing_of(Careless).framer()
    framer.feed(b"happy\n" * 50_000)
    assert framer.buffered == 300_000
    assert framer.next_message() == b"happy"


@pytest.mark.parametrize(
    ("reads", "answered", "error"),
    [
        ([b"a\nb\n!c\n", b"d\n"], [b"a", b"b"], "no shouting"),
        ([b"a\nb"], [b"a"], "no end"),
        ([b"a\nb!"], [b"a"], "no shouting"),
        ([b"a\n"], [b"a"], ""),
    ],
)
def test_an_error_that_is_raised_too_early_comes_behind_the_messages_before_it(
    reads: list[bytes], answered: list[bytes], error: str
) -> None:
    framing = framing_of(Hasty)
    assert outcome(framing, *reads) == (answered, error)
    framer = framing.framer()
    for read in reads:
        framer.feed(read)
    framer.end()
    assert [framer.next_message() for _ in answered] == answered


def test_a_framer_that_exits_does_so_behind_the_messages_before_it() -> None:
    framer = framing_of(Exits).framer()
    framer.feed(b"a\n!")
    assert framer.next_message() == b"a"
    with pytest.raises(SystemExit, match="no shouting"):
        framer.next_message()


def test_a_message_that_is_no_bytes_is_an_error_of_the_framers() -> None:
    framer = framing_of(Buffers).framer()
    framer.feed(b"a\n")
    with pytest.raises(TypeError, match="next_message returns bytes or None, not bytearray"):
        messages(framer)
