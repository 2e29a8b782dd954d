"""A client sends far more than can be answered in a moment: all others still get their turn."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.clients import connect, receive
from tests.support.daemon import TERMINATED, Daemon, Start
from tests.support.service_manager import managing
from tests.support.tls_peer import client_context

# Each message takes a millisecond until there is a file named `hurry`. The reply is the number of
# messages before it, from all clients, as eight digits.
HANDLER = """
import itertools
import os
import time

numbers = itertools.count()


def work(message: bytes) -> bytes:
    until = time.perf_counter() + 0.001
    while time.perf_counter() < until and not os.path.exists("hurry"):
        pass
    return b"%08d" % next(numbers)
"""

# How many messages the greedy client sends; they take ten seconds.
COUNT = 10_000

# The daemon's flags, one message, and the text around the digits of a reply.
FRAMINGS = {
    "chunk": (("--max-message", "1"), b"x", (b"", b"")),
    "line": (("--framing", "line"), b"\n", (b"", b"\n")),
    "length": (("--framing", "length"), b"\0\0\0\0", (b"\0\0\0\x08", b"")),
}


class Client:
    """A client of this daemon, without or with TLS."""

    def __init__(self, running: Daemon, framing: str, *, tls: bool) -> None:
        port = int(running.wait_for(r"(?:EchoFactory|TLSFactory).* starting on (\d+)")[0])
        self.socket: socket.socket = connect(port)
        self._tls = tls
        if tls:
            self.socket = client_context().wrap_socket(self.socket)
        _, self.message, self._around = FRAMINGS[framing]

    def send(self, count: int) -> None:
        if not self._tls:
            self.socket.sendall(self.message * count)
        for _ in range(count if self._tls else 0):
            self.socket.sendall(self.message)  # a record of its own

    def reply(self) -> int:
        """Return the number in the next reply."""
        before, after = self._around
        reply = receive(self.socket, len(before) + 8 + len(after))
        assert reply.startswith(before)
        assert reply.endswith(after)
        return int(reply[len(before) :][:8])


class Scene:
    """A daemon that answers a client that has sent `COUNT` messages, and another client."""

    def __init__(self, running: Daemon, hurry: Path, framing: str, *, tls: bool) -> None:
        self.running = running
        self._hurry = hurry
        self.greedy, self.polite = (Client(running, framing, tls=tls) for _ in range(2))
        self.polite.send(1)
        assert self.polite.reply() == 0
        self._sending = threading.Thread(target=self.greedy.send, args=(COUNT,))
        self._sending.start()
        if (
            tls
        ):  # Python's `ssl` lets no two threads use a connection at a time, but does not say so
            self._sending.join()
        self._replies = [self.greedy.reply()]

    def is_going_on(self) -> bool:
        """Return whether the other client is answered before the greedy one's last message."""
        self.polite.send(1)
        return self.polite.reply() < COUNT

    def finish(self) -> list[int]:
        """Let the handler hurry; return the numbers in all replies to the greedy client."""
        self._hurry.touch()
        while len(self._replies) < COUNT:
            self._replies.append(self.greedy.reply())
        return self._replies

    def close(self) -> None:
        self._hurry.touch()
        self._sending.join()
        self.greedy.socket.close()
        self.polite.socket.close()


@pytest.fixture
def scene(daemon: Start, tmp_path: Path, certificate: Path) -> Iterator[Callable[..., Scene]]:
    """Start a daemon, and let a client be greedy."""
    (tmp_path / "served.py").write_text(HANDLER)
    with contextlib.ExitStack() as stack:

        def make(framing: str = "line", *more: str, tls: bool = False, **options: object) -> Scene:
            listen = f"tls:0:certificate={certificate}" if tls else "tcp:0"
            flags = ("--listen", f"{listen}:interface=127.0.0.1", *FRAMINGS[framing][0], *more)
            running = daemon("--handler", "served:work", "--no-banner", *flags, **options)
            made = Scene(running, tmp_path / "hurry", framing, tls=tls)
            stack.callback(made.close)
            return made

        yield make


@pytest.mark.parametrize(
    ("framing", "tls"), [*((name, False) for name in FRAMINGS), ("line", True), ("chunk", True)]
)
def test_others_are_answered_while_a_client_has_much_to_be_answered(
    scene: Callable[..., Scene], framing: str, tls: bool
) -> None:
    """Fault 69: If a client has sent 10,000 messages, others are answered before its last one, in
    every framing, and over TLS with a record for each; none of its own is lost.
    """
    here = scene(framing, tls=tls)
    assert here.is_going_on()
    assert here.is_going_on()
    replies = here.finish()
    assert len(replies) == COUNT
    assert replies == sorted(set(replies))


def test_health_and_the_watchdog_have_their_turn_beside_a_greedy_client(
    scene: Callable[..., Scene], tmp_path: Path
) -> None:
    """Fault 69: While such a client is being answered, `/healthz` answers, and the daemon notifies
    the service manager's watchdog.
    """
    with managing(str(tmp_path / "notify")) as manager:
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "NOTIFY_SOCKET": manager.address,
            "WATCHDOG_USEC": "200000",
        }
        here = scene("line", "--status", "tcp:0:interface=127.0.0.1", env=environment)
        manager.hear()
        fed = sum("WATCHDOG=1" in message for message in manager.heard)
        port = int(here.running.wait_for(r"StatusSite starting on (\d+)")[0])
        asking = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        with contextlib.closing(asking):
            asking.request("GET", "/healthz")
            assert asking.getresponse().status == 200
        manager.wait_for("WATCHDOG=1", fed + 2)
        assert here.is_going_on()


def test_sigterm_is_seen_beside_a_greedy_client_that_is_answered_to_the_end(
    scene: Callable[..., Scene],
) -> None:
    """Fault 69: While such a client is being answered, SIGTERM begins the drain; all that was
    received from it is answered, in order, before its connection and the daemon end.
    """
    here = scene("line")
    here.running.signal(signal.SIGTERM)
    # The other client's connection ends before the greedy one's last reply.
    assert here.polite.socket.recv(1) == b""
    come = here.greedy.socket.recv(1 << 20, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    assert len(come) < COUNT // 2
    replies = here.finish()
    assert len(replies) == COUNT
    assert replies == sorted(set(replies))
    here.close()
    here.running.wait()
    assert here.running.process.returncode in TERMINATED
