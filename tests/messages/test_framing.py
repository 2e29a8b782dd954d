from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.messages.framing import (
    Chunk,
    DirectFraming,
    Fixed,
    Framing,
    FramingError,
    Line,
    MessageCutShort,
    MessageTooLong,
    encode_greeting,
    framed_together,
)
from echod.messages.prefixed import Length
from tests.support.framers import cut, fed, messages, outcome


@pytest.mark.parametrize(
    ("size", "pieces"),
    [(1, [1]), (1024, [1024]), (1025, [1024, 1]), (3000, [1024, 1024, 952])],
)
def test_chunk_cuts_a_read_into_pieces_of_at_most_1024_bytes(size: int, pieces: list[int]) -> None:
    assert [len(message) for message in fed(Chunk(), b"x" * size)] == pieces


def test_chunk_keeps_reads_apart() -> None:
    assert fed(Chunk(), b"happy\n", b"days\n") == [b"happy\n", b"days\n"]


def test_chunk_counts_small_reads_for_what_they_cost() -> None:
    framer = Chunk().framer()
    for _ in range(1000):
        framer.feed(b"x")
    assert framer.buffered >= 1000 * 33
    assert len(messages(framer)) == 1000
    assert framer.buffered == 0


def test_chunk_gives_back_the_memory_of_a_long_read_as_it_is_handed_out() -> None:
    framer = Chunk(1000).framer()
    data = random.Random(1).randbytes(250_000)
    framer.feed(data)
    handed_out = b""
    while (message := framer.next_message()) is not None:
        handed_out += message
        assert framer.buffered + len(handed_out) <= len(data) + 40_000
    assert handed_out == data


class Counted(bytes):
    """Counts the bytes that are copied out of it."""

    copied = 0

    def __getitem__(self, key: Any) -> Any:
        part = Counted(super().__getitem__(key))
        Counted.copied += len(part)
        return part


def test_chunk_copies_a_long_read_a_few_times_and_not_once_for_each_message() -> None:
    Counted.copied = 0
    framer = Chunk(64).framer()
    framer.feed(Counted(200_000))
    assert len(messages(framer)) == 200_000 // 64
    # Each message, and what is left of the read, a step shorter each time.
    assert Counted.copied <= 200_000 + sum(range(0, 200_000, 32 * 1024))


def test_chunk_keeps_long_reads_in_order() -> None:
    reads = [random.Random(seed).randbytes(100_000) for seed in range(3)]
    framer = Chunk().framer()
    for read in reads:
        framer.feed(read)
    assert b"".join(messages(framer)) == b"".join(reads)
    assert framer.buffered == 0


@given(st.lists(st.binary(min_size=1, max_size=5000)), st.integers(1, 2000))
def test_chunk_loses_and_changes_nothing(reads: list[bytes], size: int) -> None:
    found = fed(Chunk(size), *reads)
    assert b"".join(found) == b"".join(reads)
    assert all(1 <= len(message) <= size for message in found)


@given(
    st.lists(st.binary(max_size=50)),
    st.sampled_from([b"\n", b"\r\n", b"aab", b"\x00\xff"]),
    st.lists(st.integers(0, 10**6)),
)
def test_lines_come_whole_however_the_stream_was_segmented(
    lines: list[bytes], delimiter: bytes, places: list[int]
) -> None:
    stream = b"".join(line + delimiter for line in lines)
    expected = stream.split(delimiter)[:-1]
    assert fed(Line(delimiter), *cut(stream, places)) == expected


def test_a_last_line_without_delimiter_counts_when_the_stream_ends() -> None:
    framer = Line().framer()
    framer.feed(b"happy\ndays")
    assert messages(framer) == [b"happy"]
    framer.end()
    assert messages(framer) == [b"days"]
    assert framer.buffered == 0


def test_a_line_of_the_limit_passes_and_one_byte_more_does_not() -> None:
    line = Line(b"\r\n", max_message=5)
    assert fed(line, b"12345\r\n") == [b"12345"]
    with pytest.raises(MessageTooLong, match="the limit is 5 bytes"):
        fed(line, b"123456\r\n")


