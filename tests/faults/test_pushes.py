"""A real daemon that sends for long: a chat of many clients, and an export to a slow one."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.scale import Scale, number
from tests.support.certificates import self_signed_pem
from tests.support.clients import connect, connect_narrow, receive
from tests.support.daemon import CONCURRENT, REACTOR, Daemon, Start
from tests.support.tls_peer import client_context
from tests.support.waiting import PATIENCE

SERVICES = Path(__file__).parents[2] / "examples" / "services"
MIB = 1 << 20
LINE = b"x" * 9_999 + b"\n"
GREETING = b"Hello\n"
MANY = ("--max-connections-per-address", "0", "--max-connections", "1100", "--max-threads", "1100")


def start(daemon: Start, directory: Path, name: str, model: str, *flags: str) -> Daemon:
    """Start an example that takes lines."""
    (directory / "server.pem").write_bytes(self_signed_pem())
    (directory / f"{name.partition(':')[0]}.py").write_text(
        (SERVICES / f"{name.partition(':')[0]}.py").read_text()
    )
    chosen = ("--handler", name, "--framing", "line", "--concurrency", model)
    if "--listen" not in flags:
        flags = (*flags, "--listen", "tcp:0")
    return daemon(*chosen, *flags)


class Room:
    """The members of a chat that read; the first one speaks."""

    def __init__(self, members: list[socket.socket]) -> None:
        self.speaker, *self.members = members
        self._poll = select.poll()
        self._heard: dict[int, int] = {}
        self._by_number = {member.fileno(): member for member in self.members}
        for member in self.members:
            member.setblocking(False)
            self._heard[member.fileno()] = 0
            self._poll.register(member, select.POLLIN)

    def say(self, line: bytes) -> None:
        """Say `line`; wait until all others have heard exactly that."""
        self.speaker.sendall(line)
        missing = set(self._heard)
        deadline = time.monotonic() + 4 * PATIENCE
        while missing and time.monotonic() < deadline:
            for descriptor, _ in self._poll.poll(1000):
                if self._hear(descriptor, line):
                    missing.discard(descriptor)
        assert not missing, f"{len(missing)} members did not hear it"

    def _hear(self, descriptor: int, line: bytes) -> bool:
        """Read what has come for a member; return whether that completes the line."""
        try:
            data = self._by_number[descriptor].recv(1 << 16)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        assert data, "a member was disconnected"
        heard = self._heard[descriptor]
        assert data == line[heard : heard + len(data)]
        self._heard[descriptor] = (heard + len(data)) % len(line)
        return heard + len(data) == len(line)


@pytest.mark.long
@pytest.mark.parametrize("way", ["tcp", "tls"])
@pytest.mark.parametrize("model", CONCURRENT)
def test_a_member_that_never_reads_disturbs_no_other_of_a_large_chat(
    daemon: Start, tmp_path: Path, scale: Scale, model: str, way: str
) -> None:
    """Fault 146: Each other client gets each line, whole and in order, and the one that never
    reads costs at most `--max-unsent` more and is disconnected after `--write-timeout`.
    """
    count = number(ci=12, soak=1000)
    listen = "tls:0:certificate=server.pem" if way == "tls" else "tcp:0"
    greeting = ("--banner", GREETING.decode().rstrip())
    limits = ("--max-unsent", str(MIB), "--write-timeout", "3")
    running = start(
        daemon, tmp_path, "chat:Chat", model, *limits, *greeting, *MANY, "--listen", listen
    )
    with contextlib.ExitStack() as stack:

        def join(how: Callable[[Daemon], socket.socket] = connect) -> socket.socket:
            member = stack.enter_context(how(running))
            if way == "tls":
                member = stack.enter_context(client_context().wrap_socket(member))
            assert receive(member, len(GREETING)) == GREETING  # it is in the room
            return member

        room = Room([join() for _ in range(count - 1)])
        for _ in range(30):  # the buffers of the readers are there first
            room.say(LINE)
        before = running.resident
        deaf = join(connect_narrow)
        most, said = 0, 0
        deadline = time.monotonic() + 10 * PATIENCE
        while "write-timeout" not in running.log:
            assert time.monotonic() < deadline, "the one that never reads was not disconnected"
            room.say(LINE)
            said += 1
            if said * len(LINE) > 8 * MIB:  # nothing waits to be sent but for the deaf one
                time.sleep(0.05)
            most = max(most, running.resident - before)
        for _ in range(10):
            room.say(LINE)
        scale.note(f"{model}, {way}, {count} clients: {said} lines, {most >> 10} KiB more")
        deaf.close()
    assert running.log.count("write-timeout") == 1
    # Its unsent bytes; their parts and the allocator add less than that again. Twisted's transport
    # copies all that waits whenever it takes more, so there they are in memory twice.
    assert most <= (3 if "--reactor=epoll" in REACTOR else 2) * MIB


@pytest.mark.long
def test_an_export_to_a_slow_client_costs_at_most_a_mebibyte_in_each_model(
    daemon: Start, tmp_path: Path, scale: Scale
) -> None:
    """Fault 147: 200 MB at 1 MB/s, in each model, take at most 1 MiB more memory."""
    size, pace = number(ci=5, soak=200) * 1_000_000, number(ci=5, soak=1) * 1_000_000
    models = [*CONCURRENT, "serial"]

    def export(model: str) -> int:
        running = start(daemon, tmp_path, "export:export", model)
        for turn in range(2):  # the first one warms up what each export needs
            with connect(running) as client:
                before, most, came = running.resident, 0, 0
                client.sendall(b"?\n")
                began = time.monotonic()
                while came < (size if turn else 2_000_000):
                    piece = client.recv(50_000)
                    assert piece, running.log
                    came += len(piece)
                    most = max(most, running.resident - before)
                    time.sleep(max(0.0, began + came / pace - time.monotonic()) if turn else 0)
            running.wait_for("Disconnected from", turn + 1)
        scale.note(f"{model}: {most >> 10} KiB more for {came / 1e6:.0f} MB")
        return most

    with ThreadPoolExecutor(len(models)) as pool:
        grown = dict(zip(models, pool.map(export, models), strict=True))
    assert all(most <= MIB for most in grown.values()), grown
