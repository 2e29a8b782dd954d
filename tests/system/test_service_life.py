"""The life of a service: opened before the first client, closed after the last one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.clients import connect, receive, receive_all
from tests.support.daemon import REACTOR, TERMINATED, Daemon, Start
from tests.support.needs import needs_root, not_here
from tests.support.permissions import open_to_all
from tests.support.programs import SCRIPTS, Program, run
from tests.support.waiting import PATIENCE, block_until

SERVICES = """
import os, sqlite3, sys, threading, time
from pathlib import Path
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
import echod

def told(what):
    print(f"[{what}]", flush=True)

@echod.service
async def waits(service, *, until: str = "", size: int = 1, slow: float = 0.0):
    told(f"opening {service.name} as {os.geteuid()}")
    try:
        while until and not Path(until).exists():
            await deferLater(reactor, 0.01)
        assert await deferToThread(lambda: 7) == 7
        yield lambda message: message * size
        told(f"closing, clients: {len(service.clients)}")
        await deferLater(reactor, slow)
        told("closed")
    except BaseException as error:
        told(f"got {type(error).__name__}")
        raise
    finally:
        told("cleaned up")

def endless(message):
    while True:
        yield bytes(1 << 25)  # more than the kernel takes: it waits from the first write on

@echod.connection_handler
def forever(conn):
    while conn.recv(100):
        pass
    threading.Event().wait()

async def for_ever(reader, writer):
    import asyncio
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

@echod.service
async def tidy(service, *, serves: str = "", slow: float = 0.0):
    try:
        yield globals()[serves] if serves else lambda message: message
        told(f"closing, clients: {len(service.clients)}")
        await deferLater(reactor, slow)
        told("closed")
    finally:
        told("cleaned up")

@echod.service
def tidy_too(service, *, serves: str = "", slow: float = 0.0):
    try:
        yield globals()[serves] if serves else lambda message: message
        told(f"closing, clients: {len(service.clients)}")
        time.sleep(slow)
        told("closed")
    finally:
        told("cleaned up")

@echod.service
async def leaves_early(service):
    sys.exit(3)
    yield lambda message: message

@echod.service
async def leaves(service):
    yield lambda message: message
    sys.exit(3)

@echod.service
def leaves_too(service):
    yield lambda message: message
    sys.exit(3)

@waits.check
def _(*, until, size, slow):
    if size < 1:
        raise echod.SettingError("size", "must be at least 1")

@echod.service
def plain(service, *, until: str = "", slow: float = 0.0):
    told(f"opening {service.name} as {os.geteuid()}")
    try:
        while until and not Path(until).exists():
            time.sleep(0.01)
        home = threading.get_ident()
        yield lambda message: message
        assert threading.get_ident() == home
        told(f"closing, clients: {len(service.clients)}")
        time.sleep(slow)
        told("closed")
    finally:
        told("cleaned up")

def nothing(message):
    return message

@echod.service
def missing(service):
    Path("missing.db").read_bytes()
    yield nothing

@echod.service
async def missing_too(service):
    await deferLater(reactor, 0)
    Path("missing.db").read_bytes()
    yield nothing

@echod.service
def empty(service):
    if False:
        yield

@echod.service
def wrong(service):
    yield 7

@echod.service
async def streams(service):
    async def talk(reader, writer):
        writer.write(await reader.read(100))
        writer.close()
    yield talk

@echod.service
async def ends(service):
    import asyncio
    async with asyncio.TaskGroup() as group:
        async def fail():
            while not Path("fail").exists():
                await asyncio.sleep(0.01)
            raise RuntimeError("on purpose")
        group.create_task(fail())
        yield lambda message: message

def connect():
    told(f"connected {threading.current_thread().name}")
    return sqlite3.connect(":memory:")

def close(connection):
    connection.close()
    told(f"disconnected {threading.current_thread().name}")

threads = echod.PerThread(connect, close)

def look_up(message):
    return str(threads.get().execute("select 40 + 2").fetchone()[0]).encode()

