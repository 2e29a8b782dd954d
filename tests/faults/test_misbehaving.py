"""Handlers that misbehave: they harm their own connection."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import connect, receive, receive_all, warm_up
from tests.support.daemon import CONCURRENT, MODELS, Daemon, Start, nothing_kept, starting
from tests.support.needs import missing
from tests.support.programs import Step, join, limit
from tests.support.waiting import block_until

HANDLERS = """
import os
import resource
import subprocess
import time

from echod import message_handler

kept = []


@message_handler
def misbehave(message):
    match message:
        case b"eat":
            while True:
                kept.append(bytearray(1 << 25))
        case b"forget":
            kept.clear()
        case b"leak":
            while True:
                kept.append(os.open("/dev/null", os.O_RDONLY))
        case b"close":
            while kept:
                os.close(kept.pop())
        case b"fork":
            while True:
                kept.append(subprocess.Popen(["sleep", "60"]))
        case b"kill":
            for child in kept:
                child.kill()
                child.wait()
            kept.clear()
        case b"exit":
            raise SystemExit(3)
        case b"interrupt":
            raise KeyboardInterrupt
        case b"child":
            if not (child := os.fork()):
                time.sleep(60)
                os._exit(0)
            return b"%d" % child
    return message
"""

FORKING = """
import os
import resource
import sys

from echod import message_handler


@message_handler
def fork(message):
    if child := os.fork():
        return b"%d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    match message:
        case b"exit":
            sys.exit(3)
        case b"raise":
            raise ValueError("in the child")
"""

UNSHOWN = """
from pathlib import Path

from echod import Handler


class HostileError(Exception):
    @property
    def __notes__(self):
        raise SystemExit("while it is shown")


class Unshown(Handler):
    def fail_in(self, hook):
        if hook == Path("hook").read_text():
            raise HostileError

    def opened(self, client):
        self.fail_in("opened")

    def received(self, message):
        self.fail_in("received")
        return message

    def closed(self, reason):
        self.fail_in("closed")
"""

PRINTING = """
def show(message: bytes) -> bytes:
    print(message.decode(), end="")
    return b""
