"""Notify the service manager of the daemon's state, with systemd's protocol, sd_notify(3).

Guarantees:

* Nothing here raises, and nothing blocks: if the manager does not accept a message, it is sent
  again a little later, in order.
* A timer of the reactor notifies the watchdog. So the notifications stop when the reactor is
  blocked, as they should.
* If no manager has asked for messages, nothing is sent and no timer runs.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable, MutableMapping

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from echod.text import escape

log = Logger("echod")

# How often the status text is updated, in seconds; more often during a drain, when each report
# also asks for more time.
STATUS_INTERVAL = 10.0
DRAIN_INTERVAL = 1.0
DRAIN_EXTENSION_SECONDS = 10.0

# When to send again a message that the manager had no room for, in seconds.
RETRY_INTERVAL = 0.1


class Notifier:
    """Sends the daemon's state to the service manager, if there is one."""

    def __init__(
        self,
        reactor: IReactorTime,
        describe: Callable[[], str],
        *,
        address: str = "",
        watchdog: float = 0.0,
    ) -> None:
        """Connect, so that a later chroot does not matter.

        Args:
            reactor: for timers.
            describe: returns the status text, one line.
            address: the manager's socket, a path or @name; "" where there is no manager.
            watchdog: how often the manager expects a notification, in seconds; 0: never.
        """
        self._reactor = reactor
        self._describe = describe
        self._watchdog = watchdog
        self._said = ""
        self._draining = False
        self._waiting: deque[bytes] = deque()
        self._retry: IDelayedCall | None = None
        self._socket = _connected(address) if address else None
        self._reports = LoopingCall(self._report)
        self._reports.clock = reactor

    @classmethod
    def from_environment(
        cls,
        reactor: IReactorTime,
        describe: Callable[[], str],
        environment: MutableMapping[str, str],
    ) -> Notifier:
        """Return the notifier that the service manager asks for; remove its request from
        `environment`.

        Processes that a handler starts must not notify in the daemon's name.
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        interval = environment.pop("WATCHDOG_USEC", "")
        meant = environment.pop("WATCHDOG_PID", str(os.getpid()))
        watched = interval.isdigit() and meant == str(os.getpid())
        return cls(
            reactor,
            describe,
            address=address,
            watchdog=int(interval) / 1e6 if watched else 0.0,
        )

    def starting(self, text: str, seconds: float) -> None:
        """Notify that the start goes on, and how long it may take.

        Args:
            text: the status, one line.
            seconds: the greatest time from now on; 0: any, which the manager cannot be told.
        """
        extension = [f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}"] if seconds else []
        self._send(f"STATUS={text}", *extension)

    def ready(self) -> None:
        """Notify that the daemon serves: it has started, or has reloaded."""
        self._said = self._describe()
        self._send("READY=1", f"MAINPID={os.getpid()}", f"STATUS={self._said}")
        self._report_every(min(STATUS_INTERVAL, self._watchdog / 2 or STATUS_INTERVAL))

    def reloading(self) -> None:
        """Notify that the daemon reloads its settings; `ready` follows."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={microseconds}", "STATUS=Reloading")

    def stopping(self) -> None:
        """Notify that the daemon drains."""
        self._draining = True
        self._said = self._describe()
        self._send("STOPPING=1", f"STATUS={self._said}")
        self._report_every(min(DRAIN_INTERVAL, self._watchdog / 2 or DRAIN_INTERVAL))

    def close(self) -> None:
        """Stop notifying, and close the socket."""
        if self._reports.running:
            self._reports.stop()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _report_every(self, interval: float) -> None:
        if self._socket is not None:
            if self._reports.running:
                self._reports.stop()
            self._reports.start(interval, now=False)

    def _report(self) -> None:
        if self._waiting:
            return  # the manager has not read the earlier messages yet
        news = []
        if self._watchdog:
            news.append("WATCHDOG=1")
        if self._draining:
            news.append(f"EXTEND_TIMEOUT_USEC={DRAIN_EXTENSION_SECONDS * 1e6:.0f}")
        status = self._describe()
        if status != self._said:
            self._said = status
            news.append(f"STATUS={status}")
        if news:
            self._send(*news)

    def _send(self, *assignments: str) -> None:
        if self._socket is not None:
            self._waiting.append("\n".join(assignments).encode())
            if self._retry is None:
                self._flush()

    def _flush(self) -> None:
        self._retry = None
        while self._waiting and self._socket is not None:
            try:
                self._socket.send(self._waiting[0])
            except BlockingIOError:
                self._retry = self._reactor.callLater(RETRY_INTERVAL, self._flush)
                return
            except OSError as error:
                log.warn("Cannot notify the service manager: {why}", why=escape(str(error)))
            self._waiting.popleft()


def _connected(address: str) -> socket.socket | None:
    """Return a socket connected to the manager; log the error and return None if that fails."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.setblocking(False)
    with contextlib.ExitStack() as undo:
        undo.callback(made.close)
        try:
            # "@" stands for the zero byte that begins an abstract name.
            made.connect("\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            log.warn(
                "Cannot notify the service manager: NOTIFY_SOCKET={address}: {why}",
                address=escape(address),
                why=escape(str(error)),
            )
            return None
        undo.pop_all()
    return made