def test_a_line_without_end_is_refused_before_it_is_buffered_whole() -> None:
    framer = Line(max_message=10).framer()
    framer.feed(b"x" * 10)
    assert framer.next_message() is None
    framer.feed(b"x")
    with pytest.raises(MessageTooLong):
        framer.next_message()


def test_a_last_line_beyond_the_limit_is_refused() -> None:
    framer = Line(b"\r\n", max_message=5).framer()
    framer.feed(b"123456")
    assert framer.next_message() is None
    framer.end()
    with pytest.raises(MessageTooLong):
        framer.next_message()


def test_a_last_line_of_the_limit_passes() -> None:
    framer = Line(b"\r\n", max_message=5).framer()
    framer.feed(b"12345")
    assert framer.next_message() is None
    framer.end()
    assert messages(framer) == [b"12345"]


class Searched(bytearray):
    """Counts the bytes that are searched for a delimiter."""

    looked_at = 0

    def find(self, delimiter: Any, start: Any = 0, end: Any = None) -> int:
        at = super().find(delimiter, start, end)
        self.looked_at += (len(self) if at < 0 else at + len(delimiter)) - start
        return at


@pytest.mark.parametrize("delimiter", [b"\n", b"\r\n", b"-----"])
def test_one_byte_segments_are_searched_once(delimiter: bytes) -> None:
    framer = Line(delimiter, max_message=20_000).framer()
    framer.buffer = buffer = Searched()  # type: ignore[attr-defined]
    for _ in range(2):
        for _ in range(10_000):
            framer.feed(b"x")
            assert framer.next_message() is None
        framer.feed(delimiter)
        assert framer.next_message() == b"x" * 10_000
    # Each byte once, and the last ones again, in which a delimiter might have begun.
    assert buffer.looked_at <= 2 * 10_001 * len(delimiter) + 10


def test_behind_a_line_the_next_is_searched_from_its_beginning() -> None:
    framer = Line(b"--").framer()
    framer.feed(b"a long line")
    assert framer.next_message() is None
    framer.feed(b"--b--c")
    assert messages(framer) == [b"a long line", b"b"]
    framer.end()
    assert messages(framer) == [b"c"]


@pytest.mark.parametrize(
    ("framing", "reply", "wire"),
    [
        (Chunk(), b"x", b"x"),
        (Line(), b"x", b"x\n"),
        (Line(), b"x\n", b"x\n"),
        (Line(b"\r\n"), b"", b"\r\n"),
        (Fixed(2), b"xy", b"xy"),
    ],
)
def test_replies_are_framed_as_messages_are(framing: Framing, reply: bytes, wire: bytes) -> None:
    assert framing.encode(reply) == wire


@pytest.mark.parametrize(
    ("framing", "wire"),
    [
        (Chunk(), b"Hi\n"),
        (Line(b"\r\n"), b"Hi\r\n"),
        (Fixed(3), b"Hi\n"),
        (Fixed(2), b"Hi \n"),
        (Fixed(1), b"Hi\n"),
        (Fixed(10), b"Hi       \n"),
    ],
)
def test_a_line_of_the_daemons_own_ends_as_the_framing_has_it(
    framing: Framing, wire: bytes
) -> None:
    assert framing.encode_line(b"Hi") == wire


@pytest.mark.parametrize(
    ("framing", "greeting", "wire"),
    [
        (Chunk(), b"Hi\n", b"Hi\n"),
        (Chunk(), b"Hi ", b"Hi "),
        (Line(b"\r\n"), b"Hi\n", b"Hi\r\n"),
        (Line(b"\r\n"), b"Hi", b"Hi\r\n"),
        (Fixed(4), b"Hi\n", b"Hi \n"),
        (Fixed(2), b"Hi", b"Hi"),
    ],
)
def test_a_greeting_that_is_a_line_ends_as_the_framing_has_it(
    framing: Framing, greeting: bytes, wire: bytes
) -> None:
    assert encode_greeting(framing, greeting) == wire


@pytest.mark.parametrize("framing", [Chunk(), Line(), Fixed(3)])
def test_an_empty_input_has_no_message(framing: Framing) -> None:
    framer = framing.framer()
    framer.end()
    assert framer.next_message() is None
    assert framer.buffered == 0