"""

UNITS = Path(__file__).parents[2] / "etc" / "systemd"

# Where the kernel limits processes, in the first version and in the second.
CONTROL_GROUPS = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))


@pytest.fixture(autouse=True)
def served(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(HANDLERS)


def in_each_model(
    directory: Path, text: str, handler: str, *options: str
) -> Iterator[dict[str, Daemon]]:
    """Run a daemon in each model, which tests share, with `handler` of a module of this text."""
    (directory / f"{handler.partition(':')[0]}.py").write_text(text)
    with starting(directory) as start:
        yield {
            model: start("--concurrency", model, "--handler", handler, *options)
            for model in MODELS
        }


@pytest.fixture(scope="module")
def misbehaving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Daemon]]:
    # So long a drain that nothing but a signal of the test's ends a forked process.
    options = ("--drain-timeout", "3600")
    folder = tmp_path_factory.mktemp("misbehaving")
    for started in in_each_model(folder, HANDLERS, "served:misbehave", *options):
        warm_up(*started.values())
        yield started


@pytest.fixture(scope="module")
def unshown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Daemon]]:
    yield from in_each_model(tmp_path_factory.mktemp("unshown"), UNSHOWN, "unshown:Unshown")


@pytest.fixture(scope="module")
def forking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Daemon]]:
    yield from in_each_model(tmp_path_factory.mktemp("forking"), FORKING, "forking:fork")


def start(daemon: Start, model: str, *steps: Step) -> Daemon:
    return daemon("--handler", "served:misbehave", "--concurrency", model, steps=steps)


def is_served(running: Daemon) -> bool:
    with connect(running) as connection:
        connection.sendall(b"happy")
        return receive(connection, 5) == b"happy"


def ask(running: Daemon, message: bytes) -> bytes:
    """Return the reply to a message until the end of the stream."""
    with connect(running) as connection:
        connection.sendall(message)
        return receive_all(connection)


@contextlib.contextmanager
def bystander(running: Daemon) -> Iterator[None]:
    """A client that is served before and after the block."""
    with connect(running) as connection:
        for step in (b"before", b"after"):
            connection.sendall(step)
            assert receive(connection, len(step)) == step
            if step == b"before":
                yield


@pytest.mark.parametrize("model", CONCURRENT[:2])
def test_a_handler_that_eats_memory_ends_its_own_connection(daemon: Start, model: str) -> None:
    """Fault 31: If memory is limited, a handler that asks for more ends its own connection, and no
    other.
    """
    running = start(daemon, model, limit(resource.RLIMIT_AS, 1_000_000_000))
    with bystander(running):
        assert ask(running, b"eat") == b""
        running.wait_for("MemoryError")
        with connect(running) as connection:
            connection.sendall(b"forget")
            assert receive(connection, 6) == b"forget"
    assert is_served(running)


@pytest.mark.parametrize("model", CONCURRENT)
def test_a_handler_that_leaks_descriptors_ends_its_own_connection(
    daemon: Start, model: str
) -> None:
    """Fault 31: A handler that gets no descriptor ends its own connection; connected clients are
    still served, and new ones are served once descriptors are free.
    """
    running = start(daemon, model, limit(resource.RLIMIT_NOFILE, 64))
    with connect(running) as connection, bystander(running):
        connection.sendall(b"ready?")
        assert receive(connection, 6) == b"ready?"
        assert ask(running, b"leak") == b""
        connection.sendall(b"close")
        assert receive(connection, 5) == b"close"
    block_until(lambda: is_served(running))
    running.wait_for("Traceback")
    assert running.log.count("Traceback") == 1


@pytest.mark.parametrize("unit", sorted(UNITS.glob("*.service")), ids=lambda unit: unit.name)
def test_the_units_limit_memory_and_processes(unit: Path) -> None:
    """Fault 31: The units that come with echod limit both."""
    words = unit.read_text().split()
    assert any(word.startswith("MemoryMax=") for word in words)
    assert any(word.startswith("TasksMax=") for word in words)


@contextlib.contextmanager
def few_processes(count: int) -> Iterator[Step]:
    """Make a control group that allows this many processes and threads; yield the step into it."""
    for parent in CONTROL_GROUPS:
        group = parent / f"echod-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / "pids.max").exists():
                (group / "pids.max").write_text(f"{count}")
                yield join(group)
                return
        finally:
            while (group / "cgroup.procs").read_text():
                time.sleep(0.01)
            group.rmdir()
    missing(
        "no control group can be made here that limits processes: run the tests as root, with the "
        f"controller `pids` in {' or '.join(map(str, CONTROL_GROUPS))}"
    )


@pytest.mark.parametrize("model", CONCURRENT)
def test_a_handler_that_forks_without_end_ends_its_own_connection(
    tmp_path: Path, model: str
) -> None:
    """Fault 31: If processes are limited, as by TasksMax, a handler that asks for more ends its
    own connection, and no other.
    """
    with few_processes(60) as within, starting(tmp_path) as daemon:
        running = start(daemon, model, within)
        with connect(running) as connection, bystander(running):
            connection.sendall(b"ready?")
            assert receive(connection, 6) == b"ready?"
            assert ask(running, b"fork") == b""
            connection.sendall(b"kill")
            assert receive(connection, 4) == b"kill"
        assert is_served(running)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("model", CONCURRENT)
def test_a_process_that_a_handler_has_forked_is_ended_by_a_signal(
    misbehaving: dict[str, Daemon], model: str, number: int
) -> None:
    """Fault 97: The signal ends the forked process at once, as `multiprocessing` and service
    managers expect; the daemon goes on.
    """
    running = misbehaving[model]
    with nothing_kept(running):
        with connect(running) as connection:
            connection.sendall(b"child")
            child = int(connection.recv(100))
        try:
            os.kill(child, number)
            block_until(lambda: ended(child))
        finally:
            if not ended(child):
                os.kill(child, signal.SIGKILL)
        assert is_served(running)
        assert "Received SIG" not in running.log


def ended(process: int) -> bool:
    """Return whether a process has ended, even if it has not been waited for."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_without_threads_for_them_clients_are_told_so_and_others_served(tmp_path: Path) -> None:
    """Fault 31: If threads are limited, as by TasksMax, clients that get none are told so;
    connected clients are still served, and new ones are served once a thread is free.
    """
    with few_processes(30) as within, starting(tmp_path) as daemon:
        running = start(daemon, "thread-per-connection", within)
        with contextlib.ExitStack() as stack:
            served = []
            for _ in range(40):
                connection = stack.enter_context(connect(running))
                connection.sendall(b"ready?")
                if (answer := receive(connection, 6)) != b"ready?":
                    break
                served.append(connection)
            assert 0 < len(served) < 30
            told = answer + receive_all(connection)
            assert told == b"Server busy: no thread can be started, try again later\n"
            for connection in served:
                connection.sendall(b"still?")
                assert receive(connection, 6) == b"still?"
        block_until(lambda: is_served(running))
        assert "Traceback" not in running.log


