"""How the daemon starts, or says why it does not."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from echod.daemon.checks import proviso
from echod.settings.definitions import SETTINGS
from echod.settings.schema import Setting, SettingError
from tests.faults.test_misbehaving import few_processes
from tests.support.certificates import self_signed_pem
from tests.support.clients import BANNER, connect, receive, receive_all
from tests.support.daemon import CONCURRENT, Daemon, Start, starting
from tests.support.needs import needs_root, tool
from tests.support.programs import SCRIPTS, Program, run
from tests.support.tls_peer import client_context
from tests.support.waiting import PATIENCE, block_until

TAKEN = "Bind failed. Error Code : 98 Message Address already in use"


@pytest.fixture
def taken() -> Iterator[int]:
    """A TCP port on which another process listens."""
    with socket.create_server(("", 0)) as somebody:
        yield somebody.getsockname()[1]


@pytest.fixture
def free() -> int:
    """A TCP port on which no process listens."""
    with socket.create_server(("", 0)) as somebody:
        return somebody.getsockname()[1]


@pytest.fixture
def handlers(tmp_path: Path) -> Callable[[str], int]:
    """Write a module `served` into the current directory of the daemons."""
    return (tmp_path / "served.py").write_text


@pytest.fixture
def new_root(tmp_path: Path) -> Path:
    """A folder without modules, which a daemon can change its root to."""
    needs_root("change the root")
    root = tmp_path / "root"
    (root / "dev").mkdir(parents=True)
    os.mknod(root / "dev" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    return root


# Its output.


def test_the_log_tells_each_step_and_each_client(daemon: Start) -> None:
    running = daemon()
    with connect(running) as connection:
        assert receive(connection, len(BANNER)) == BANNER  # unread, it would be a reset
        port = connection.getsockname()[1]
        running.wait_for(rf"Connected with 127\.0\.0\.1:{port}$")
    figures = r"\(\d\.\d+ s, messages: 0, bytes in: 0, out: 52\)"
    running.wait_for(rf"Disconnected from 127\.0\.0\.1:{port}: client closed {figures}$")
    steps = ["Socket created", "Socket bind complete", "Socket now listening", "Connected with"]
    said = [step for line in running.lines for step in steps if step in line]
    assert said == steps


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        ([], {}, "Running on the uvloop reactor"),
        (["--reactor=epoll"], {}, "Running on the epoll reactor"),
        (["--reactor=uvloop"], {}, "Running on the uvloop reactor"),
        # As where uvloop is not installed.
        ([], {"PYTHONPATH": "."}, "The uvloop reactor is not available: none for this system"),
    ],
)
def test_the_reactor_is_the_one_asked_for_or_uvloops(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], said: str
) -> None:
    (tmp_path / "uvloop.py").write_text("raise ImportError('none for this system')\n")
    process: Program[str] = Program(
        [SCRIPTS / "twistd", "-n", "--pidfile=", *arguments, "echod", "--port=0"],
        cwd=tmp_path,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or "Socket now listening" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        assert sum(said in line for line in lines) == 1
        assert sum("Running on the" in line for line in lines) == 1
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


def test_help_mentions_every_setting(tmp_path: Path) -> None:
    shown = run(tmp_path, SCRIPTS / "twistd", "echod", "--help")
    assert shown.returncode == 0
    for setting in SETTINGS:
        assert f"--{setting.name.replace('_', '-')}" in shown.stdout


def test_a_file_can_be_checked_printed_and_used(tmp_path: Path, daemon: Start) -> None:
    (tmp_path / "echod.toml").write_text('port = 0\nprefix = "+ "\nno-banner = true\n')
    (tmp_path / "twistd.pid").write_text("1")  # of a daemon that runs meanwhile
    command = (SCRIPTS / "twistd", "-n", "echod", "--config=echod.toml")
    checked = run(tmp_path, *command, "--check-config")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout == f"echod: the configuration is good{proviso(os.geteuid())}\n"
    printed = run(tmp_path, *command, "--print-config")
    assert printed.returncode == 0
    (tmp_path / "printed.toml").write_text(printed.stdout)
    running = daemon("--config=printed.toml", "--listen=tcp:0:interface=127.0.0.1")
    with connect(running) as connection:
        connection.sendall(b"happy")
        assert receive(connection, 7) == b"+ happy"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("prot = 0", "echod.toml:1: prot: there is no such key; did you mean port?"),
        ("port = 'http'", "echod.toml:1: port: 'http' is not a whole number from 0 to 65535"),
        ("handler = 'nonesuch'", "echod.toml: --handler: no handler is named 'nonesuch'"),
        ("listen = 'tcp:x'", "echod.toml: --listen tcp:x: "),
        (
            "listen = 'ssl:0:privateKey=none.pem:certKey=none.pem'",
            "echod.toml: --listen ssl:0:privateKey=none.pem:certKey=none.pem: ",
        ),
    ],
)
def test_a_check_finds_what_would_keep_it_from_starting(
    tmp_path: Path, content: str, why: str
) -> None:
    (tmp_path / "echod.toml").write_text(content)
    command = (SCRIPTS / "twistd", "-n", "echod", "--config=echod.toml", "--check-config")
    checked = run(tmp_path, *command)
    assert checked.returncode == 1
    assert why in checked.stderr
    assert checked.stderr.count("\n") == 1
    assert checked.stdout == ""


CONSTRUCTORS = """
from echod import Handler

