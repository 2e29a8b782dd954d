"""Hostile bytes, for every parser and for the daemon."""

from __future__ import annotations

import importlib.util
import random
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echod.messages.framing import Fixed, Framing, Line
from echod.messages.prefixed import Length, Netstring, Varint
from tests.faults.fuzz.targets import TARGETS, cut, messages
from tests.faults.scale import Scale
from tests.support.clients import connect, receive_all
from tests.support.daemon import CONCURRENT, Start
from tests.support.needs import missing

INPUTS = 1_000_000


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_bytes_are_parsed_or_refused(target: str, tmp_path: Path, scale: Scale) -> None:
    """A parser parses any bytes, or refuses them with its own error."""
    if scale.soak:
        fuzz(target, tmp_path, scale)
    settings(max_examples=50)(given(st.binary(max_size=300))(TARGETS[target]))()


def fuzz(target: str, directory: Path, scale: Scale) -> None:
    """Let atheris search for inputs that break it."""
    if importlib.util.find_spec("atheris") is None:
        missing("atheris is not installed: `make soak` installs it")
    options = [f"{INPUTS}", f"-max_total_time={scale.seconds_left:.0f}", "-print_final_stats=1"]
    options += [f"-artifact_prefix={directory}/"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.fuzz", target, *options],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]
    tried = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert tried is not None
    scale.note(f"{int(tried[1]):,} of {INPUTS:,} inputs")


FRAMINGS: dict[str, Framing] = {
    "line": Line(),
    "length": Length(),
    "length:bytes=2,order=little,inclusive=true": Length(bytes=2, order="little", inclusive=True),
    "netstring": Netstring(),
    "varint": Varint(),
    "fixed:size=500": Fixed(500),
}


@pytest.mark.parametrize("name", FRAMINGS)
@pytest.mark.parametrize("model", CONCURRENT)
def test_hostile_streams_get_what_their_messages_deserve(
    daemon: Start, name: str, model: str, scale: Scale
) -> None:
    """Faults 32 and 39: However a stream is cut, and whichever bytes it contains, each of its
    messages is answered, and invalid input is refused; there is no traceback, and other clients
    are served.
    """
    framing = FRAMINGS[name]
    running = daemon("--framing", name, "--concurrency", model, "--no-banner", "--prefix", "")
    chance = random.Random(name)
    for _ in scale(ci=20, soak=20_000):
        stream = b"".join(hostile(chance) for _ in range(chance.randrange(1, 30)))
        if name not in ("line", "fixed:size=500") and chance.random() < 0.9:
            stream = b"".join(framing.encode(part[:65_000]) for part in stream.split(b"\r"))
        got, error = messages(framing, iter([stream]))
        expected = b"".join(map(framing.encode, got))
        if error:
            expected += framing.encode_line(error.encode())
        with connect(running) as connection:
            # In thousands of pieces, the bytes after a refused message may take a busy machine
            # longer than the daemon waits for them.
            whole = chance.random() >= 0.3 or len(stream) > 20_000
            for piece in [stream] if whole else cut(stream):
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            assert receive_all(connection) == expected
    assert "Traceback" not in running.log
    # A tab begins each further line of an event, as of a stall, which a busy machine may cause.
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", running.log)


def hostile(chance: random.Random) -> bytes:
    """Return bytes that parsers, terminals and formats have trouble with."""
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(chance.randrange(40))
    if kind == 1:
        return chance.choice([b"\n", b"\r\n", b"\0", b"\xff" * 4, b"\x1b[2J", b"%s{0}%n", b"\x9b"])
    if kind == 2:
        return b"x" * chance.randrange(20_000) + b"\n"
    return chance.randrange(1 << 32).to_bytes(4, "big")
