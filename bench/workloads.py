"""What each server is asked to do: every workload, defined once."""

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
    """What the load does; `load.c` says more."""

    MESSAGES = "messages"
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
    """

    name: str
    title: str
    mode: Mode
    connections: int = CONNECTIONS
    size: int = 1
    depth: int = 1
    read_size: int = 1024


MESSAGES = Workload("messages", "1000-byte messages, one at a time", Mode.MESSAGES, size=1000)
PIPELINED = Workload(
    "pipelined", "100-byte messages, 16 in one write", Mode.MESSAGES, size=100, depth=16
)
LARGE = Workload(
    "large", "64 KiB messages, one at a time", Mode.MESSAGES, size=65536, read_size=65536
)
CONNECT = Workload("connect", "connect, read the banner, close", Mode.CONNECT, CONNECTORS)
SILENT = Workload("idle", "connections that stay silent", Mode.IDLE, IDLE)

WORKLOADS = {each.name: each for each in (MESSAGES, PIPELINED, LARGE, CONNECT, SILENT)}
