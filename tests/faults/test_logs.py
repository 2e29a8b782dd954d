"""Dangers to the log, and through it: floods, dead readers, full disks, hostile clients."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import random
import re
import resource
import signal
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import echod
from tests.faults.scale import Scale
from tests.support.clients import BANNER, connect, receive, receive_all
from tests.support.daemon import REACTOR, Start
from tests.support.programs import SCRIPTS, Program, Step, limit
from tests.support.waiting import PATIENCE, block_until

CHATTY = """
def chat(message: bytes) -> bytes:
    print("x" * 10_000)
    return message
"""

# All but newlines and tabs that could steer a terminal, hide what follows or forge a line.
RAW_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

LOST = re.compile(rb"(\d+) lines? of the log w(?:as|ere) lost")


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """A small pipe."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    try:
        yield reading, writing
    finally:
        for end in (reading, writing):
            with suppress(OSError):  # closed already
                os.close(end)


@contextmanager
def serving(
    directory: Path,
    *arguments: str,
    twistd: Sequence[str] = (),
    steps: Sequence[Step] = (),
    stdout: int | None = None,
) -> Iterator[Path]:
    """A daemon whose output is not read; yields the UNIX socket that it listens on."""
    path = directory / "socket"
    process: Program[str] = Program(
        [SCRIPTS / "twistd", "-n", "--pidfile=", *REACTOR, *twistd, "echod",
         "--listen", f"unix:{path}", "--log-rate", "0", *arguments],
        cwd=directory,
        steps=steps,
        stdout=stdout,
    )  # fmt: skip
    try:
        block_until(lambda: is_listening(path))
        yield path
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()


def is_listening(path: Path) -> bool:
    """Return whether a process listens there: the path exists a moment earlier."""
    sockets = Path("/proc/net/unix").read_text().splitlines()
    return any(
        flags == "00010000" and name == [str(path)]  # __SO_ACCEPTCON of linux/net.h
        for _, _, _, flags, _, _, _, *name in map(str.split, sockets)
    )


def connect_to(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(str(path))
    return client


def daemon_of(client: socket.socket) -> int:
    """Return the process at the other end of a UNIX socket."""
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[0])


@contextmanager
def chatty(directory: Path, **options: Any) -> Iterator[Path]:
    """The same, with a handler that fills the log."""
    (directory / "chatty.py").write_text(CHATTY)
    with serving(directory, "--handler", "chatty:chat", **options) as path:
        yield path


def chat(path: Path, messages: int) -> None:
    """Get this many answers; each makes a line of ten thousand characters."""
    with connect_to(path) as client:
        for _ in range(messages):
            client.sendall(b"happy\n")
            assert receive(client, 6) == b"happy\n"


def test_standard_output_that_nobody_reads(tmp_path: Path) -> None:
    """Fault 15: Every message is answered; lines that find no room are counted, and once the log
    is read again, it says how many were lost.
    """
    with pipe() as (reading, writing), chatty(tmp_path, stdout=writing) as path:
        chat(path, 300)
        written = lost = 0
        with open(os.dup(reading), "rb") as log:  # noqa: PTH123 - no path
            while written + lost < 300:
                line = log.readline()
                written += line.endswith(b"x" * 10_000 + b"\n")
                lost += sum(map(int, LOST.findall(line)))
        assert lost > 100


def test_standard_output_that_nobody_reads_keeps_no_process_alive(tmp_path: Path) -> None:
    """Fault 15: The daemon ends in an orderly way although its last lines cannot be written."""
    with pipe() as (_, writing), chatty(tmp_path, stdout=writing) as path:
        chat(path, 50)


def test_a_log_on_a_full_disk(tmp_path: Path) -> None:
    """Fault 36: Every message is answered, although no line can be written."""
    with open("/dev/full", "wb") as full, chatty(tmp_path, stdout=full.fileno()) as path:  # noqa: PTH123
        chat(path, 50)


def test_a_log_file_that_may_not_grow(tmp_path: Path) -> None:
    """Fault 36: Lines are lost and counted while the file cannot be written; the next file says
    how many.
    """
    log = tmp_path / "log"
    steps = [limit(resource.RLIMIT_FSIZE, 20_000)]
    with chatty(tmp_path, twistd=("--logfile", str(log)), steps=steps) as path:
        for _ in range(5):
            chat(path, 1)
        with connect_to(path) as client:
            os.kill(daemon_of(client), signal.SIGUSR1)
        block_until((tmp_path / "log.1").exists)
        block_until(log.exists)  # a moment after the former one got its new name
        chat(path, 1)
        block_until(lambda: b"x" * 10_000 in log.read_bytes())
        assert log.read_bytes().count(b"x" * 10_000) == 1
        assert LOST.search(log.read_bytes())


def test_who_reads_the_log_dies(tmp_path: Path) -> None:
    """Fault 37: Every message is answered, before and after."""
    with pipe() as (reading, writing), chatty(tmp_path, stdout=writing) as path:
        chat(path, 10)
        os.close(writing)
        os.close(reading)
        chat(path, 10)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_flood_of_connections(daemon: Start, log_format: str) -> None:
    """Fault 38: The log limits lines of one kind to a rate; one line gives the number of
    suppressed ones.
    """
    running = daemon("--log-rate", "5", "--log-format", log_format)
    for _ in range(120):
        with connect(running) as client:
            receive(client, len(BANNER))
    running.stop()
    connected = sum("Connected with 127" in line for line in running.lines)
    disconnected = sum("Disconnected from 127" in line for line in running.lines)
    # Twice the window's worth, if the test should take longer than a window.
    assert 50 <= connected <= 100
    assert 50 <= disconnected <= 100
    told = [int(number) for number in running.wait_for(r"… (\d+) more like this in ", 2)]
    assert sum(told) == 240 - connected - disconnected


