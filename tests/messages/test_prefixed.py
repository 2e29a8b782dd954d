"""Messages behind their lengths: how they are cut, framed and refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.messages.framing import (
    Framing,
    FramingError,
    MessageCutShort,
    MessageTooLong,
    encode_greeting,
)
from echod.messages.prefixed import Length, Netstring, Varint
from tests.support.framers import cut, fed, messages, outcome

MAKERS: list[Callable[..., Framing]] = [Length, Netstring, Varint]
LENGTHS = [
    Length(bytes=size, order=order, inclusive=inclusive)
    for size in (1, 2, 3, 4, 8)
    for order in ("big", "little")
    for inclusive in (False, True)
]
FRAMINGS: list[Framing] = [*LENGTHS, Netstring(), Varint()]

TOO_LONG = "Message too long: the limit is 300 bytes"
BAD_DIGITS = "Bad length: a netstring begins with digits and a colon"


@given(
    st.sampled_from(FRAMINGS), st.lists(st.binary(max_size=254)), st.lists(st.integers(0, 10**6))
)
def test_messages_come_whole_however_the_stream_was_segmented(
    framing: Framing, parts: list[bytes], places: list[int]
) -> None:
    stream = b"".join(map(framing.encode, parts))
    assert fed(framing, *cut(stream, places)) == parts
    assert outcome(framing, *cut(stream, places)) == (parts, "")


@given(
    st.sampled_from(MAKERS),
    st.lists(st.integers(0, 400), max_size=5),
    st.binary(max_size=4),
    st.integers(0, 300),
    st.lists(st.integers(0, 10**6), max_size=30),
)
def test_a_stream_has_one_outcome_however_it_was_segmented(
    make: Callable[..., Framing], sizes: list[int], tail: bytes, left_out: int, places: list[int]
) -> None:
    """Messages may be too long, bytes are damaged, and the stream may end anywhere."""
    framing = make(max_message=300)
    stream = b"".join(make().encode(b"x" * size) for size in sizes) + tail
    stream = stream[: len(stream) - left_out]
    got, error = outcome(framing, *cut(stream, places))
    assert (got, error) == outcome(framing, *filter(None, [stream]))
    assert (got, error) == outcome(framing, *(stream[at : at + 1] for at in range(len(stream))))
    assert stream.startswith(b"".join(map(framing.encode, got)))
    if not error:
        assert b"".join(map(framing.encode, got)) == stream
    if any(size > 300 for size in sizes) and not left_out:
        assert error == TOO_LONG


@given(st.binary(max_size=60), st.lists(st.integers(0, 10**6), max_size=30))
def test_any_bytes_are_parsed_or_refused(stream: bytes, places: list[int]) -> None:
    for framing in (*FRAMINGS, Varint(2**31 - 1)):
        got, error = outcome(framing, *cut(stream, places))
        assert (got, error) == outcome(framing, *filter(None, [stream]))


@pytest.mark.parametrize(
    ("framing", "wire"),
    [
        (Length(), b"\0\0\0\2xy"),
        (Length(bytes=1), b"\2xy"),
        (Length(bytes=2), b"\0\2xy"),
        (Length(bytes=2, order="little"), b"\2\0xy"),
        (Length(bytes=3), b"\0\0\2xy"),
        (Length(bytes=3, order="little"), b"\2\0\0xy"),
        (Length(bytes=8), b"\0\0\0\0\0\0\0\2xy"),
        (Length(inclusive=True), b"\0\0\0\6xy"),
        (Length(bytes=1, inclusive=True), b"\3xy"),
        (Length(bytes=3, inclusive=True), b"\0\0\5xy"),
        (Length(bytes=8, order="little", inclusive=True), b"\x0a\0\0\0\0\0\0\0xy"),
        (Netstring(), b"2:xy,"),
        (Varint(), b"\2xy"),
    ],
)
def test_a_message_and_a_reply_stand_behind_their_length(framing: Framing, wire: bytes) -> None:
    assert framing.encode(b"xy") == wire
    assert fed(framing, wire) == [b"xy"]


@pytest.mark.parametrize(
    ("framing", "wire"),
    [
        (Length(), b"\0\0\0\3Hi\n"),
        (Length(bytes=2, order="little", inclusive=True), b"\5\0Hi\n"),
        (Netstring(), b"3:Hi\n,"),
        (Varint(), b"\3Hi\n"),
    ],
)
def test_a_line_and_a_greeting_are_framed_as_replies_are(framing: Framing, wire: bytes) -> None:
    assert framing.encode_line(b"Hi") == wire
    assert encode_greeting(framing, b"Hi\n") == wire
    assert encode_greeting(framing, b"Hi") == framing.encode(b"Hi")


@pytest.mark.parametrize("make", MAKERS)
def test_a_message_of_the_limit_passes_and_a_longer_one_is_refused_by_its_length_alone(
    make: Callable[..., Framing],
) -> None:
    framing = make(max_message=300)
    assert fed(framing, framing.encode(b"x" * 300)) == [b"x" * 300]
    prefix = make().encode(b"x" * 301).partition(b"x")[0]
    with pytest.raises(MessageTooLong, match="the limit is 300 bytes"):
        fed(framing, prefix)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("size", [0, -1, 2**31])
def test_a_message_has_at_least_a_byte_and_at_most_two_gigabytes(
    make: Callable[..., Framing], size: int
) -> None:
    with pytest.raises(ValueError, match=f"max_message is a number from 1 to .*, not {size}"):
        make(max_message=size)


@pytest.mark.parametrize(
    ("options", "most"),
    [({"bytes": 1}, 255), ({"bytes": 1, "inclusive": True}, 254), ({"bytes": 2}, 32768)],
)
def test_a_message_is_no_longer_than_its_length_can_announce(
    options: dict[str, Any], most: int
) -> None:
    framing = Length(**options)
    assert framing.max_message == most
    assert fed(framing, framing.encode(b"x" * most)) == [b"x" * most]


@pytest.mark.parametrize(
    ("options", "most"),
    [({"bytes": 1}, 255), ({"bytes": 1, "inclusive": True}, 254), ({"bytes": 2}, 65535)],
)
def test_a_greatest_size_that_no_length_can_announce_is_refused(
    options: dict[str, Any], most: int
) -> None:
    assert Length(max_message=most, **options).max_message == most
    with pytest.raises(ValueError, match=rf"announces at most {most} bytes, so max_message is"):
        Length(max_message=most + 1, **options)


@pytest.mark.parametrize(
    ("framing", "most"),
    [
        (Length(bytes=1), 255),
        (Length(bytes=1, inclusive=True), 254),
        (Length(bytes=2, order="little"), 65535),
        (Length(bytes=2, inclusive=True), 65533),
        (Length(bytes=3), 2**24 - 1),
    ],
)
def test_a_reply_that_no_length_can_announce_is_refused(framing: Framing, most: int) -> None:
    assert len(framing.encode(bytes(most))) > most
    with pytest.raises(ValueError, match=f"announces at most {most} bytes, not {most + 1}$"):
        framing.encode(bytes(most + 1))


@pytest.mark.parametrize("options", [{"bytes": 5}, {"order": "middle"}])
def test_a_length_of_another_form_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="bytes is 1, 2, 3, 4 or 8, and order is big or little"):
        Length(**options)


@pytest.mark.parametrize(
    ("framing", "stream", "missing"),
    [
        (Length(), b"\0", 3),
        (Length(), b"\0\0\0\5ab", 3),
        (Length(bytes=3, inclusive=True), b"\0\0\5a", 1),
        (Netstring(), b"5:ab", 4),
        (Netstring(), b"5:happy", 1),
        (Netstring(), b"12", None),
        (Varint(), b"\5ab", 3),
        (Varint(), b"\x80", None),
    ],
)
def test_a_stream_that_ends_within_a_message_says_how_much_is_missing(
    framing: Framing, stream: bytes, missing: int | None
) -> None:
    framer = framing.framer()
    framer.feed(stream)
    assert framer.next_message() is None
    framer.end()
    with pytest.raises(MessageCutShort) as caught:
        framer.next_message()
    where = "within its length" if missing is None else "before its end"
    assert str(caught.value).endswith(where)
    assert missing is None or f"{missing} byte" in str(caught.value)


@pytest.mark.parametrize("framing", FRAMINGS, ids=str)
def test_an_empty_input_has_no_message(framing: Framing) -> None:
    assert outcome(framing) == ([], "")


@pytest.mark.parametrize(
    ("framing", "stream", "error"),
    [
        (Length(inclusive=True), b"\0\0\0\3", "Bad length: it counts its own 4 bytes, so"),
        (Length(bytes=1, inclusive=True), b"\0", "Bad length: it counts its own 1 byte, so"),
        (Length(bytes=8), b"\xff" * 8, "Message too long"),
        (Netstring(), b":", BAD_DIGITS),
        (Netstring(), b"x", BAD_DIGITS),
        (Netstring(), b" 5:happy,", BAD_DIGITS),
        (Netstring(), b"-", BAD_DIGITS),
        (Netstring(), b"05", BAD_DIGITS),
        (Netstring(), b"00:", BAD_DIGITS),
        (Netstring(), b"5 :happy,", BAD_DIGITS),
        (Netstring(), b"\xd9\xa5:happy,", BAD_DIGITS),
        (Netstring(300), b"99999", TOO_LONG),
        (Netstring(300), b"301", TOO_LONG),
        (Netstring(300), b"9" * 100_000, TOO_LONG),
        (Netstring(), b"5:happyx", "Bad netstring: no comma behind its last byte"),
        (Varint(300), b"\xad\x02", TOO_LONG),
        (Varint(300), b"\x80\x83", TOO_LONG),
        (Varint(300), b"\xff" * 100_000, TOO_LONG),
        (Varint(), b"\x80" * 10, "Bad length: a varint has at most 10 bytes"),
    ],
)
def test_a_bad_length_is_refused_with_its_first_wrong_byte(
    framing: Framing, stream: bytes, error: str
) -> None:
    with pytest.raises(FramingError) as caught:
        fed(framing, stream)
    assert str(caught.value).startswith(error)


@pytest.mark.parametrize(
    "stream", [b"\x85\0happy", b"\x85\x80\x80\x80\x80\x80\x80\x80\x80\0happy"]
)
def test_a_varint_may_have_zeros_above_its_highest_bit(stream: bytes) -> None:
    assert fed(Varint(), stream) == [b"happy"]


@given(st.integers(0, 2**31 - 1))
def test_a_varint_is_written_as_protobuf_does(length: int) -> None:
    class Reply(bytes):
        """Pretends to be so long."""

        def __len__(self) -> int:
            return length

    prefix = Varint().encode(Reply())
    groups = [byte & 0x7F for byte in prefix]
    assert sum(group << (7 * at) for at, group in enumerate(groups)) == length
    assert [byte >= 0x80 for byte in prefix] == [True] * (len(prefix) - 1) + [False]
    assert len(prefix) == 1 or groups[-1] != 0


@pytest.mark.parametrize("framing", [Length(), Netstring(), Varint()], ids=str)
def test_segments_of_one_byte_cost_the_same_each(framing: Framing) -> None:
    def cost(count: int) -> int:
        """Return how many steps of the interpreter a message of `count` bytes costs."""
        wire, steps = framing.encode(bytes(count)), 0
        segments = [wire[at : at + 1] for at in range(len(wire))]

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal steps
            frame.f_trace_opcodes = True
            steps += event == "opcode"
            return trace

        framer = framing.framer()
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            for segment in segments:
                framer.feed(segment)
                message = framer.next_message()
        finally:
            sys.settrace(before)
        assert message == bytes(count)
        return steps

    assert cost(4000) < 4.2 * cost(1000)


class Searched(bytearray):
    """Counts the bytes that are copied out of it, or searched."""

    touched = 0

    def find(self, wanted: Any, start: Any = 0, end: Any = None) -> int:
        at = super().find(wanted, start, end)
        self.touched += (min(len(self), end) if at < 0 else at + 1) - start
        return at

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        self.touched += len(part)
        return part


@pytest.mark.parametrize("framing", [Length(), Netstring(), Varint()], ids=str)
def test_of_a_held_message_only_the_length_is_looked_at_again(framing: Framing) -> None:
    framer = framing.framer()
    framer.buffer = buffer = Searched()  # type: ignore[attr-defined]
    wire = framing.encode(bytes(10_000))
    for at in range(len(wire)):
        framer.feed(wire[at : at + 1])
        message = framer.next_message()
    assert message == bytes(10_000)
    assert buffer.touched <= 20 * len(wire)


@pytest.mark.parametrize("framing", [Length(), Netstring(), Varint()], ids=str)
def test_many_messages_of_one_read_are_copied_once(framing: Framing) -> None:
    framer = framing.framer()
    framer.buffer = buffer = Searched()  # type: ignore[attr-defined]
    wire = framing.encode(b"x") * 50_000
    framer.feed(wire)
    assert len(messages(framer)) == 50_000
    assert framer.buffered == 0
    assert buffer.touched <= 20 * len(wire)