class Base(Handler):
    def received(self, message):
        return message

class Size(Base):
    def __init__(self, *, size: int = 1):
        if size < 1:
            raise ValueError(f"size must be at least 1,\\nnot {size}")

class Unset(Base):
    def __init__(self):
        {}["UNSET"]

class Down(Base):
    def __init__(self):
        raise ConnectionRefusedError("the database is down")

class Early(Base):
    def __init__(self):
        import asyncio
        asyncio.get_running_loop()
"""


def test_a_module_that_runs_the_reactor_when_it_is_imported_is_refused_in_one_line(
    tmp_path: Path,
) -> None:
    (tmp_path / "noguard.py").write_text(
        "from twisted.internet import reactor\n"
        "def handle(message): ...\n"
        "reactor.callWhenRunning(reactor.stop)\n"
        "reactor.run()\n"
    )
    options = ("-n", "--pidfile=", "echod", "--handler=noguard:handle", "--port=0")
    started = run(tmp_path, SCRIPTS / "twistd", *options)
    assert started.returncode == 1
    assert started.stderr == (
        "echod: --handler: noguard:handle: its module has run the reactor when it was imported, "
        'and a reactor runs only once: put reactor.run() under `if __name__ == "__main__"`\n'
    )
    assert "Traceback" not in started.stdout


@pytest.mark.parametrize(
    ("handler", "why", "line", "model"),
    [
        ("made:Size:size=0", r"ValueError: size must be at least 1,\nnot 0", 11, "reactor"),
        ("made:Unset", "KeyError: 'UNSET'", 15, "serial"),
        ("made:Unset", "KeyError: 'UNSET'", 15, "defer-to-thread"),
    ],
)
def test_a_handler_that_can_never_be_made_keeps_it_from_starting(
    tmp_path: Path, handler: str, why: str, line: int, model: str
) -> None:
    """Fault 89: If the handler can never be made, the start and `--check-config` say so, in one
    line.
    """
    file = tmp_path / "made.py"
    file.write_text(CONSTRUCTORS)
    name = ":".join(handler.split(":")[:2])
    error = f"echod: --handler: {name} cannot be made: {why} ({file}, line {line})\n"
    twistd = (SCRIPTS / "twistd", "--pidfile=")
    options = ("echod", "--concurrency", model, "--handler", handler, "--port=0")
    checked = run(tmp_path, *twistd, *options, "--check-config")
    assert (checked.returncode, checked.stdout, checked.stderr) == (1, "", error)
    started = run(tmp_path, *twistd, "-n", *options)
    assert started.returncode == 1
    assert started.stderr == error
    assert "Traceback" not in started.stdout
    in_background = run(tmp_path, *twistd, "--logfile=log", *options)
    assert in_background.returncode == 1
    assert f"{name} cannot be made" in in_background.stderr + in_background.stdout


@pytest.mark.parametrize(
    ("handler", "model"),
    [
        ("made:Size:size=1", "reactor"),
        ("made:Down", "reactor"),
        ("made:Early", "defer-to-thread"),
        ("made:Size:size=0", "thread-per-connection"),
    ],
)
def test_a_handler_that_may_be_made_later_does_not_keep_it_from_starting(
    daemon: Start, tmp_path: Path, handler: str, model: str
) -> None:
    (tmp_path / "made.py").write_text(CONSTRUCTORS)
    options = ("--concurrency", model, "--handler", handler)
    checked = run(tmp_path, SCRIPTS / "twistd", "echod", *options, "--check-config")
    assert checked.returncode == 0
    running = daemon(*options)
    with connect(running) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert receive_all(connection) == b""


def bounds(one: Setting) -> tuple[str, str]:
    """Return the least and the greatest number that a setting accepts, from its errors."""
    with pytest.raises(SettingError) as caught:
        one.from_flag("")
    found = re.search(r"from ([0-9.]+) to ([0-9]+)", str(caught.value))
    assert found
    return found[1], found[2]


@pytest.mark.parametrize("end", [0, 1], ids=["least", "greatest"])
def test_it_serves_with_the_least_and_the_greatest_numbers(daemon: Start, end: int) -> None:
    # The spread has to be less than the drain's time, and several workers have no journal.
    others = {"port", "drain_spread", "workers"}
    running = daemon(
        *(
            f"{one.flag}={bounds(one)[end]}"
            for one in SETTINGS
            if one.native in (int, float) and one.name not in others
        )
    )
    with connect(running) as connection:
        assert receive(connection, len(BANNER)) == BANNER
    running.stop()
    assert "Traceback" not in running.log


def test_a_check_is_one_for_the_user_that_runs_it(tmp_path: Path) -> None:
    needs_root("give files away")
    (tmp_path / "server.pem").write_bytes(self_signed_pem())
    (tmp_path / "echod.toml").write_text("listen = 'tls:0:certificate=server.pem'\n")
    command = (SCRIPTS / "twistd", "echod", "--config=echod.toml", "--check-config")
    # Root without its privileges: another user could not even read what is under test.
    ordinary = (tool("setpriv"), "--clear-groups", "--bounding-set=-all", "--inh-caps=-all")
    # As the service's, in a folder where it writes nothing, a pidfile neither.
    tmp_path.chmod(0o755)
    os.chown(tmp_path, 65534, 65534)
    (tmp_path / "server.pem").chmod(0o644)
    assert run(tmp_path, *ordinary, *command).returncode == 0
    assert not (tmp_path / "twistd.pid").exists()
    named = (SCRIPTS / "twistd", f"--pidfile={tmp_path}/x.pid", *command[1:])
    assert "that directory is not writable" in run(tmp_path, *ordinary, *named).stderr
    # A key that it cannot read is good for root alone, and root is told so.
    (tmp_path / "server.pem").chmod(0o600)
    os.chown(tmp_path / "server.pem", 65534, 65534)
    refused = run(tmp_path, *ordinary, *command)
    assert refused.returncode == 1
    assert f"cannot read {tmp_path}/server.pem: Permission denied" in refused.stderr
    assert "is good for root, who can read every file" in run(tmp_path, *command).stdout


def test_a_control_is_checked_before_the_start_and_served_by_a_file(
    daemon: Start, tmp_path: Path
) -> None:
    """Fault 145: A control that any program could use does not start."""
    checked = run(tmp_path, SCRIPTS / "twistd", "echod", "--control", "tcp:0", "--check-config")
    assert checked.returncode == 1
    assert "--control tcp:0 needs a token: give --control-token-file" in checked.stderr
    file = tmp_path / "echod.toml"
    file.write_text('port = 0\ncontrol = "tcp:0"\ncontrol-token-file = "token"\n')
    command = (SCRIPTS / "twistd", "echod", "--config=echod.toml", "--check-config")
    for token, why in ((None, "No such file"), ("short", "the token has 5 characters")):
        if token:
            (tmp_path / "token").write_text(token)
        checked = run(tmp_path, *command)
        assert checked.returncode == 1
        assert f"--control-token-file: {tmp_path}/token: {why}" in checked.stderr
    (tmp_path / "token").write_text("0123456789abcdef")
    assert run(tmp_path, *command).returncode == 0
    (tmp_path / "elsewhere").mkdir()
    running = daemon("--config", str(file), listening=True, options=("--rundir", "elsewhere"))
    port = running.wait_for(r"ControlSite starting on (\d+)")[0]
    asked = (tool("curl"), "--silent", f"http://127.0.0.1:{port}/faults", "--header")
    right = run(tmp_path, *asked, "Authorization: Bearer 0123456789abcdef")
    assert '"faults": []' in right.stdout
    (tmp_path / "token").write_text("fedcba9876543210")
    running.signal(signal.SIGHUP)
    running.wait_for("Reloaded")
    for word, text in (("0123456789abcdef", "Bearer TOKEN"), ("fedcba9876543210", '"faults": []')):
        assert text in run(tmp_path, *asked, f"Authorization: Bearer {word}").stdout


# The error that prevents the start.


@pytest.mark.parametrize(
    "command",
    [
        "twistd -n echod --port={}",
        "twistd -n echod --port=0 --listen=tcp:{}",
        "twist echod --port={}",
    ],
)
def test_a_port_that_is_taken_ends_it_with_one_line(
    tmp_path: Path, taken: int, command: str
) -> None:
    """Fault 16: The daemon ends with exit code 1, and one line says why."""
    program, *arguments = command.format(taken).split()
    ended = run(tmp_path, SCRIPTS / program, *arguments)
    assert ended.returncode == 1
    remedy = "ss -ltnp shows which process has it: stop that, or take another port"
    assert ended.stderr.endswith(f"echod: tcp:{taken}: {TAKEN}; {remedy}\n")
    assert TAKEN in (ended.stdout or ended.stderr)  # the early log of `twist` goes there
    assert "Traceback" not in ended.stdout + ended.stderr
    assert list(tmp_path.glob("*.pid")) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_port_that_is_taken_keeps_it_from_going_into_the_background(
    tmp_path: Path, taken: int, workers: int
) -> None:
    ended = run(
        *(tmp_path, SCRIPTS / "twistd", "--logfile=log", "echod"),
        *(f"--port={taken}", f"--workers={workers}"),
    )
    assert ended.returncode == 1
    # The whole line comes before that of twistd, which cuts it.
    whole, cut, *_ = ended.stderr.splitlines()
    assert whole.startswith(f"echod: tcp:{taken}: {TAKEN}; ")
    assert whole.endswith("or take another port")
    assert cut.startswith("An error has occurred: ")
    assert "Traceback" not in ended.stderr
    # The child fails, and may live a moment longer.
    block_until(lambda: TAKEN in (tmp_path / "log").read_text())
    assert "Traceback" not in (tmp_path / "log").read_text()
    block_until(lambda: list(tmp_path.glob("*.pid")) == [])


@pytest.mark.parametrize("reactor", ["uvloop", "epoll"])
def test_a_start_that_fails_leaves_no_socket_in_the_folder(
    tmp_path: Path, taken: int, reactor: str
) -> None:
    ended = run(
        *(tmp_path, SCRIPTS / "twistd", "-n", f"--reactor={reactor}", "echod"),
        *("--listen=unix:s", "--status=unix:t", "--control=unix:c", f"--port={taken}"),
    )
    assert ended.returncode == 1
    assert f"echod: tcp:{taken}: {TAKEN}" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_when_the_second_port_is_taken_the_first_is_given_up(
    tmp_path: Path, taken: int, free: int
) -> None:
    ended = run(tmp_path, SCRIPTS / "twistd", "-n", "echod", f"--port={free}", f"--port={taken}")
    assert ended.returncode == 1
    with pytest.raises(ConnectionRefusedError):
        connect(free)


REFUSED = {
    "--bogus": "bogus",
    "--port 65536": "--port: '65536' is not a whole number from 0 to 65535",
    "--threads many": "--threads: 'many' is not",
    "--handler nonesuch": "no handler is named 'nonesuch'; installed:",
    "--handler broken:handler": "broken:handler cannot be imported: SyntaxError",
    "--handler raising:handler": "raising:handler cannot be imported: RuntimeError",
    "--handler program:handler": "SystemExit: 2 (/",  # the file in full
    "--handler asking:handler": "its framing is the object",
    "--handler served:talk": "it runs with --concurrency thread-per-connection",
    "--concurrency thread-per-connection --handler served:talk --framing line": (
        "--framing has no effect: served:talk is a connection handler, which reads the socket "
        "itself: leave it out"
    ),
    "--framing lien": "--framing: no framing is named 'lien'; installed: chunk, fixed, length,",
    "--framing length:bites=2": "takes no argument 'bites'; it takes: max_message, bytes, order,",
    "--framing length:bytes=5": "--framing: length: bytes=5 is not one of: 1, 2, 3, 4, 8",
    "--framing fixed": "--framing: fixed needs the argument 'size': fixed:size=...",
    "--framing fixed:size=0": "--framing: fixed: size is a number from 1 to 2147483647, not 0",
    "--framing served:talk": "--framing: served:talk needs the argument 'conn'",
    "--framing line:delimiter=x --delimiter y": "--delimiter and --framing both give delimiter",
    "--concurrency thread-per-connection --handler served:talk --framing netstring": (
        "--framing has no effect: served:talk is a connection handler"
    ),
    "--banner Hi --no-banner": "--banner and --no-banner contradict",
    "--listen carrier-pigeon:8888": "--listen carrier-pigeon:8888",
    "--listen ssl:0:privateKey=none.pem": "--listen ssl:0:privateKey=none.pem",
    "--listen unix:no/such/folder": "no/such: make it first, as in mkdir /",  # the path in full
}


@pytest.fixture(scope="module")
def refusals(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, subprocess.CompletedProcess[str]]:
    """How `twistd -n echod` ends with each of these arguments."""
    directory = tmp_path_factory.mktemp("refusals")
    (directory / "served.py").write_text(
        "import socket\n\ndef talk(conn: socket.socket) -> None: pass\n"
    )
    (directory / "broken.py").write_text("def handler(message:\n")
    (directory / "program.py").write_text("raise SystemExit(2)\n")
    (directory / "asking.py").write_text(
        "import echod\n\n@echod.message_handler(framing=echod.Line())\ndef handler(message): ...\n"
    )
    (directory / "raising.py").write_text("raise RuntimeError('two\\nlines')\n")

    def refusal(arguments: str) -> subprocess.CompletedProcess[str]:
        # One of its own: some come so far that they write it, and others run beside them.
        pidfile = f"--pidfile={list(REFUSED).index(arguments)}.pid"
        return run(directory, SCRIPTS / "twistd", "-n", pidfile, "echod", *arguments.split())

    with ThreadPoolExecutor(3) as executor:
        ended = dict(zip(REFUSED, executor.map(refusal, REFUSED), strict=True))
    assert list(directory.glob("*.pid")) == []
    return ended


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_cannot_start_says_why_in_one_line(
    refusals: dict[str, subprocess.CompletedProcess[str]], arguments: str
) -> None:
    ended = refusals[arguments]
    assert ended.returncode == 1
    assert re.fullmatch(r"echod: [^\n]+\n", ended.stderr), ended.stderr
    assert REFUSED[arguments] in ended.stderr
    assert "Traceback" not in ended.stdout


# Ways to start it.


def test_twist_runs_it_too(tmp_path: Path) -> None:
    with Program(
        [SCRIPTS / "twist", "--log-format=text", "echod", "--port", "0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = ""
        try:
            for line in process.stdout:
                said += line
                if "Socket now listening" in line:
                    break
            assert "Running on the uvloop reactor" in said
            found = re.search(r"starting on (\d+)", said)
            assert found, said
            with connect(int(found[1])) as connection:
                connection.sendall(b"happy\n")
                assert receive(connection, len(BANNER) + 11) == BANNER + b"OK...happy\n"
        finally:
            process.terminate()
        said += process.stdout.read()
        assert process.wait(PATIENCE) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
        assert "Traceback" not in said


@contextlib.contextmanager
def background(directory: Path, *arguments: str) -> Iterator[int]:
    """Run `twistd echod` as a daemon; give its process id; at the end, wait for its end."""
    started = run(
        directory, SCRIPTS / "twistd", "--pidfile=twistd.pid", "--logfile=log", "echod", *arguments
    )
    assert started.returncode == 0, started.stderr
    assert started.stdout + started.stderr == ""
    number = int((directory / "twistd.pid").read_text())
    handle = os.pidfd_open(number)
    try:
        yield number
        assert select.select([handle], [], [], PATIENCE)[0], "it is still there"
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)  # nothing, where the test passed
        os.close(handle)


def test_in_the_background_it_serves_until_sigterm(tmp_path: Path) -> None:
    with background(tmp_path, "--port", "0") as number:
        log = tmp_path / "log"
        block_until(lambda: log.exists() and "Socket now listening" in log.read_text())
        found = re.search(r"starting on (\d+)", log.read_text())
        assert found
        with connect(int(found[1])) as connection:
            connection.sendall(b"happy\n")
            assert receive(connection, len(BANNER) + 11) == BANNER + b"OK...happy\n"
            os.kill(number, signal.SIGTERM)
            assert receive_all(connection) == b""
    assert not (tmp_path / "twistd.pid").exists()
    said = log.read_text()
    assert "Server Shut Down" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("count", [1, 2])
def test_a_start_that_cannot_fork_is_over_and_says_so(tmp_path: Path, count: int) -> None:
    """Fault 222: The command does not wait for a process in the background that cannot be forked;
    one line says why.
    """
    with few_processes(count) as step:
        ended = run(tmp_path, SCRIPTS / "twistd", "echod", "--port", "0", steps=[step])
    assert ended.returncode == 1
    said = "cannot go into the background: Resource temporarily unavailable"
    assert f"echod: {said}\n" in ended.stderr
    assert said in (tmp_path / "twistd.log").read_text()


KILLED = """
import os, signal
from collections.abc import AsyncIterator
from echod import Service, service