NOISY = """
import sys
from twisted.logger import Logger
from twisted.python import log as legacy
from echod import Handler

log = Logger()

class Noisy(Handler):
    def received(self, message):
        text = message.decode("latin-1")
        print(text)
        print(message.decode("utf-8", "surrogateescape"), file=sys.stderr)
        log.info("{text}", text=text)
        log.info("{message}", message=message)
        log.warn(text)
        legacy.msg(text, system=text)
        if message.startswith(b"!"):
            raise ValueError(text)
        return b"seen"
"""

NASTY = [
    *(bytes([code]) for code in range(256)),
    b"\x1b]0;owned\x07",
    b"\x1b[2J",
    b"\r\n2026-11-25T18:00:00.000+00:00 [echod#info] forged",
    "\u202eevil\u2066\u2028".encode(),
    "\x9b31m\x85".encode(),
    b"%s%n{0}{log_source}{text!r}{}",
    b"{log_logger.observer()}",
    b'"}\n{"level": "info", "message": "forged"}',
]


class Client:
    """Sends messages, and reconnects if one made the handler fail."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def talk(self, message: bytes) -> None:
        if self._socket is None:
            self._socket = connect_to(self._path)
        self._socket.sendall(len(message).to_bytes(4, "big") + message)
        if message.startswith(b"!"):
            assert receive_all(self._socket) == b""
            self.close()
        else:
            assert receive(self._socket, 8) == b"\0\0\0\4seen"

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def hostile(dice: random.Random) -> bytes:
    """Return a message of text that a log must not show unescaped."""
    pieces = [dice.choice(NASTY) for _ in range(dice.randint(1, 8))]
    return dice.choice((b"", b"", b"", b"!")) + b"".join(pieces)[:1000]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_hostile_messages(tmp_path: Path, scale: Scale, log_format: str) -> None:
    """Fault 39: No raw control character that a client sends reaches the log, in either format, if
    a handler prints, logs or raises it.
    """
    (tmp_path / "noisy.py").write_text(NOISY)
    log = tmp_path / "noisy.log"
    dice, checked = random.Random(39), 0
    arguments = ("--handler", "noisy:Noisy", "--framing", "length", "--log-format", log_format)
    with serving(tmp_path, *arguments, twistd=("--logfile", str(log))) as path:
        client = Client(path)
        for _ in scale(ci=300, soak=50_000):
            client.talk(hostile(dice))
            # A new file begins at a million bytes: read the old one before it is renamed.
            for old in tmp_path.glob("noisy.log.*"):
                checked += check(old, log_format)
                old.unlink()
        client.close()
    checked += check(log, log_format)
    assert checked > 300 * 6
    scale.note(f"{checked:,} lines checked")


def check(path: Path, log_format: str) -> int:
    """Check a log file; return how many events it has."""
    text = path.read_bytes().decode("utf-8")
    assert not RAW_CONTROL.search(text)
    lines = text.split("\n")[:-1]
    if log_format == "json":
        for line in lines:
            record = json.loads(line)
            assert not RAW_CONTROL.search("".join(map(str, record.values())))
        return len(lines)
    stamped = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d \[")
    events = [line for line in lines if not line.startswith("\t")]
    assert all(stamped.match(event) for event in events)
    return len(events)


LEVELS = {"debug", "info", "warn", "error", "critical", "failure"}
METHODS = LEVELS | {"emit", "msg", "err"}


def formats_that_are_no_literals(source: str) -> list[int]:
    """Return the lines of calls of a logger whose format is not a literal."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id == "LogLine":
            lines += [] if is_literal(node.args[2]) else [node.lineno]
        if not isinstance(node.func, ast.Attribute) or node.func.attr not in METHODS:
            continue
        logger = ast.unparse(node.func.value)
        if not re.fullmatch(r"(.*\.)?_?(log|logger|_log|Logger\(.*\))", logger):
            continue
        form = node.args[0] if node.args else None
        if node.func.attr == "emit":
            form = node.args[1] if len(node.args) > 1 else None
        elif node.func.attr not in LEVELS:
            lines += [node.lineno] * (node.func.attr in ("msg", "err"))
            continue
        if form is None or not is_literal(form):
            lines.append(node.lineno)
    return lines


def is_literal(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        ("log.info('{x}', x=x)", False),
        ("self._log.emit(level, 'this ' 'too')", False),
        ("registry.info(x)", False),
        ("log.info(x)", True),
        ("log.warn(f'{x}')", True),
        ("self.log.failure('a' + x)", True),
        ("log.error('%s' % x)", True),
        ("Logger().emit(level, x)", True),
        ("log.msg(x)", True),
        ("LogLine(log, 'info', '{x}')", False),
        ("LogLine(log, 'info', x)", True),
    ],
)
def test_the_lint_knows_a_literal(call: str, wrong: bool) -> None:
    assert bool(formats_that_are_no_literals(call)) is wrong


def test_formats_are_literals() -> None:
    """Fault 40: No text from a client is used as a format: every call of a logger in echod's
    sources has a literal format.
    """
    package = Path(echod.__file__).parent
    wrong = {
        str(path.relative_to(package)): lines
        for path in package.rglob("*.py")
        if path.name != "event.py"  # which keeps the literals of others
        and (lines := formats_that_are_no_literals(path.read_text()))
    }
    assert not wrong