def test_a_delimiter_must_not_be_empty() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        Line(b"")


@pytest.mark.parametrize("make", [Chunk, lambda size: Line(max_message=size), Fixed])
@pytest.mark.parametrize("size", [0, -1, 2**31])
def test_a_message_has_at_least_a_byte_and_at_most_two_gigabytes(make: Any, size: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to 2147483647, not {size}"):
        make(size)


@given(st.binary(max_size=300), st.integers(1, 40), st.lists(st.integers(0, 10**6)))
def test_fixed_messages_come_whole_however_the_stream_was_segmented(
    stream: bytes, size: int, places: list[int]
) -> None:
    whole = len(stream) // size
    expected = [stream[number * size : (number + 1) * size] for number in range(whole)]
    assert fed(Fixed(size), *cut(stream, places)) == expected
    assert b"".join(map(Fixed(size).encode, expected)) == stream[: whole * size]
    missing = -len(stream) % size
    got, error = outcome(Fixed(size), *cut(stream, places))
    assert got == expected
    assert error == (str(MessageCutShort(missing)) if missing else "")


@pytest.mark.parametrize("reply", [b"", b"abc", b"abcdefgh"])
def test_a_fixed_reply_of_another_size_is_refused(reply: bytes) -> None:
    with pytest.raises(ValueError, match=f"a fixed reply has 4 bytes, not {len(reply)}"):
        Fixed(4).encode(reply)


@pytest.mark.parametrize(
    "framing",
    [
        Line(max_message=6),
        Line(b"\r\n", max_message=6),
        Line(b"aa", max_message=6),
        Fixed(3),
        Length(max_message=6, bytes=1),
        Length(max_message=6, bytes=2, order="little"),
        Length(max_message=6, bytes=3),
        Length(max_message=6, bytes=1, inclusive=True),
    ],
)
def test_a_read_is_taken_at_once_only_as_a_framer_would_take_it(framing: DirectFraming) -> None:
    @given(st.lists(st.sampled_from([*b"\0\1\3\7a\r\n"]), min_size=1, max_size=24).map(bytes))
    def take(data: bytes) -> None:
        framer, found, refused = framing.framer(), list[bytes](), False
        framer.feed(data)
        try:
            found = messages(framer)
        except FramingError:
            refused = True
        whole = framing.whole(data)
        if refused or framer.buffered:
            assert whole is None
        else:
            assert whole == found
            assert b"".join(map(framing.encode, found)) == data

    take()


@pytest.mark.parametrize("framing", [Line(max_message=6), Length(max_message=6)])
def test_a_message_beyond_the_limit_is_not_taken_at_once(framing: DirectFraming) -> None:
    most, more = framing.encode(b"123456"), framing.encode(b"1234567")
    assert framing.whole(most + most) == [b"123456"] * 2
    assert framing.whole(most + more) is None


@pytest.mark.parametrize("framing", [Line(), Line(b"\r\n"), Line(b"aa")])
def test_replies_that_leave_together_are_framed_as_each_alone(framing: Line) -> None:
    texts = st.lists(st.sampled_from([*b"ab\r\n"]), max_size=6).map(bytes)

    @given(st.lists(texts, max_size=6))
    def join(replies: list[bytes]) -> None:
        given = [*replies]
        assert framed_together(replies, framing) == b"".join(map(framing.encode, replies))
        assert replies == given

    join()


@pytest.mark.parametrize("framing", [Line(), Line(b"\r\n"), Line(b"aa")])
def test_a_reply_gets_the_tail_unless_it_ends_as_the_tail_does(framing: Line) -> None:
    @given(st.lists(st.sampled_from([*b"ab\r\n"]), max_size=6).map(bytes))
    def frame(reply: bytes) -> None:
        ended = reply.endswith(framing.delimiter)
        assert framing.encode(reply) == (reply if ended else reply + framing.delimiter)
        if not (reply and reply[-1] == framing.last):
            assert framing.encode(reply) == reply + framing.tail

    frame()