@pytest.mark.parametrize("model", CONCURRENT)
@pytest.mark.parametrize("message", [b"exit", b"interrupt"])
def test_a_handler_that_exits_ends_its_own_connection(
    misbehaving: dict[str, Daemon], model: str, message: bytes
) -> None:
    """Fault 10: A handler that calls `sys.exit` ends its own connection, and not the daemon."""
    running = misbehaving[model]
    with nothing_kept(running), bystander(running):
        assert ask(running, message) == b""
    assert is_served(running)


@pytest.mark.parametrize("model", CONCURRENT)
def test_a_child_of_a_handler_does_not_keep_the_connection_open(
    misbehaving: dict[str, Daemon], model: str
) -> None:
    """Fault 31: A client sees the end of its connection although a child process has inherited it
    too.
    """
    running = misbehaving[model]
    with nothing_kept(running), connect(running) as connection:
        connection.sendall(b"child")
        child = int(connection.recv(100))
        try:
            connection.shutdown(socket.SHUT_WR)
            assert receive_all(connection) == b""
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("hook", ["opened", "received", "closed"])
def test_an_exception_that_cannot_be_shown_ends_its_own_connection(
    unshown: dict[str, Daemon], model: str, hook: str
) -> None:
    """Fault 93: An exception of a handler that raises `SystemExit` while its traceback is made
    ends its own connection only, and is logged by its name.
    """
    running = unshown[model]
    (running.directory / "hook").write_text(hook)
    before = sum("HostileError" in line for line in running.lines)
    for count in (1, 2):
        with connect(running) as connection:
            connection.sendall(b"happy")
            connection.shutdown(socket.SHUT_WR)
            receive_all(connection)
        running.wait_for("HostileError", before + count)
    assert running.process.poll() is None


def test_prints_without_an_end_cost_no_more_than_others(daemon: Start, tmp_path: Path) -> None:
    """Fault 94: The daemon holds no more of such a line than the longest line of the log, and logs
    the rest.
    """
    (tmp_path / "printing.py").write_text(PRINTING)
    running = daemon("--handler", "printing:show", "--log-rate", "0", "--framing", "length")
    message = b"x" * 1000
    with connect(running) as connection:
        for _ in range(1000):
            connection.sendall(len(message).to_bytes(4, "big") + message)
            assert receive(connection, 4) == bytes(4)
        running.wait_for("x" * 32_000, 1000 // 32)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("message", "status"), [(b"exit", 3), (b"raise", 1), (b"return", 0)])
def test_a_forked_child_ends_where_the_handlers_code_ends(
    forking: dict[str, Daemon], model: str, message: bytes, status: int
) -> None:
    """Fault 95: The child ends as a script would, and does not go on with the event loop, or the
    thread, of the daemon.
    """
    running = forking[model]
    for _ in range(2):
        assert ask_once(running, message) == b"%d" % status
    if message == b"raise":
        running.wait_for("ValueError: in the child", 2)


def ask_once(running: Daemon, message: bytes) -> bytes:
    """Return the reply to a message, followed by the end, until the end of the stream."""
    with connect(running) as connection:
        connection.sendall(message)
        connection.shutdown(socket.SHUT_WR)
        return receive_all(connection)
