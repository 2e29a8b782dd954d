"""The acts of both sides of a conversation, as tshark sees them in packets, or strace in calls."""

from __future__ import annotations

import contextlib
import re
import select
import signal
import socket
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.support.daemon import Daemon
from tests.support.needs import missing, tool
from tests.support.waiting import PATIENCE, block_until

SERVER, CLIENT = True, False

# Clients that bind to different addresses may have the same port.
Address = tuple[str, int]

# More of a packet is not kept, but its length is.
_KEPT = 1024
# AES-GCM in TLS 1.2 adds a nonce and a tag to each record.
_RECORD_MORE = 24
_ALERT, _HANDSHAKE, _DATA = "21", "22", "23"
_FIELDS = (
    *("frame.time_epoch", "ip.src", "tcp.srcport", "ip.dst", "tcp.dstport"),
    *("tcp.flags.syn", "tcp.flags.fin"),
    *("tcp.flags.reset", "tcp.seq_raw", "tcp.len", "tcp.window_size", "tcp.payload"),
    *("tls.record.content_type", "tls.record.length", "tls.alert_message.desc"),
)
_CALL = re.compile(
    r"^(\d+\.\d+) (\w+)\(\d+<UNIX-STREAM:\[\d+->(\d+)[^\]]*\]>(?:, (.*))?\) += (-?\d+)",
    re.MULTILINE,
)
_CALLS = "read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg,shutdown,close"


class Event(NamedTuple):
    """One act of a side.

    Attributes:
        time: when, in seconds.
        by: SERVER or CLIENT.
        what: "syn", "data" (bytes in clear), "handshake" and "alert" (of TLS), "fin", "rst", or
            "window": it takes so much more.
        size: how many bytes.
        data: those bytes, if they can be seen.
        detail: the number of an alert; "" if it is encrypted.
    """

    time: float
    by: bool
    what: str
    size: int = 0
    data: bytes = b""
    detail: str = ""


class Capture:
    """The packets of some ports, kept by dumpcap, and read by tshark once."""

    def __init__(self, file: Path, tls: Iterable[int]) -> None:
        self._file = file
        self._tls = tls

    def read(self) -> dict[tuple[int, Address], list[Event]]:
        """Return the events of each connection, by its server's port and its client's address."""
        fields = [word for field in _FIELDS for word in ("-e", field)]
        ports = [word for port in self._tls for word in ("-d", f"tcp.port=={port},tls")]
        options = ("-n", "-T", "fields", "-E", "separator=;", *fields, *ports)
        done = subprocess.run(
            [tool("tshark"), "-r", self._file, *options],
            capture_output=True,
            text=True,
            timeout=10 * PATIENCE,
            check=True,
        )
        texts = [text.split(";") for text in done.stdout.splitlines()]
        rows = [dict(zip(_FIELDS, text, strict=True)) for text in texts]
        servers: dict[frozenset[Address], Address] = {}
        next_byte: dict[tuple[Address, Address], int] = {}
        found = defaultdict[tuple[int, Address], list[Event]](list)
        for row in rows:
            source = row["ip.src"], int(row["tcp.srcport"])
            target = row["ip.dst"], int(row["tcp.dstport"])
            # The client's packet is the first.
            server = servers.setdefault(frozenset([source, target]), target)
            begin, size = int(row["tcp.seq_raw"]), int(row["tcp.len"])
            if size and begin < next_byte.get((source, target), 0):
                continue  # the kernel has sent it again
            if size:
                next_byte[source, target] = begin + size
            by = SERVER if source == server else CLIENT
            found[server[1], source if by is CLIENT else target] += _events(row, by, size)
        return found


def _events(row: dict[str, str], by: bool, size: int) -> Iterator[Event]:
    """Yield the events of a packet."""
    time = float(row["frame.time_epoch"])
    reset = row["tcp.flags.reset"] == "1"
    if row["tcp.flags.syn"] == "1":
        yield Event(time, by, "syn")
    if row["tls.record.content_type"]:
        yield from _records(row, time, by, size)
    elif size:
        yield Event(time, by, "data", size, bytes.fromhex(row["tcp.payload"]))
    if reset:
        yield Event(time, by, "rst")
    elif row["tcp.flags.syn"] != "1":
        yield Event(time, by, "window", int(row["tcp.window_size"]))
    if row["tcp.flags.fin"] == "1":
        yield Event(time, by, "fin")


