"""The pipes between the supervisor and a worker: orders, news, and the worker's log.

Messages are objects of JSON, one a line, on a pipe for each direction. Lines of the log go by a
third pipe, each with its length before it: the supervisor writes whole lines only, and a worker
that is killed leaves no half of one. Two more pipes are the standard output and error of the
worker, and of the programs that it starts.

Guarantees, in the worker:

* A thread reads the messages, so a blocked event loop keeps no order of the supervisor from being
  noticed; another one writes, so the event loop never waits for the supervisor.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import signal
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from echod.log.sinks import DescriptorSink, Line
from echod.threads import start_thread

# The descriptors of a worker.
STDOUT, STDERR = 1, 2
LOG, ORDERS, NEWS, LIMITS = 3, 4, 5, 6
FIRST_SOCKET = 7

# The supervisor sends it to a worker that stands still: the kernel's word for "used up its time".
SHOW_STACKS = signal.SIGXCPU

# How long a signal to the whole process group may take to arrive everywhere, in seconds.
MOMENT = 0.1

# The part of a worker that needs the two threads.
_PART = "the orders of the supervisor"

Message = dict[str, Any]


def encode(message: Mapping[str, object]) -> bytes:
    """Return the bytes of a message."""
    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"


class Messages:
    """Cuts bytes into messages."""

    def __init__(self) -> None:
        # The pieces of a message that is not complete: long ones come in many.
        self._pieces: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that `data` completes."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            whole = b"".join([*self._pieces, line])
            self._pieces.clear()
            yield json.loads(whole)
        if rest:
            self._pieces.append(rest)


# Before each line of the log: its length in bytes, and the rank of its level.
_HEAD = struct.Struct(">IB")

_LEVELS = ("debug", "info", "warn", "error", "critical")


class LogLines:
    """Cuts the bytes of the log's pipe into lines."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Line]:
        """Yield the lines that `data` completes."""
        self._data += data
        at = 0
        while len(self._data) - at >= _HEAD.size:
            size, rank = _HEAD.unpack_from(self._data, at)
            end = at + _HEAD.size + size
            if len(self._data) < end:
                break
            text = self._data[at + _HEAD.size : end].decode("utf-8", "replace")
            at = end
            yield Line(text, _LEVELS[min(rank, len(_LEVELS) - 1)])
        del self._data[:at]


class LinkSink(DescriptorSink):
    """The log of a worker: its supervisor writes it."""

    def __init__(self, descriptor: int = LOG, *, stamps: bool = False) -> None:
        """Set up.

        Args:
            descriptor: of the pipe.
            stamps: whether the supervisor's log adds the time.
        """
        super().__init__(descriptor)
        self.stamps = stamps

    def write(self, lines: Sequence[Line]) -> int:
        frames = [_framed(line) for line in lines]
        written = self._write_all(b"".join(frames))  # less if the supervisor has gone
        return sum(end <= written for end in itertools.accumulate(map(len, frames)))

    def in_child(self) -> DescriptorSink:
        # Two processes could write a part of a long line each: this one has its standard error.
        return DescriptorSink(STDERR).in_child()


def _framed(line: Line) -> bytes:
    text = line.text.encode("utf-8", "backslashreplace")
    return _HEAD.pack(len(text), _LEVELS.index(line.level)) + text


class Link:
    """The worker's end."""

    def __init__(self, orders: int = ORDERS, news: int = NEWS) -> None:
        """Set up; the caller may read the first order with `first`.

        Args:
            orders: the descriptor of what the supervisor says.
            news: of what it is told.
        """
        self._orders = os.fdopen(orders, "rb")
        self._news = news
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None

    def first(self) -> Message:
        """Wait for the first order, and return it."""
        line = self._orders.readline()
        if not line:
            raise SystemExit(1)  # the supervisor has gone
        order: Message = json.loads(line)
        return order

    def start(self, obey: Callable[[Message], object], gone: Callable[[], object]) -> None:
        """Start both threads.

        Args:
            obey: is called with each order, in a thread.
            gone: is called once the supervisor has gone, in that thread.

        Raises:
            NoThreadError: the system allows no further thread.
        """

        def read() -> None:
            with contextlib.suppress(OSError):
                for line in self._orders:
                    obey(json.loads(line))
            gone()

        self.start_writing()
        start_thread(read, "echod-orders", _PART)

    def start_writing(self) -> None:
        """Start the thread that writes, unless it runs: from then on any thread may `send`.

        Raises:
            NoThreadError: the system allows no further thread.
        """
        if self._writer is None:
            self._writer = start_thread(self._write, "echod-news", _PART)

    def send(self, **message: object) -> None:
        """Tell the supervisor, in any thread once one writes; nothing waits for it."""
        self._waiting.put(encode(message))
        if self._writer is None:
            self._write_waiting()

    @property
    def waiting(self) -> int:
        """How many messages wait until the supervisor reads."""
        return self._waiting.qsize()

    def finish(self, seconds: float) -> None:
        """Wait, for so long, until all is written."""
        if self._writer is not None:
            self._waiting.put(None)
            self._writer.join(seconds)

    def _write(self) -> None:
        while (data := self._waiting.get()) is not None:
            self._write_one(data)

    def _write_waiting(self) -> None:
        while not self._waiting.empty():
            if (data := self._waiting.get()) is not None:
                self._write_one(data)

    def _write_one(self, data: bytes) -> None:
        view = memoryview(data)
        with contextlib.suppress(OSError):  # the supervisor has gone
            while view:
                view = view[os.write(self._news, view) :]
