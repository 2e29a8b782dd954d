"""Programs that serve clients: both streams, both ends, and nothing left of them."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import endpoints

from echod import EchoFactory
from echod.concurrency.processes import Processes
from echod.handlers.command import Command
from echod.handlers.contract import HandlerError
from echod.limits import Limits
from tests.support.log import Log
from tests.support.programs import children
from tests.support.reactor import reactor
from tests.support.serving import WAYS, Server, Talker, eventually, in_thread, run, server_by
from tests.support.waiting import block_until

BIG = 300_000  # more than the pipes and a read hold


def shell(script: str) -> str:
    """Return the command that runs a script."""
    return f"sh -c {shlex.quote(script)}"


def python(script: str) -> str:
    return shlex.join([sys.executable, "-c", script])


def no_child() -> bool:
    """Return whether this process has no child, not even one that is to be reaped."""
    return not children()


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, reaped or not."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


@asynccontextmanager
async def serving(
    command: str, certificate: Path, way: str = "clear", *, most: int = 4, **limits: float
) -> AsyncIterator[Server]:
    """Serve with a program; at the end, none of it is left."""
    factory = EchoFactory(
        reactor,
        handler=Command(command=command),
        model=Processes(reactor, most),
        limits=Limits(**limits),  # type: ignore[arg-type]
    )
    server = server_by(way, factory, certificate)
    try:
        yield server
    finally:
        await server.stop()
        await eventually(no_child)


def ends(log: Log) -> list[str]:
    return [one for one in log.text.splitlines() if one.startswith("Disconnected")]


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_client_talks_to_the_program_and_each_end_of_stream_is_passed_on(
    way: str, certificate: Path
) -> None:
    async with serving("cat", certificate, way) as server:
        client = await server.connect()
        client.send(b"happy")
        await client.receive(b"happy")
        data = os.urandom(BIG)
        client.send(data)
        if way == "Twisted's TLS":  # which has no half-close
            await client.receive(data)
            return
        client.finish()
        assert await client.receive_all() == data
        assert client.clean
        await eventually(lambda: not server.factory.connections)


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_what_a_program_writes_before_it_exits_arrives_whole(
    way: str, certificate: Path, log: Log
) -> None:
    async with serving(f"head -c {BIG} /dev/zero", certificate, way) as server:
        client = await server.connect()
        if way == "Twisted's TLS":  # which has no half-close: it ends when the client does
            await client.until(lambda: len(client.data) == BIG)
            client.transport.loseConnection()
        assert await client.receive_all() == bytes(BIG)
        assert client.clean
        await eventually(lambda: not server.factory.connections)
    if way != "Twisted's TLS":  # there the client may end before the program has
        assert "handler closed" in ends(log)[0]


@pytest.mark.parametrize("way", ["clear", "TLS"])
@pytest_twisted.ensureDeferred
async def test_a_program_that_has_said_all_may_read_on(
    way: str, certificate: Path, tmp_path: Path
) -> None:
    took = tmp_path / "took"
    script = f"echo said; exec 1>&-; cat > {took}; mv {took} {took}.all"
    async with serving(shell(script), certificate, way) as server:
        client = await server.connect()
        client.readConnectionLost = lambda: None  # type: ignore[method-assign] # write on
        await client.receive(b"said\n")
        data = os.urandom(BIG)
        client.send(data)
        client.finish()
        await eventually(lambda: not server.factory.connections)
        assert Path(f"{took}.all").read_bytes() == data


@pytest_twisted.ensureDeferred
async def test_a_program_that_reads_no_more_may_write_on(certificate: Path) -> None:
    script = f"exec 0<&-; sleep 0.2; head -c {BIG} /dev/zero"
    async with serving(shell(script), certificate) as server:
        client = await server.connect()
        client.send(os.urandom(BIG))  # which the program does not read
        assert await client.receive_all() == bytes(BIG)


@pytest_twisted.ensureDeferred
async def test_a_program_knows_its_client_and_nothing_else_of_the_daemon(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the daemon")
    monkeypatch.setenv("LANG", "C.UTF-8")
    async with serving("env", certificate) as server:
        client = await server.connect()
        own = client.transport.getHost()
        said = dict(line.split("=", 1) for line in (await client.receive_all()).decode().split())
        assert said == {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "PROTO": "TCP",
            "TCPREMOTEIP": "127.0.0.1",
            "TCPREMOTEPORT": str(own.port),
            "TCPLOCALIP": "127.0.0.1",
            "TCPLOCALPORT": str(server.number),
        }


@pytest_twisted.ensureDeferred
async def test_behind_a_proxy_a_program_knows_the_real_client(certificate: Path) -> None:
    async with serving("env", certificate, "PROXY") as server:
        client = await server.connect()
        said = (await client.receive_all()).decode().split()
        assert "TCPREMOTEIP=192.0.2.1" in said or not any("REMOTEIP=127." in one for one in said)
        assert "PROTO=TCP" in said


@pytest_twisted.ensureDeferred
async def test_on_a_unix_socket_a_program_is_told_no_address(
    certificate: Path, tmp_path: Path
) -> None:
    async with serving("env", certificate) as server:
        path = tmp_path / "socket"
        port = reactor.listenUNIX(str(path), server.factory)
        client = Talker()
        endpoint = endpoints.clientFromString(reactor, f"unix:{path}")
        await endpoints.connectProtocol(endpoint, client)
        said = (await client.receive_all()).decode().split()
        assert sorted(one.split("=")[0] for one in said if "LANG" not in one) == ["PATH", "PROTO"]
        assert "PROTO=UNIX" in said
        await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_a_program_has_its_three_descriptors_all_pipes_and_no_other(
    certificate: Path,
) -> None:
    script = "import os;print(sorted((n,os.readlink(f'/proc/self/fd/{n}')[:4]) for n in range(64) "
    script += "if os.path.exists(f'/proc/self/fd/{n}')))"
    async with serving(python(script), certificate) as server:
        client = await server.connect()
        assert eval(await client.receive_all()) == [(0, "pipe"), (1, "pipe"), (2, "pipe")]


@pytest_twisted.ensureDeferred
async def test_standard_error_is_logged_escaped_in_lines_with_the_clients_name(
    certificate: Path, log: Log
) -> None:
    script = r"printf 'bad \033[31m\nlong %05000d\nhalf' 1 >&2"
    async with serving(shell(script), certificate) as server:
        client = await server.connect()
        peer = client.transport.getHost()
        await client.receive_all()
        await eventually(lambda: not server.factory.connections)
    said = [one for one in log.text.splitlines() if "says:" in one]
    start = f"The program for {peer.host}:{peer.port} says: "
    assert said[0] == rf"{start}bad \x1b[31m"
    assert said[-1] == f"{start}half"
    assert max(len(one) for one in said) <= len(start) + 2048


@pytest.mark.parametrize(
    ("script", "note"),
    [("exit 3", "handler error: exit status 3 ("), ("kill -SEGV $$", "ended by SIGSEGV (")],
)
@pytest_twisted.ensureDeferred
async def test_the_log_names_an_exit_status_that_is_not_0(
    script: str, note: str, certificate: Path, log: Log
) -> None:
    async with serving(shell(f"echo said; {script}"), certificate) as server:
        client = await server.connect()
        assert await client.receive_all() == b"said\n"
        await eventually(lambda: not server.factory.connections)
    assert note in ends(log)[0]


@pytest.mark.parametrize("way", ["clear", "TLS"])
@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_stops_the_program_and_costs_little(
    way: str, certificate: Path
) -> None:
    """Fault 111: If the client does not read, the program waits; its output is not held."""
    async with serving("cat /dev/zero", certificate, way) as server:
        client = await server.connect()
        client.transport.pauseProducing()
        connection = await server.accepted()
        await eventually(lambda: connection._blocked)
        sent = connection.figures[2]
        for _ in range(5):
            await eventually(lambda: connection._blocked)
        # The kernel's buffers, and a read or two.
        assert connection.figures[2] == sent < 16 << 20
        client.transport.resumeProducing()
        await eventually(lambda: connection.figures[2] > 2 * sent)


@pytest.mark.parametrize("way", ["clear", "TLS"])
@pytest_twisted.ensureDeferred
async def test_a_program_that_does_not_read_stops_its_client(way: str, certificate: Path) -> None:
    """Fault 111: If the program does not read, its client waits, and nothing is lost."""
    async with serving(shell("read go; exec cat"), certificate, way) as server:
        client = await server.connect()
        connection = await server.accepted()
        await eventually(lambda: connection._process)
        data = os.urandom(24 << 20)
        os.kill(connection._process.pid, signal.SIGSTOP)
        client.send(b"go\n" + data)
        await eventually(lambda: connection._program_is_behind)
        for _ in range(20):
            await eventually(lambda: connection._program_is_behind)
        assert connection._process.unread < 1 << 20
        assert connection._busy  # the silence is not the client's
        os.kill(connection._process.pid, signal.SIGCONT)
        client.finish()
        assert await client.receive_all() == data


@pytest.mark.parametrize("goes", ["reset", "the daemon aborts"])
@pytest_twisted.ensureDeferred
async def test_with_the_connection_ends_all_that_the_program_has_started(
    goes: str, certificate: Path
) -> None:
    """Fault 112: With the connection ends the whole process group, at last by SIGKILL."""
    script = "sleep 1000 & echo $!; trap '' TERM; while :; do sleep 1000; done"
    async with serving(shell(script), certificate, linger=0.2) as server:
        client = await server.connect()
        await client.until(lambda: client.data.endswith(b"\n"))
        child = int(client.data)
        leader = (await server.accepted())._process.pid
        if goes == "reset":
            client.reset()
        else:
            server.factory.abort()
            server.factory.model.stop()
        await eventually(lambda: is_gone(child) and is_gone(leader))
        await eventually(lambda: server.factory.model.levels[0].used == 0)


@pytest_twisted.ensureDeferred
async def test_what_a_program_leaves_behind_ends_too(certificate: Path) -> None:
    """Fault 112: A process that the program leaves behind ends, even if it ignores SIGTERM."""
    script = "(trap '' TERM; exec >/dev/null 2>&1; while :; do sleep 1000; done) & echo $!"
    async with serving(shell(script), certificate, linger=0.2) as server:
        client = await server.connect()
        child = int(await client.receive_all())
        await eventually(lambda: is_gone(child))
        await eventually(lambda: server.factory.model.levels[0].used == 0)


@pytest_twisted.ensureDeferred
async def test_a_process_that_leaves_the_group_goes_on_and_holds_no_place(
    certificate: Path,
) -> None:
    """Fault 112: A process that has left the group by setsid(2) goes on, as the docs say."""
    script = "setsid sh -c 'echo $$; exec sleep 1000 >/dev/null 2>&1' & wait"
    async with serving(shell(script), certificate, linger=0.2) as server:
        client = await server.connect()
        await client.until(lambda: client.data.endswith(b"\n"))
        child, leader = int(client.data), (await server.accepted())._process.pid
        try:
            client.reset()
            await eventually(lambda: is_gone(leader))
            await eventually(lambda: server.factory.model.levels[0].used == 0)
            assert not is_gone(child)
        finally:
            os.kill(child, signal.SIGKILL)
            await eventually(lambda: is_gone(child))


@pytest_twisted.ensureDeferred
async def test_output_that_another_process_keeps_open_is_passed_on(certificate: Path) -> None:
    script = "(read go </dev/tcp/none 2>/dev/null; sleep 0.3; echo later) & echo now"
    async with serving(shell(script), certificate) as server:
        client = await server.connect()
        assert await client.receive_all() == b"now\nlater\n"


@pytest_twisted.ensureDeferred
async def test_a_process_that_holds_the_output_of_a_program_is_told_from_the_program(
    certificate: Path,
) -> None:
    async with serving(shell("read line; sleep 1000 & echo now"), certificate) as server:
        client = await server.connect()
        (connection,) = server.factory.connections
        assert connection.waits_for.startswith("its program, process ")
        client.send(b"\n")
        await client.receive(b"now\n")
        gone = "its program has ended, but another process holds its standard output"
        await eventually(lambda: connection.waits_for == gone)


@pytest_twisted.ensureDeferred
async def test_a_program_that_does_not_exit_ends_after_both_streams(
    certificate: Path, log: Log
) -> None:
    """Fault 112: A program that can neither read nor write any more ends soon."""
    script = "read all; exec 1>&-; while :; do sleep 1000; done"
    async with serving(shell(script), certificate, linger=0.2) as server:
        client = await server.connect()
        client.finish()
        assert await client.receive_all() == b""
        await eventually(lambda: not server.factory.connections)
    assert "client closed" in ends(log)[0]


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_drain_delivers_what_had_come_and_all_that_is_answered(
    way: str, certificate: Path, log: Log
) -> None:
    async with serving("cat", certificate, way) as server:
        client = await server.connect()
        await server.accepted()
        data = os.urandom(100_000)
        client.send(data)
        if way in ("clear", "PROXY"):
            await client.arrive()
        else:
            await client.receive(data[:1])
            client.data[:0] = data[:1]
            await client.until(lambda: len(client.data) == len(data))
        drained = server.factory.drain()
        assert await client.receive_all() == data
        assert client.clean
        await drained
    assert "drained" in ends(log)[0]


@pytest_twisted.ensureDeferred
async def test_a_drain_lets_a_program_finish_its_work(certificate: Path) -> None:
    """Fault 114: A program that is at work ends it, and its client gets the answer."""
    script = "read asked; sleep 0.3; echo answered; cat >/dev/null"
    async with serving(shell(script), certificate) as server:
        client = await server.connect()
        connection = await server.accepted()
        client.send(b"ask\n")
        await eventually(lambda: connection.figures[1] == 4)
        drained = server.factory.drain()
        assert await client.receive_all() == b"answered\n"
        await drained
        assert no_child()


@pytest_twisted.ensureDeferred
async def test_above_the_limit_a_client_is_told_and_a_place_is_free_when_a_program_is_gone(
    certificate: Path, log: Log
) -> None:
    """Fault 113: A client above `--max-processes` is told so, until a process is gone."""
    async with serving("cat", certificate, most=1) as server:
        first = await server.connect()
        await server.accepted()
        assert server.factory.model.levels[0].used == 1
        second = await server.connect()
        told = b"Server busy: the only process is in use, try again later\n"
        assert await second.receive_all() == told
        assert server.factory.metrics.refused["max-processes"] == 1
        first.finish()
        await first.receive_all()
        await eventually(lambda: server.factory.model.levels[0].used == 0)
        third = await server.connect()
        third.send(b"happy")
        await third.receive(b"happy")


@pytest_twisted.ensureDeferred
async def test_a_system_without_room_for_a_process_refuses_the_client(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 113: If the system allows no more processes, the client is told so."""

    def no_room(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    async with serving("cat", certificate) as server:
        with monkeypatch.context() as patch:
            patch.setattr("subprocess.Popen", no_room)
            client = await server.connect()
            told = b"Server busy: Resource temporarily unavailable, try again later\n"
            assert await client.receive_all() == told
        assert server.factory.metrics.refused["processes"] == 1
        assert server.factory.model.levels[0].used == 0


@pytest.mark.parametrize(
    ("script", "mode", "why"),
    [
        (None, 0, "exec: {path}: No such file or directory"),
        ("#!/gone\n", 0o755, "exec: /gone (the interpreter of {path}): No such file or directory"),
        ("#!/bin/sh\n", 0o644, "exec: {path} is not executable by the user "),
        ("echo said\n", 0o755, "exec: {path}: Exec format error"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_program_that_cannot_be_run_any_more_costs_its_client_one_line(
    certificate: Path, tmp_path: Path, log: Log, script: str | None, mode: int, why: str
) -> None:
    """Fault 218: Each client sees the end of the stream, and costs one line, which says why; once
    the program is there again, clients are served.
    """
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho said")
    program.chmod(0o755)
    async with serving(str(program), certificate) as server:
        program.rename(tmp_path / "away")
        if script is not None:
            program.write_text(script)
            program.chmod(mode)
        client = await server.connect()
        assert await client.receive_all() == b""
        (tmp_path / "away").rename(program)
        client = await server.connect()
        assert await client.receive_all() == b"said\n"
    (line,) = log.take_errors()
    assert why.format(path=program) in line
    assert "Traceback" not in line


@pytest_twisted.ensureDeferred
async def test_a_silent_client_is_disconnected_and_its_program_ends(
    certificate: Path, log: Log
) -> None:
    async with serving("cat", certificate, idle_timeout=0.5) as server:
        client = await server.connect()
        client.send(b"happy")
        await client.receive(b"happy")
        assert await client.receive_all() == b""
        assert client.clean
        await eventually(lambda: server.factory.model.levels[0].used == 0)
    assert "idle-timeout" in ends(log)[0]


@pytest_twisted.ensureDeferred
async def test_a_client_that_never_reads_is_disconnected_and_its_program_ends(
    certificate: Path, log: Log
) -> None:
    async with serving("cat /dev/zero", certificate, write_timeout=0.5) as server:
        client = await server.connect()
        client.transport.pauseProducing()
        await server.accepted()
        await eventually(lambda: not server.factory.connections)
        await eventually(lambda: server.factory.model.levels[0].used == 0)
    assert "write-timeout" in ends(log)[0]


@pytest_twisted.ensureDeferred
async def test_where_the_kernel_gives_no_descriptor_for_a_process_a_thread_waits_for_it(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", none)
    async with serving("cat", certificate) as server:
        client = await server.connect()
        client.send(b"happy")
        client.finish()
        assert await client.receive_all() == b"happy"
        await eventually(lambda: not server.factory.connections)


@pytest_twisted.ensureDeferred
async def test_where_there_is_no_room_for_that_thread_the_client_is_refused_and_nothing_left(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 113: If the system has room for the process, but not for the thread that waits for it
    where the kernel gives no descriptor, the client is told so.
    """

    def none(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    def no_room(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async with serving("sleep 100", certificate) as server:
        monkeypatch.setattr(os, "pidfd_open", none)
        with monkeypatch.context() as patch:
            patch.setattr("echod.concurrency.process.threading.Thread.start", no_room)
            client = await server.connect()
            told = b"Server busy: Resource temporarily unavailable, try again later\n"
            assert await client.receive_all() == told
        assert server.factory.model.levels[0].used == 0
        assert no_child()


@pytest_twisted.inlineCallbacks
def test_whatever_the_pieces_the_program_gets_every_byte_and_so_does_its_client(
    certificate: Path,
) -> object:
    async def talk(pieces: list[bytes], server: Server) -> bytes:
        client = await server.connect()
        for piece in pieces:
            client.send(piece)
        client.finish()
        return await client.receive_all()

    @settings(max_examples=25)
    @given(st.lists(st.binary(min_size=1, max_size=70_000), max_size=6), st.sampled_from(WAYS[:2]))
    def check(pieces: list[bytes], way: str) -> None:
        async def once() -> bytes:
            async with serving("cat", certificate, way) as server:
                return await talk(pieces, server)

        assert run(once()) == b"".join(pieces)

    yield in_thread(check)
    block_until(no_child)


def test_a_factory_whose_model_starts_no_processes_refuses_a_program() -> None:
    with pytest.raises(HandlerError, match="is a program, which only --handler exec can run"):
        EchoFactory(reactor, handler=Command(command="cat"))
