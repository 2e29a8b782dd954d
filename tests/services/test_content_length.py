"""The example of a framing of one's own; tests/system/test_packaging.py installs it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.handlers.framings import parse_framing, resolve_framing
from echod.messages.framing import Framing, FramingError, encode_greeting
from tests.support.clients import connect, receive_all
from tests.support.daemon import CONCURRENT, Start
from tests.support.framers import cut, fed, outcome
from tests.support.paths import ROOT

EXAMPLE = ROOT / "examples" / "services" / "echod-content-length"


@pytest.fixture(autouse=True, scope="module")
def _path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLE)
        patch.setattr(sys, "dont_write_bytecode", True)
        yield


def content_length(arguments: str = "") -> Framing:
    return resolve_framing(parse_framing(f"content_length:ContentLength{arguments}"))


@given(st.lists(st.binary(max_size=300)), st.lists(st.integers(0, 10**6)))
def test_messages_come_whole_however_the_stream_was_segmented(
    parts: list[bytes], places: list[int]
) -> None:
    framing = content_length()
    stream = b"".join(map(framing.encode, parts))
    assert fed(framing, *cut(stream, places)) == parts
    assert outcome(framing, *cut(stream, places)) == (parts, "")


@given(st.binary(max_size=60), st.lists(st.integers(0, 10**6)))
def test_any_bytes_have_one_outcome_however_they_were_segmented(
    tail: bytes, places: list[int]
) -> None:
    framing = content_length(":max_message=300")
    for start in (b"", b"Content-Length: ", b"Content-Length: 5\r\n", framing.encode(b"happy")):
        stream = start + tail
        assert outcome(framing, *cut(stream, places)) == outcome(framing, *filter(None, [stream]))


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"Content-Length: x\r\n\r\n", "Bad header: a message begins with"),
        (b"Content-Length: -5\r\n\r\n", "Bad header: a message begins with"),
        (b"\r\n\r\n", "Bad header: a message begins with"),
        (b"x" * 29, "Bad header: a message begins with Content-Length: 5"),
        (b"Content-Length: 301\r\n\r\n", "Message too long: the limit is 300 bytes"),
        (b"Content-Length: " + b"9" * 9 + b"\r\n\r\n", "Message too long: the limit is 300"),
    ],
)
def test_a_bad_header_is_refused_by_itself(stream: bytes, error: str) -> None:
    with pytest.raises(FramingError) as caught:
        fed(content_length(":max_message=300"), stream)
    assert str(caught.value).startswith(error)


def test_a_greeting_and_a_line_of_the_daemons_own_have_a_header() -> None:
    framing = content_length()
    wire = b"Content-Length: 3\r\n\r\nHi\n"
    assert encode_greeting(framing, b"Hi\n") == framing.encode_line(b"Hi") == wire


@pytest.mark.parametrize("model", CONCURRENT)
def test_it_serves(daemon: Start, tmp_path: Path, model: str) -> None:
    shutil.copy(EXAMPLE / "content_length.py", tmp_path)
    framing = content_length()
    named = ("--framing", "content_length:ContentLength:max_message=10")
    running = daemon(*named, *("--concurrency", model, "--handler", "upper"))
    sent = framing.encode(b"happy") + framing.encode(b"to") + framing.encode(b"x" * 11)
    with connect(running) as client:
        client.sendall(sent)
        answer = receive_all(client)
    assert answer == b"".join(
        [
            framing.encode(b"HAPPY"),
            framing.encode(b"TO"),
            framing.encode_line(b"Message too long: the limit is 10 bytes"),
        ]
    )
    running.wait_for(r"Disconnected from .*: framing error \(.* messages: 2, ")