class Announced(echod.Handler):
    framing, concurrency, banner = "line", "defer-to-thread", b"Hello"

    def received(self, message):
        return message

@echod.service(framing="line", banner=b"")
def framed(service):
    yield lambda message: b"<" + message + b">"
"""

KINDS = [
    ("waits", "reactor"),
    ("waits", "serial"),
    ("plain", "reactor"),
    ("plain", "defer-to-thread"),
    ("plain", "serial"),
]


@pytest.fixture(autouse=True)
def services(tmp_path: Path) -> None:
    (tmp_path / "svc.py").write_text(SERVICES)


def told(running: Daemon) -> list[str]:
    """Return the lines that the service has printed."""
    return [line[line.index("[", 40) :] for line in running.lines if "stdout#info] [" in line]


@pytest.mark.parametrize(("name", "model"), KINDS)
def test_clients_wait_until_the_service_is_open(
    daemon: Start, tmp_path: Path, name: str, model: str
) -> None:
    """Fault 132: Clients that connect meanwhile wait, and none is refused."""
    running = daemon("--handler", f"svc:{name}:until=open", "--concurrency", model)
    port = running.port
    running.wait_for("opening")
    clients = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(3)]
    for client in clients:
        client.sendall(b"happy")
    time.sleep(0.05)  # nothing may come: there is no event to wait for
    assert "Connected with" not in running.log
    (tmp_path / "open").touch()
    for client in clients:
        with client:
            assert receive(client, 5) == b"happy"
    running.wait_for("Serving the message handler svc:")


@pytest.mark.parametrize(("name", "model"), KINDS[:4])
def test_the_rest_of_the_service_runs_after_the_last_client(
    daemon: Start, name: str, model: str
) -> None:
    """Fault 132: The part after `yield` runs after the last connection."""
    running = daemon("--handler", f"svc:{name}:slow=0.1", "--concurrency", model)
    with connect(running) as client:
        client.sendall(b"happy")
        assert receive(client, 5) == b"happy"
        running.signal()
        assert receive_all(client) == b""
    running.wait()
    assert running.process.returncode in TERMINATED
    assert told(running)[1:] == ["[closing, clients: 0]", "[closed]", "[cleaned up]"]
    assert running.log.index("Disconnected") < running.log.index("[closing")


@pytest.mark.parametrize("timeout", ["0", "0.1"])
@pytest.mark.parametrize(("name", "model"), KINDS[:4])
def test_the_rest_runs_even_if_clients_have_no_time(
    daemon: Start, name: str, model: str, timeout: str
) -> None:
    """Fault 132: With a shorter `--drain-timeout`, such as 0, it has half a second."""
    flags = ("--concurrency", model, "--drain-timeout", timeout)
    running = daemon("--handler", f"svc:{name}:slow=0.05", *flags)
    with connect(running) as client:
        client.sendall(b"happy")
        assert receive(client, 5) == b"happy"
        running.signal()
        running.wait()
    assert running.process.returncode in TERMINATED
    assert told(running)[1:] == ["[closing, clients: 0]", "[closed]", "[cleaned up]"]


@pytest.mark.parametrize(("name", "model"), KINDS[:4])
def test_a_second_signal_skips_the_rest(daemon: Start, name: str, model: str) -> None:
    """Fault 132: A second signal ends the process without waiting for the service."""
    running = daemon("--handler", f"svc:{name}:slow=60", "--concurrency", model)
    running.wait_for("Serving")
    running.signal()
    running.wait_for(r"\[closing")
    running.signal()
    assert running.wait() < PATIENCE
    assert running.process.returncode in TERMINATED
    assert "[closed]" not in told(running)


def test_the_rest_has_until_the_deadline_of_the_drain(daemon: Start) -> None:
    running = daemon("--handler", "svc:waits:slow=60", "--drain-timeout", "0.3")
    running.wait_for("Serving")
    running.signal()
    assert running.wait() < PATIENCE
    assert told(running)[1:] == [
        "[closing, clients: 0]",
        "[got CancelledError]",
        "[cleaned up]",
    ]


@pytest.mark.parametrize(
    ("handler", "model"),
    [
        ("tidy", "reactor"),
        ("tidy", "serial"),
        ("tidy_too", "reactor"),
        ("tidy_too", "defer-to-thread"),
        ("tidy_too:serves=forever", "thread-per-connection"),
        ("tidy:serves=for_ever", "reactor"),
    ],
)
def test_a_client_that_stays_leaves_time_for_the_rest(
    daemon: Start, handler: str, model: str
) -> None:
    """Fault 132: A client that does not read, or does not close, leaves time for the rest."""
    if "for_ever" in handler and REACTOR and "uvloop" not in REACTOR[0]:
        not_here("no asyncio loop runs")
    running = daemon(
        *("--handler", f"svc:{handler}", "--concurrency", model, "--no-banner"),
        *("--drain-timeout", "0.1"),
    )
    with connect(running) as client:
        client.sendall(b"happy")
        if "serves" not in handler:
            assert receive(client, 5) == b"happy"
        running.wait_for("Connected with")
        running.signal()  # and the client does not close
        running.wait()
    assert running.process.returncode in TERMINATED
    assert "Drain time-out: aborting all; open connections: 1" in running.log
    assert [line for line in told(running) if "opening" not in line] == [
        "[closing, clients: 0]",
        "[closed]",
        "[cleaned up]",
    ]
    assert "Not stopped in time" not in running.log
    assert "The rest of the service" not in running.log


@pytest.mark.parametrize(("name", "model"), [("tidy", "reactor"), ("tidy_too", "defer-to-thread")])
def test_a_client_that_does_not_read_leaves_time_for_the_rest(
    daemon: Start, name: str, model: str
) -> None:
    """Fault 132: The same holds for a client that reads nothing of what waits for it."""
    running = daemon(
        *("--handler", f"svc:{name}:serves=endless", "--concurrency", model, "--no-banner"),
        *("--drain-timeout", "0.1"),
    )
    with connect(running) as client:
        client.sendall(b"happy")
        assert receive(client, 1)
        running.signal()
        running.wait()
    assert "the client has not read everything" in running.log
    assert told(running)[-2:] == ["[closed]", "[cleaned up]"]
    assert running.process.returncode in TERMINATED


@pytest.mark.parametrize(("name", "model"), [("tidy", "reactor"), ("tidy_too", "defer-to-thread")])
def test_a_rest_that_is_not_over_in_time_is_named_with_its_place(
    daemon: Start, name: str, model: str
) -> None:
    """Fault 132: The log names a rest that is not over at the deadline, and its place."""
    running = daemon(
        *("--handler", f"svc:{name}:slow=60", "--concurrency", model, "--drain-timeout", "0.5"),
    )
    running.wait_for("Serving")
    running.signal()
    running.wait()
    assert running.process.returncode in TERMINATED
    line = f"The rest of the service svc:{name} is not over: it is at svc.py:"
    assert running.log.count(line) == 1
    assert f" in {name}" in running.log.split(line)[1].splitlines()[0]
    assert "Drain time-out" not in running.log


def test_the_rest_that_a_second_signal_skips_is_named(daemon: Start) -> None:
    """Fault 132: The log says of a rest that was not run that it was not."""
    running = daemon("--handler", "svc:tidy", "--drain-timeout", "60")
    with connect(running) as client:
        client.sendall(b"happy")
        assert receive(client, 5) == b"happy"
        running.signal()
        assert receive_all(client) == b""  # and the client does not close
        running.signal()
        running.wait()
    assert running.log.count("The rest of the service svc:tidy was not run") == 1


@pytest.mark.parametrize(
    ("name", "model"),
    [("leaves", "reactor"), ("leaves_too", "reactor"), ("leaves_too", "defer-to-thread")],
)
def test_an_exit_in_the_rest_is_one_traceback(daemon: Start, name: str, model: str) -> None:
    running = daemon("--handler", f"svc:{name}", "--concurrency", model)
    running.wait_for("Serving")
    running.signal()
    running.wait()
    assert running.process.returncode in TERMINATED
    assert running.log.count("Traceback") == 1
    assert f"The service svc:{name} has failed" in running.log


FAILURES = [
    ("missing", "reactor", "svc:missing cannot be opened: FileNotFoundError: "),
    ("missing", "defer-to-thread", "svc:missing cannot be opened: FileNotFoundError: "),
    ("missing_too", "reactor", "svc:missing_too cannot be opened: FileNotFoundError: "),
    ("leaves_early", "reactor", "svc:leaves_early cannot be opened: SystemExit: 3"),
    ("empty", "reactor", "svc:empty: it has yielded no handler"),
    ("empty", "defer-to-thread", "svc:empty: it has yielded no handler"),
    ("wrong", "reactor", "svc:wrong: 7 is not callable, and has no method `received`"),
    ("wrong", "defer-to-thread", "svc:wrong: 7 is not callable, and has no method `received`"),
    ("waits:size=0", "reactor", "svc:waits: size must be at least 1"),
    ("waits:size=x", "reactor", "svc:waits: size=x is not of type int"),
    ("waits:sise=1", "reactor", "svc:waits takes no argument 'sise'"),
    ("waits", "defer-to-thread", "svc:waits is an async service: it runs with --concurrency"),
]


@pytest.mark.parametrize(("handler", "model", "said"), FAILURES)
def test_a_service_that_cannot_be_opened_is_one_line_and_exit_1(
    daemon: Start, handler: str, model: str, said: str
) -> None:
    """Fault 132: A service that cannot be opened ends the start with exit code 1 and one line."""
    running = daemon("--handler", f"svc:{handler}", "--concurrency", model)
    running.wait()
    assert running.process.returncode == 1
    (line,) = [line for line in running.lines if line.startswith("echod:")]
    assert line.startswith(f"echod: --handler: {said}")
    assert "Traceback" not in running.log


@pytest.mark.parametrize("name", ["missing", "missing_too"])
def test_in_the_background_the_start_fails_too(tmp_path: Path, name: str) -> None:
    """Fault 132: A start in the background fails as well, before the command returns."""
    ended = run(
        tmp_path,
        SCRIPTS / "twistd",
        *REACTOR,
        *("echod", "--port", "0", "--handler", f"svc:{name}"),
    )
    assert ended.returncode == 1
    assert "cannot be opened" in ended.stdout + ended.stderr
    # The child fails, and may live a moment longer.
    block_until(lambda: not (tmp_path / "twistd.pid").exists())


def test_in_the_background_it_is_opened_after_the_fork_as_the_user_that_runs_it(
    tmp_path: Path,
) -> None:
    needs_root("become another user")
    open_to_all(tmp_path)
    command = [str(SCRIPTS / "twistd"), *REACTOR, "--uid=65534", "--gid=65534"]
    started = run(tmp_path, *command, "echod", "--port", "0", "--handler", "svc:waits")
    assert started.returncode == 0, started.stderr
    pid = int((tmp_path / "twistd.pid").read_text())
    log = tmp_path / "twistd.log"
    try:
        block_until(lambda: "[opening svc:waits as 65534]" in log.read_text())
    finally:
        os.kill(pid, signal.SIGTERM)
    block_until(lambda: not Path(f"/proc/{pid}").exists())
    assert "[closed]" in log.read_text()


def test_under_twist_it_lives_as_under_twistd(tmp_path: Path) -> None:
    with Program(
        [SCRIPTS / "twist", *REACTOR, "echod", "--port", "0", "--handler", "svc:waits"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        assert running.stdout is not None
        lines = []
        for line in running.stdout:
            lines.append(line)
            if "Serving the" in line:
                break
        running.send_signal(signal.SIGTERM)
        lines += running.stdout.readlines()
    assert "[opening svc:waits" in "".join(lines)
    assert "[closed]" in "".join(lines)


@pytest.mark.parametrize("name", ["missing", "missing_too"])
def test_under_twist_it_fails_as_under_twistd(tmp_path: Path, name: str) -> None:
    ended = run(
        tmp_path,
        SCRIPTS / "twist",
        *REACTOR,
        *("echod", "--port", "0", "--handler", f"svc:{name}"),
    )
    assert ended.returncode == 1
    assert "cannot be opened" in ended.stdout + ended.stderr


@pytest.mark.parametrize(("name", "model"), KINDS[:4])
def test_a_start_that_takes_too_long_ends(daemon: Start, name: str, model: str) -> None:
    """Fault 132: A start that takes longer than `--start-timeout` ends with exit code 1."""
    running = daemon(
        *("--handler", f"svc:{name}:until=never", "--concurrency", model),
        *("--start-timeout", "0.3", "--drain-timeout", "1"),
    )
    running.wait()
    assert running.process.returncode == 1
    assert f"svc:{name} was not open within 0.3 s (--start-timeout)" in running.log
    if model == "reactor":
        assert told(running)[-1] == "[cleaned up]"


@pytest.mark.parametrize(("name", "model"), KINDS[:4])
def test_sigterm_ends_a_start(daemon: Start, name: str, model: str) -> None:
    """Fault 132: SIGTERM ends a start that takes long, and the service cleans up."""
    running = daemon(
        *("--handler", f"svc:{name}:until=never", "--concurrency", model),
        *("--drain-timeout", "1"),
    )
    running.wait_for("opening")
    running.signal()
    assert running.wait() < PATIENCE
    assert running.process.returncode in TERMINATED
    assert f"SIGTERM came while svc:{name} was opened" in running.log
    if model == "reactor":
        assert told(running)[-1] == "[cleaned up]"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["svc:waits"], 0, "the configuration is good"),
        (["svc:waits:size=0"], 1, "svc:waits: size must be at least 1"),
        (["svc:missing"], 0, "the configuration is good"),
    ],
)
def test_a_check_of_the_settings_opens_nothing(
    tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    ended = run(
        tmp_path,
        *(SCRIPTS / "twistd", *REACTOR, "echod", "--check-config", "--handler", *arguments),
    )
    assert ended.returncode == code
    assert said in ended.stdout + ended.stderr
    assert "opening" not in ended.stdout


def test_a_service_that_fails_while_it_serves_ends_the_daemon(
    daemon: Start, tmp_path: Path
) -> None:
    if REACTOR and "uvloop" not in REACTOR[0]:
        not_here("no asyncio loop runs")
    running = daemon("--handler", "svc:ends")
    with connect(running) as client:
        client.sendall(b"happy")
        assert receive(client, 5) == b"happy"
    (tmp_path / "fail").touch()
    running.wait()
    assert running.process.returncode == 1
    assert "The service svc:ends has failed" in running.log
    assert "on purpose" in running.log


@pytest.mark.parametrize("model", ["defer-to-thread", "thread-per-connection"])
def test_each_thread_has_an_object_of_its_own_until_its_end(daemon: Start, model: str) -> None:
    """Fault 132: The objects of a thread are closed in that thread, after the drain."""
    arguments = ("--handler", "svc:look_up", "--concurrency", model)
    running = daemon(*arguments) if model == "defer-to-thread" else None
    if running is None:
        not_here("a plain function is a connection handler there")
    clients = [connect(running) for _ in range(4)]
    for client in clients:
        for _ in range(3):
            client.sendall(b"x")
            assert receive(client, 2) == b"42"
    for client in clients:
        client.close()
    running.signal()
    running.wait()
    connected = {line.split()[1] for line in told(running) if "[connected" in line}
    disconnected = {line.split()[1] for line in told(running) if "[disconnected" in line}
    assert connected
    assert connected == disconnected


def test_a_handler_that_its_service_yields_in_the_wrong_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "svc.py").write_text(SERVICES)
    ended = run(
        tmp_path,
        *(SCRIPTS / "twistd", "-n", "--pidfile=", *REACTOR, "echod", "--port=0"),
        *("--handler", "svc:tidy:serves=for_ever", "--concurrency", "serial"),
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        "echod: --handler: svc:tidy is a handler of asyncio streams: it runs with --concurrency "
        "reactor, not serial\n"
    )