@service
async def killed(service: Service) -> AsyncIterator[object]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield None
"""


def test_a_start_that_is_killed_in_the_background_is_over(tmp_path: Path) -> None:
    """Fault 222: The command ends if the process in the background is killed while it starts."""
    (tmp_path / "served.py").write_text(KILLED)
    ended = run(tmp_path, SCRIPTS / "twistd", "echod", "--port", "0", "--handler", "served:killed")
    assert ended.returncode == 1
    assert "An error has occurred" in ended.stderr


# Handlers from the current directory.


HANDLERS = """

import socketserver

from twisted.internet import defer, reactor, task


def shout(message):
    return message.upper()


async def slowly(message):
    await task.deferLater(reactor, 0.001)
    return b"slowly: " + message


def later(message):
    return task.deferLater(reactor, 0.001, lambda: b"later: " + message)


def clientthread(conn):
    conn.send(b"Welcome to the server. Type something and hit enter\\n")
    while True:
        data = conn.recv(1024)
        if not data:
            break
        conn.sendall(b"OK..." + data)
    conn.close()


class Lines(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(b"%s says %s" % (self.client_address[0].encode(), line))


class Talk:
    def __init__(self, *, word="hello"):
        self.word = word.encode()

    def opened(self, client):
        return self.word + b" " + client.peer.split(":")[0].encode() + b"\\n"

    def received(self, message):
        return self.word + b" " + message
"""


SERVED = {
    ("shout", "reactor"): b"HAPPY\n",
    ("shout", "defer-to-thread"): b"HAPPY\n",
    ("slowly", "reactor"): b"slowly: happy\n",
    ("later", "reactor"): b"later: happy\n",
    ("clientthread", "thread-per-connection"): BANNER + b"OK...happy\n",
    ("Lines", "thread-per-connection"): b"127.0.0.1 says happy\n",
    ("Talk:word=hi", "reactor"): b"hi 127.0.0.1\nhi happy\n",
    ("Talk:word=hi", "thread-per-connection"): b"hi 127.0.0.1\nhi happy\n",
}


@pytest.fixture(scope="module")
def servers(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[tuple[str, str], Daemon]]:
    """A daemon for each of these handlers and concurrency models."""
    directory = tmp_path_factory.mktemp("served")
    (directory / "served.py").write_text(HANDLERS)
    with starting(directory) as start:
        yield {
            (handler, model): start("--handler", f"served:{handler}", "--concurrency", model)
            for handler, model in SERVED
        }


@pytest.mark.parametrize(("handler", "model"), SERVED)
def test_a_handler_in_the_current_directory_is_served(
    servers: dict[tuple[str, str], Daemon], handler: str, model: str
) -> None:
    running, expected = servers[handler, model], SERVED[handler, model]
    with connect(running) as connection:
        connection.sendall(b"happy\n")
        assert receive(connection, len(expected)) == expected
        connection.shutdown(socket.SHUT_WR)
        assert receive_all(connection) == b""
    running.wait_for("Disconnected from")
    assert "Traceback" not in running.log


def test_the_log_says_which_kind_of_handler_runs_in_which_model(
    servers: dict[tuple[str, str], Daemon],
) -> None:
    # Neither function says what it is: the model settles it.
    for handler, model, kind in [
        ("shout", "reactor", "message"),
        ("clientthread", "thread-per-connection", "connection"),
    ]:
        servers[handler, model].wait_for(
            f"Serving the {kind} handler served:{handler}, concurrency model {model}$"
        )


# Its imports.

# Modules that a daemon imports only if it is asked for what they do: they take a fifth of a start.
UNASKED = (
    "echod.concurrency.conversation",
    "echod.concurrency.process",
    "echod.concurrency.processes",
    "echod.connections.asyncio_protocol",
    "echod.connections.foreign_protocol",
    "echod.connections.pooled_protocol",
    "echod.connections.program_protocol",
    "echod.connections.socket_protocol",
    "echod.connections.starttls",
    "echod.connections.streams_protocol",
    "echod.connections.traffic",
    "echod.connections.twisted_protocol",
    "echod.connections.waiting",
    "echod.control",
    "echod.faults",
    "echod.handlers.command",
    "echod.handlers.forward",
    "echod.handlers.inspecting",
    "echod.handlers.plugins",
    "echod.handlers.script",
    "echod.journal",
    "echod.listening.badtls",
    "echod.listening.proxy",
    "echod.listening.unix",
    "echod.messages.prefixed",
    "echod.proxy_header",
    "echod.settings.toml_errors",
    "echod.status",
    "echod.tls.connection",
    "echod.tls.context",
    "echod.tls.facts",
    "echod.tls.files",
    "echod.tls.hello",
    "echod.tls.pem",
    "echod.web",
    "echod.workers.child",
    "importlib.metadata",
    "secrets",
    "socketserver",
    "sysconfig",
    "tomllib",
    "twisted.internet.endpoints",
    "twisted.plugins.twisted_core",
)


def imported_by(running: Daemon) -> set[str]:
    """Return the modules that a daemon under `IMPORTTIME` has imported so far."""
    return {line.split("|")[2].strip() for line in running.lines if line.startswith("import time")}


# The command that lets Python tell its imports, each in a line.
IMPORTTIME = (sys.executable, "-X", "importtime")


def test_a_daemon_imports_what_it_is_asked_for_alone(daemon: Start) -> None:
    running = daemon(under=IMPORTTIME)
    with connect(running) as connection:
        assert receive(connection, len(BANNER)) == BANNER
    running.stop()
    imported = imported_by(running)
    assert "echod.connections.direct_protocol" in imported
    assert [name for name in UNASKED if name in imported] == []
    assert [name for name in UNASKED if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize("model", CONCURRENT)
def test_no_client_waits_for_an_import(
    daemon: Start, model: str, tmp_path: Path, certificate: Path
) -> None:
    # Later the daemon may have lost the right to read its own modules, as by `twistd --chroot`.
    running = daemon(
        *("--concurrency", model, "--framing=line", "--listen=tcp:0"),
        f"--listen=tls:0:certificate={certificate}",
        "--listen=proxy:unix:socket",
        under=IMPORTTIME,
    )
    running.wait_for("Socket now listening", 3)
    clear, encrypted = map(int, running.wait_for(r"starting on (\d+)$", 2))
    before = imported_by(running)
    with connect(clear) as connection:
        converse(connection)
    with client_context().wrap_socket(connect(encrypted)) as connection:
        converse(connection)
    for header in (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", LOCAL):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(f"{tmp_path}/socket")
            connection.sendall(header)
            converse(connection)
    running.wait_for("Disconnected from", 3)
    later = imported_by(running) - before
    assert sorted(name for name in later if name.startswith("echod")) == []


def test_no_client_that_is_forwarded_waits_for_an_import(daemon: Start) -> None:
    upstream = daemon()
    running = daemon("--handler", f"forward:to=localhost:{upstream.port}", under=IMPORTTIME)
    running.wait_for("Socket now listening")
    before = imported_by(running)
    with connect(running) as connection:
        assert receive(connection, len(BANNER)) == BANNER
    running.wait_for("Disconnected from")
    assert imported_by(running) - before == set()


def test_each_kind_of_listener_serves_after_a_chroot(
    daemon: Start, certificate: Path, new_root: Path
) -> None:
    running = daemon(
        *("--framing=line", "--listen=tcp6:0", "--listen=unix:/socket"),
        f"--listen=tls:0:certificate={certificate}",
        f"--listen=proxy:tls:0:certificate={certificate}",
        "--listen=badtls:0",
        options=[f"--chroot={new_root}"],
        executed=True,
    )
    _, encrypted, proxied, bad = map(int, running.wait_for(r"starting on (\d+)$", 4))
    header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
    for port, ahead in ((encrypted, b""), (proxied, header), (bad, b"")):
        clear = connect(port)
        clear.sendall(ahead)
        with client_context().wrap_socket(clear) as connection:
            converse(connection)


def test_wrong_certificates_are_served_after_a_chroot(
    daemon: Start, certificate: Path, new_root: Path
) -> None:
    running = daemon(
        *("--framing=line", f"--listen=tls:0:certificate={certificate}"),
        "--fault=wrong-certificate:ca=/ca.pem",
        options=[f"--chroot={new_root}"],
        executed=True,
    )
    with client_context().wrap_socket(connect(running)) as connection:
        converse(connection)
    assert (new_root / "ca.pem").is_file()


def test_no_client_of_a_worker_waits_for_an_import_that_a_first_request_needs(
    daemon: Start,
) -> None:
    """Fault 214: A worker has imported what it needs for that before it serves."""
    running = daemon(
        *("--workers", "1", "--control", "unix:control", "--status", "unix:status"),
        under=IMPORTTIME,
    )
    for module in (r"echod\.control\.site", r"echod\.status\.several"):
        running.wait_for(rf"worker 1\b.*\| +{module}$")


# The PROXY header of a balancer's own connection.
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"


def converse(connection: socket.socket) -> None:
    """Send a line, and get the greeting and the reply."""
    connection.sendall(b"happy\n")
    assert receive(connection, len(BANNER) + 11) == BANNER + b"OK...happy\n"