def _records(row: dict[str, str], time: float, by: bool, size: int) -> Iterator[Event]:
    """Yield the events of the records of TLS that end in a packet."""
    lengths = row["tls.record.length"].split(",")
    for kind, length in zip(row["tls.record.content_type"].split(","), lengths, strict=False):
        if kind == _DATA:
            yield Event(time, by, "data", int(length) - _RECORD_MORE)
        elif kind == _ALERT:
            yield Event(time, by, "alert", detail=row["tls.alert_message.desc"])
        elif kind == _HANDSHAKE:
            yield Event(time, by, "handshake", size)


@contextlib.contextmanager
def capturing(file: Path, ports: Sequence[int], tls: Sequence[int]) -> Iterator[Capture]:
    """Keep the packets of these ports, within the block.

    Args:
        file: where to.
        ports: all ports.
        tls: those that speak TLS.
    """
    with socket.create_server(("127.0.0.1", 0)) as marked:
        mark = marked.getsockname()[1]
        wanted = " or ".join(f"tcp port {port}" for port in (*ports, mark))
        with subprocess.Popen(
            [
                *(tool("dumpcap"), "-q", "-P", "-i", "lo", "-f", wanted, "-w", file),
                *("-B", "32", "-s", f"{_KEPT}"),
            ],
            stderr=subprocess.PIPE,
            text=True,
        ) as dumpcap:
            assert dumpcap.stderr is not None
            try:
                said = dumpcap.stderr.readline()
                if "permission" in said:
                    missing("dumpcap may not see packets here: run the tests as root")
                for mark_bytes in (b"the first packet", b"the last packet"):
                    block_until(partial(_is_kept, marked, mark_bytes, file))
                    if mark_bytes == b"the first packet":
                        yield Capture(file, tls)
            finally:
                dumpcap.send_signal(signal.SIGINT)
                said = dumpcap.stderr.read()
    dropped = re.search(r"received/dropped on interface .*: \d+/(\d+)", said)
    assert dropped is not None, said
    assert dropped[1] == "0", said


def _is_kept(marked: socket.socket, mark: bytes, file: Path) -> bool:
    """Send a mark to a port that is watched; return whether one is in the file by now."""
    with socket.create_connection(marked.getsockname(), PATIENCE) as client:
        client.sendall(mark)
        marked.accept()[0].close()
    return file.exists() and mark in file.read_bytes()


class Calls:
    """The calls of daemons on UNIX sockets, which strace has written to a file for each thread."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> dict[int, list[Event]]:
        """Return the events of each connection, by the inode of its client's socket."""
        found = defaultdict[int, list[Event]](list)
        for file in self._file.parent.glob(f"{self._file.name}.*"):
            for time, name, inode, rest, result in _CALL.findall(file.read_text()):
                found[int(inode)] += _called(float(time), name, rest, int(result))
        return {inode: sorted(events) for inode, events in found.items()}


def _called(time: float, name: str, rest: str, result: int) -> Iterator[Event]:
    """Yield the event that a call is."""
    texts = "".join(re.findall(r'"((?:\\x[0-9a-f]{2})*)"', rest))
    data = bytes.fromhex(texts.replace("\\x", ""))
    if name in ("close", "shutdown"):
        if name == "close" or "SHUT_RD," not in f"{rest},":
            yield Event(time, SERVER, "fin", detail=name)
    elif name.startswith(("read", "recv")):
        if result > 0:
            yield Event(time, CLIENT, "data", result, data[:result])
        elif result == 0:
            yield Event(time, CLIENT, "fin")
    elif result > 0:
        yield Event(time, SERVER, "data", result, data[:result])


@contextlib.contextmanager
def tracing(file: Path, daemons: Sequence[Daemon]) -> Iterator[Calls]:
    """Write the calls of daemons to a file, within the block."""
    which = [word for running in daemons for word in ("-p", f"{running.process.pid}")]
    with subprocess.Popen(
        [
            *(tool("strace"), "-ff", "-ttt", "-yy", "-xx", "-s", f"{_KEPT}", "-o", file),
            *("-e", f"trace={_CALLS}", *which),
        ],
        stderr=subprocess.PIPE,
        bufsize=0,  # `select` knows nothing of lines that a buffer has
    ) as strace:
        assert strace.stderr is not None
        try:
            for _ in daemons:
                assert select.select([strace.stderr], [], [], PATIENCE)[0]
                said = strace.stderr.readline().decode()
                if "Operation not permitted" in said:
                    missing(
                        "strace may not trace a daemon here: permit ptrace (as root; in a "
                        "container, CAP_SYS_PTRACE)"
                    )
                assert "attached" in said, said
            yield Calls(file)
        finally:
            strace.send_signal(signal.SIGINT)
            strace.stderr.read()
