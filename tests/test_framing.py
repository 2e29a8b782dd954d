from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.framing import (
    FRAMINGS,
    Chunk,
    Framer,
    Framing,
    Length,
    Line,
    MessageCutShort,
    MessageTooLong,
)


def messages(framer: Framer) -> list[bytes]:
    return list(iter(framer.next_message, None))


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


def fed(framing: Framing, *reads: bytes) -> list[bytes]:
    framer = framing.framer()
    for read in reads:
        framer.feed(read)
    return messages(framer)


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


def test_one_byte_segments_are_searched_once() -> None:
    framer = Line(max_message=200_000).framer()
    for _ in range(100_000):
        framer.feed(b"x")
        assert framer.next_message() is None
    framer.feed(b"\n")
    assert framer.next_message() == b"x" * 100_000


@given(st.lists(st.binary(max_size=300)), st.lists(st.integers(0, 10**6)))
def test_lengths_come_whole_however_the_stream_was_segmented(
    parts: list[bytes], places: list[int]
) -> None:
    stream = b"".join(map(Length().encode, parts))
    assert fed(Length(), *cut(stream, places)) == parts


def test_a_length_beyond_the_limit_is_refused_by_its_header_alone() -> None:
    with pytest.raises(MessageTooLong, match="the limit is 10 bytes"):
        fed(Length(max_message=10), b"\x00\x00\x00\x0b")


@pytest.mark.parametrize(("stream", "missing"), [(b"\x00", 3), (b"\x00\x00\x00\x05ab", 3)])
def test_a_stream_that_ends_within_a_message_says_how_much_is_missing(
    stream: bytes, missing: int
) -> None:
    framer = Length().framer()
    framer.feed(stream)
    framer.end()
    with pytest.raises(MessageCutShort, match=f"{missing} bytes before its end"):
        framer.next_message()


@pytest.mark.parametrize(
    ("framing", "reply", "wire"),
    [
        (Chunk(), b"x", b"x"),
        (Line(), b"x", b"x\n"),
        (Line(), b"x\n", b"x\n"),
        (Line(b"\r\n"), b"", b"\r\n"),
        (Length(), b"xy", b"\x00\x00\x00\x02xy"),
    ],
)
def test_replies_are_framed_as_messages_are(framing: Framing, reply: bytes, wire: bytes) -> None:
    assert framing.encode(reply) == wire


@pytest.mark.parametrize(
    ("framing", "wire"),
    [
        (Chunk(), b"Hi\n"),
        (Line(b"\r\n"), b"Hi\r\n"),
        (Length(), b"\x00\x00\x00\x03Hi\n"),
    ],
)
def test_a_line_of_the_daemons_own_ends_as_the_framing_has_it(
    framing: Framing, wire: bytes
) -> None:
    assert framing.encode_line(b"Hi") == wire


@pytest.mark.parametrize("name", FRAMINGS)
def test_an_empty_input_has_no_message(name: str) -> None:
    framer = FRAMINGS[name]().framer()
    framer.end()
    assert framer.next_message() is None
    assert framer.buffered == 0


def test_a_delimiter_must_not_be_empty() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        Line(b"")
