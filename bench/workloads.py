"""The workloads of the servers, each defined once."""

from __future__ import annotations

import enum
from dataclasses import dataclass

# How many connections talk at once.
CONNECTIONS = 50
# How many connections open and close at once.
CONNECTORS = 16
# How many stay silent, unless asked for otherwise: the number that the bar names.
IDLE = 10_000


class Mode(enum.StrEnum):
    """The mode of the load; `load.c` describes it."""

    MESSAGES = "messages"
    LINES = "lines"
    LENGTHS = "lengths"
    GREEDY = "greedy"
    CONNECT = "connect"
    IDLE = "idle"


@dataclass(frozen=True)
class Workload:
    """One kind of load.

    Attributes:
        name: what options, files and tables call it.
        title: what it is, for people.
        mode: what the load does.
        connections: how many connections there are at once.
        size: of a message, in bytes.
        depth: how many messages are sent at once, in one write.
        read_size: the most data that a server may put behind one prefix, in bytes.
        work: how long the handler is to take for a message, in microseconds; the message is a line
            then, and only echod's event loop is asked, as it has handlers.
    """

    name: str
    title: str
    mode: Mode
    connections: int = CONNECTIONS
    size: int = 1
    depth: int = 1
    read_size: int = 1024
    work: int = 0


MESSAGES = Workload("messages", "1000-byte messages, one at a time", Mode.MESSAGES, size=1000)
PIPELINED = Workload(
    "pipelined", "100-byte messages, 16 in one write", Mode.MESSAGES, size=100, depth=16
)
LARGE = Workload(
    "large", "64 KiB messages, one at a time", Mode.MESSAGES, size=65536, read_size=65536
)
LINE = Workload("line", "lines of 1000 bytes, one at a time", Mode.LINES, size=1000)
LINES_AT_ONCE = Workload(
    "line-pipelined", "lines of 100 bytes, 16 in one write", Mode.LINES, size=100, depth=16
)
LENGTH = Workload(
    "length", "1000 bytes behind their length, one at a time", Mode.LENGTHS, size=1000
)
LENGTHS_AT_ONCE = Workload(
    "length-pipelined",
    "100 bytes behind their length, 16 in one write",
    Mode.LENGTHS,
    size=100,
    depth=16,
)
CONNECT = Workload("connect", "connect, read the banner, close", Mode.CONNECT, CONNECTORS)
SILENT = Workload("idle", "connections that stay silent", Mode.IDLE, IDLE)

# How long handlers take, in microseconds, that clients meet a greedy one at.
WORK = (10, 100, 1000)


def _lines(mode: Mode, work: int) -> Workload:
    beside = " beside a greedy client" if mode is Mode.GREEDY else ""
    title = f"lines{beside}, {work} µs each in the handler"
    return Workload(f"{mode}-{work}", title, mode, size=100, work=work)


# The same load, without and with another client that sends empty lines as fast as it can.
LINES = {work: _lines(Mode.LINES, work) for work in WORK}
GREEDY = {work: _lines(Mode.GREEDY, work) for work in WORK}

WORKLOADS = {
    each.name: each
    for each in (
        *(MESSAGES, PIPELINED, LARGE, LINE, LINES_AT_ONCE, LENGTH, LENGTHS_AT_ONCE),
        *(CONNECT, SILENT),
        *(pair[work] for work in WORK for pair in (LINES, GREEDY)),
    )
}
