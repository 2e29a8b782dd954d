"""The daemon is started, reloaded, stopped and halted at wrong moments, or in wrong ways."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from echod.handlers.builtin import HANDLERS as BUILT_IN
from tests.faults.scale import Scale
from tests.support import programs
from tests.support.certificates import Authority
from tests.support.clients import BANNER, connect, greeted, is_served, receive, receive_all, serves
from tests.support.daemon import MODELS, REACTOR, TERMINATED, TWISTD, Daemon, Start
from tests.support.needs import needs_root
from tests.support.programs import SCRIPTS, Program, Step, block
from tests.support.waiting import PATIENCE, block_until

HANDLERS = """
import time


def sleeping(message):
    print("a handler sleeps")
    time.sleep(float(message))
    return message
"""


@pytest.fixture(autouse=True)
def served(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(HANDLERS)


# A reactor that is held up.


def test_a_handler_that_blocks_the_loop_is_shown_with_its_stack(daemon: Start) -> None:
    """Fault 8: If a handler blocks the event loop for more than a tenth of a second, the log shows
    its stack while it does.
    """
    running = daemon("--handler", "served:sleeping")
    with connect(running) as connection:
        connection.sendall(b"1.5")
        running.wait_for(r"The event loop has been blocked for \d\.\d\d s; it is at:")
        running.wait_for(r"in sleeping$")
        running.wait_for(r"time\.sleep\(float\(message\)\)")
        assert receive(connection, 3) == b"1.5"
    (seconds,) = running.wait_for(r"The event loop continues after (\S+) s")
    assert float(seconds) > 1.3


def test_a_process_that_was_halted_goes_on_and_blames_nobody(daemon: Start, scale: Scale) -> None:
    """Fault 65: Connections survive, all that was sent meanwhile is answered, and the log blames
    no handler for the time.
    """
    running = daemon("--idle-timeout", "0")
    seconds = 30.0 if scale.soak else 1.5
    with greeted(running) as connection:
        running.signal(signal.SIGSTOP)
        began = time.monotonic()
        connection.sendall(b"happy\n")
        time.sleep(seconds)  # how long it is halted, at least
        running.signal(signal.SIGCONT)
        halted = time.monotonic() - began
        assert receive(connection, 11) == b"OK...happy\n"
        (held_up,) = running.wait_for(r"The process did not run for (\S+) s: it was stopped")
        assert float(held_up) == pytest.approx(halted, abs=PATIENCE)
        assert float(held_up) > 1
        assert is_served(connection)
    assert "The event loop has been blocked" not in running.log


@pytest.mark.parametrize(
    ("model", "flag"),
    [*((model, "--idle-timeout") for model in MODELS), ("serial", "--serial-timeout")],
)
def test_a_client_that_has_sent_while_the_process_was_halted_was_not_silent(
    daemon: Start, model: str, flag: str
) -> None:
    """Fault 65: A time-out that passes meanwhile does not disconnect a client that has sent
    something.
    """
    running = daemon("--concurrency", model, flag, "2", "--no-banner")
    with connect(running) as connection, connect(running):
        running.wait_for("Connected with", 2)
        time.sleep(1)  # how long the client is silent before
        running.signal(signal.SIGSTOP)
        connection.sendall(b"happy\n")
        time.sleep(1.5)  # how long it is halted, at least
        running.signal(signal.SIGCONT)
        assert receive(connection, 11) == b"OK...happy\n"


# SIGHUP.


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "echod.toml"


def test_sighup_reloads_the_file(daemon: Start, file: Path) -> None:
    """Fault 59: The daemon reads time-outs, limits and the banner from the file again, also for
    open connections; the log names changes that need a restart.
    """
    file.write_text('banner = "Good morning"\n')
    running = daemon("--config", str(file))
    with connect(running) as connection:
        assert receive(connection, 13) == b"Good morning\n"
        file.write_text('banner = "Good day"\nidle-timeout = 0.2\nthreads = 3\n')
        running.signal(signal.SIGHUP)
        running.wait_for(r"Reloaded; changed: banner, idle-timeout$")
        running.wait_for(r"Ignored until restart: threads$")
        assert receive_all(connection) == b""
    with connect(running) as connection:
        assert receive(connection, 9) == b"Good day\n"
    file.write_text('log-level = "warn"\nthreads = 3\n')
    running.signal(signal.SIGHUP)
    running.wait_for(r"Ignored until restart: threads$", 2)
    # The operator has asked for it, so it is logged at any level.
    running.wait_for(r"Reloaded; changed: .*log-level")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("idle-timeout = 0.2\nidle-timeuot = 3\n", "idle-timeuot"),
        ("idle-timeout = 0.2\nthreads = -1\n", "threads"),
        ("idle-timeout = 0.2\ndrain-spread = 60\n", "--drain-spread (60) must be shorter"),
        ("idle-timeout = \n", "echod.toml"),
        ("idle-timeout = 0.2\nhandler = 'nosuch'\n", "echod.toml: --handler: no handler is"),
        ("idle-timeout = 0.2\nstatus = 'proxy:tcp:0'\n", "echod.toml: --status proxy:tcp:0: no "),
        (None, "No such file"),
    ],
)
def test_a_reload_that_is_refused_changes_nothing(
    daemon: Start, file: Path, content: str | None, why: str
) -> None:
    """Fault 59: If anything in the file is wrong, nothing changes, and one line says why."""
    file.write_text("idle-timeout = 300\n")
    running = daemon("--config", str(file))
    with greeted(running) as connection:
        if content is None:
            file.unlink()
        else:
            file.write_text(content)
        running.signal(signal.SIGHUP)
        (line,) = running.wait_for("Reload refused, nothing has changed: (.*)")
        assert why in line
        file.write_text("idle-timeout = 300\n")
        running.signal(signal.SIGHUP)
        running.wait_for("Reloaded; changed: nothing")
        assert is_served(connection)
    assert "Traceback" not in running.log


def test_a_reload_does_not_wait_for_the_writer_of_a_fifo(daemon: Start, file: Path) -> None:
    """Fault 221: A reload of a FIFO that no process writes to is refused, and clients are served
    again; a device without an end is refused at once.
    """
    file.touch()
    running = daemon("--config", str(file))
    with greeted(running) as connection:
        file.unlink()
        os.mkfifo(file)
        running.signal(signal.SIGHUP)
        running.wait_for("Reload refused, .*echod.toml: its end has not come within 5 s$")
        assert is_served(connection)
        file.unlink()
        file.symlink_to("/dev/zero")
        running.signal(signal.SIGHUP)
        running.wait_for("Reload refused, .*echod.toml: it is longer than 16 MiB$")
        assert is_served(connection)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_settings_from_a_pipe_are_not_lost_at_a_reload(daemon: Start, workers: str) -> None:
    """Fault 221: Settings may come from a pipe, as `<(command)` has it; a reload, which finds
    nothing there, is refused.
    """
    reading, writing = os.pipe()
    os.write(writing, b'banner = "Good day"\n')
    os.close(writing)
    running = daemon("--config", f"/dev/fd/{reading}", "--workers", workers, pass_fds=[reading])
    os.close(reading)
    for _ in range(2):
        with connect(running) as connection:
            assert receive(connection, 9) == b"Good day\n"
        running.signal(signal.SIGHUP)
        running.wait_for("Reload refused, .*: nothing was written to this pipe$")


def test_sighup_never_kills(daemon: Start, scale: Scale) -> None:
    """Fault 59: 100 of them in a row, under load and without a file to read, harm no client."""
    running = daemon()
    with greeted(running) as connection:
        for _ in scale(ci=100, soak=10_000):
            running.signal(signal.SIGHUP)
            assert is_served(connection)
        running.wait_for("Reloaded; changed: nothing")
    assert running.process.poll() is None


# Certificates.


def name_of(context: ssl.SSLContext, port: int) -> str:
    """Return the common name of the certificate that a new connection gets."""
    with connect(port) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
        certificate = secure.getpeercert()
        assert certificate is not None
        subject: Any = certificate["subject"]
        return str(subject[0][0][1])


def test_a_certificate_is_renewed(daemon: Start, tmp_path: Path) -> None:
    """Fault 66: On SIGHUP the daemon uses a new certificate, and open connections are not
    affected. If one certificate cannot be read, all stay as they are, and one line says why.
    """
    authority = Authority("an authority")
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    files = [tmp_path / "one.pem", tmp_path / "two.pem"]
    for file in files:
        file.write_bytes(authority.issue("old"))
    running = daemon(*(f"--listen=tls:0:certificate={file}" for file in files))
    running.wait_for("Socket now listening", 2)
    ports = [int(port) for port in running.wait_for(r"starting on (\d+)", 2)]

    def names() -> list[str]:
        return [name_of(context, port) for port in ports]

    assert names() == ["old", "old"]
    plain = connect(ports[0])
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as kept:
        assert receive(kept, len(BANNER)) == BANNER
        files[0].write_bytes(authority.issue("new"))
        files[1].write_bytes(authority.issue("new")[:-100])
        running.signal(signal.SIGHUP)
        (why,) = running.wait_for("Reload refused, nothing has changed: (.*)")
        assert str(files[1]) in why
        assert names() == ["old", "old"]
        files[1].write_bytes(authority.issue("new"))
        running.signal(signal.SIGHUP)
        running.wait_for("Reloaded; changed")
        running.wait_for(r"two\.pem expires in 0 days, on \d{4}-\d\d-\d\d", 2)
        assert names() == ["new", "new"]
        assert is_served(kept)
        files[0].unlink()
        running.signal(signal.SIGHUP)
        running.wait_for(r"Reload refused, .*one\.pem: No such file")
        assert is_served(kept)


# SIGTERM.


def test_connections_are_closed_a_few_at_a_time(daemon: Start) -> None:
    """Fault 60: A gradual drain serves each client until its turn comes; a second signal ends the
    drain at once.
    """
    running = daemon("--drain-timeout", "60", "--drain-spread", "50")
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(greeted(running)) for _ in range(50)]
        began = time.monotonic()
        running.signal()
        running.wait_for("Draining, for .*; open connections: 50")
        running.wait_for("Disconnected from .*: drained", 2)
        assert sum(is_still_served(connection) for connection in connections) >= 20
        running.signal()
        running.wait()
        assert time.monotonic() - began < 45
    assert running.process.returncode in TERMINATED


def is_still_served(connection: socket.socket) -> bool:
    with contextlib.suppress(OSError):
        return is_served(connection)
    return False


class Starting:
    """A daemon that has just been started, with a pidfile."""

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        command: Sequence[str | Path] = (),
        port: Sequence[str] = ("--port=0",),
        executed: bool = False,
        steps: Sequence[Step] = (),
    ) -> None:
        self.pidfile = directory / "twistd.pid"
        self.log = directory / "log"
        twistd = command or [SCRIPTS / "twistd"]
        with self.log.open("wb") as log:
            self.process: Program[bytes] = Program(
                [*twistd, "-n", *REACTOR, "echod", *arguments, *port],
                executed=executed,
                steps=steps,
                cwd=directory,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Starting:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(PATIENCE)

    def has_said(self, what: str) -> bool:
        return what in self.log.read_text()


MOMENTS = {
    "it has a pidfile": lambda starting: starting.pidfile.exists(),
    "it has a log": lambda starting: starting.has_said("starting up"),
    "it has a socket": lambda starting: starting.has_said("Socket created"),
    "it listens": lambda starting: starting.has_said("Socket now listening"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_two_signals_during_the_start_end_it(tmp_path: Path, moment: str) -> None:
    """Fault 61: Two signals at any moment of the start end the daemon at once, without a traceback
    or a pidfile.
    """
    starting = Starting(tmp_path)
    block_until(lambda: MOMENTS[moment](starting))
    ended_in_good_order(starting)


def test_two_signals_at_any_moment_of_the_start_end_it(tmp_path: Path, scale: Scale) -> None:
    """Fault 61: Two signals at any moment of the start end the daemon at once, without a traceback
    or a pidfile.
    """
    began = time.monotonic()
    starting = Starting(tmp_path, executed=True)
    block_until(lambda: starting.has_said("Socket now listening"))
    needed = time.monotonic() - began
    ended_in_good_order(starting)
    for _ in scale(ci=4, soak=500):
        starting = Starting(tmp_path, executed=True)
        time.sleep(random.uniform(0.0, 1.2 * needed))  # the moment
        ended_in_good_order(starting)


def ended_in_good_order(starting: Starting) -> None:
    """Send two signals; check how it ends."""
    with contextlib.suppress(ProcessLookupError):
        starting.process.terminate()
        starting.process.terminate()
    assert starting.process.wait(PATIENCE) in TERMINATED
    assert not starting.has_said("Traceback")
    assert not starting.pidfile.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_handler_is_imported_ends_it_silently(
    tmp_path: Path, number: int
) -> None:
    """Fault 61: While the daemon is being set up, a signal ends it at once and silently."""
    (tmp_path / "slow.py").write_text(
        "print('importing', flush=True)\nimport time\ntime.sleep(60)"
    )
    starting = Starting(tmp_path, "--handler", "slow:handler")
    block_until(lambda: starting.has_said("importing"))
    starting.process.send_signal(number)
    assert starting.process.wait(PATIENCE) == -number
    assert starting.log.read_text().strip().endswith("importing")
    assert not starting.pidfile.exists()


SIGNALLED_IMPORT = """
import os, signal, sys


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            for number in {numbers}:
                if not (child := os.fork()):
                    sys.meta_path.remove(self)
                    said = os.open(str(number), os.O_WRONLY | os.O_CREAT)
                    os.dup2(said, 1)
                    os.dup2(said, 2)
                    os.kill(os.getpid(), number)
                    return
                print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            os._exit(0)


sys.meta_path.insert(0, Finder())
sys.argv = ["twistd", "-n", "echod", "--check-config"]
from twisted.scripts.twistd import run
run()
"""


def signalled_import(directory: Path, module: str, *numbers: int) -> list[tuple[int, str]]:
    """Send each signal to a fork of twistd of its own, when `module` is imported.

    Returns:
        The exit status and the output of each.
    """
    program = SIGNALLED_IMPORT.format(module=module, numbers=[*map(int, numbers)])
    said = subprocess.check_output(
        [sys.executable, "-c", program], cwd=directory, text=True, timeout=PATIENCE
    )
    outputs = [directory.joinpath(str(int(number))).read_text() for number in numbers]
    return [*zip(map(int, said.split()), outputs, strict=True)]


@pytest.mark.parametrize("module", ["echod", "echod.daemon.process", "uvloop"])
def test_a_signal_while_the_daemon_itself_is_imported_does_no_more_than_it_says(
    tmp_path: Path, module: str
) -> None:
    """Fault 61: While the daemon's own code is imported, SIGTERM and Ctrl-C end it silently, and
    SIGHUP does nothing.
    """
    ending = signal.SIGTERM, signal.SIGINT
    *ended, (code, said) = signalled_import(tmp_path, module, *ending, signal.SIGHUP)
    assert ended == [(-number, "") for number in ending]
    assert (code, said.count("\n")) == (0, 1)
    assert said.startswith("echod: the configuration is good")


def test_sighup_during_the_start_does_no_harm(tmp_path: Path) -> None:
    """Fault 59: SIGHUP during the start does not end the daemon."""
    (tmp_path / "served.py").write_text("print('importing', flush=True)\ndef handler(m): pass\n")
    starting = Starting(tmp_path, "--handler", "served:handler")
    block_until(lambda: starting.has_said("importing"))
    while not starting.has_said("Socket now listening"):
        starting.process.send_signal(signal.SIGHUP)
    starting.process.send_signal(signal.SIGHUP)
    block_until(lambda: starting.has_said("Reloaded; changed: nothing"))
    ended_in_good_order(starting)


def test_sighup_that_is_ignored_before_python_starts_kills_at_no_time(
    tmp_path: Path, scale: Scale
) -> None:
    """Fault 84: If the shell has run `trap '' HUP`, no SIGHUP ends the daemon, at any moment; once
    the daemon serves, SIGHUP reloads.
    """
    command = ["sh", "-c", "trap '' HUP; echo trapped; exec \"$@\"", "sh", SCRIPTS / "twistd"]
    for _ in scale(ci=1, soak=150):
        with Starting(tmp_path, command=command) as starting:
            block_until(lambda: starting.has_said("trapped"))
            while not starting.has_said("Socket now listening"):
                starting.process.send_signal(signal.SIGHUP)
                time.sleep(0.005)
                assert starting.process.poll() is None
            starting.process.send_signal(signal.SIGHUP)
            block_until(lambda: starting.has_said("Reloaded; changed: nothing"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_the_parent_had_blocked_arrive(
    daemon: Start, tmp_path: Path, number: int
) -> None:
    """Fault 84: Signals that the daemon handles reach it even if its parent had blocked them."""
    running = daemon("--concurrency=thread-per-connection", steps=[block()])
    with connect(running) as connection:  # SIGURG wakes its thread
        assert receive(connection, len(BANNER)) == BANNER
        running.signal(signal.SIGHUP)
        running.wait_for("Reloaded; changed: nothing")
        running.signal(signal.SIGUSR1)
        running.signal(number)
        assert receive_all(connection) == b""
    running.wait()
    assert running.process.returncode in (-number, 128 + number)


def test_a_signal_that_the_parent_had_blocked_ends_the_start(tmp_path: Path) -> None:
    """Fault 84: Signals that the daemon handles reach it even if its parent had blocked them."""
    (tmp_path / "slow.py").write_text(
        "print('importing', flush=True)\nimport time\ntime.sleep(60)"
    )
    with Starting(tmp_path, "--handler", "slow:handler", steps=[block()]) as starting:
        block_until(lambda: starting.has_said("importing"))
        starting.process.terminate()
        assert starting.process.wait(PATIENCE) == -signal.SIGTERM


SWALLOWED = """
import os, signal, sys
from twisted import plugin

found = plugin.getPlugins

def look(*arguments):
    for each in found(*arguments):
        if getattr(each, "tapname", "") == "echod":
            os.kill(os.getpid(), signal.SIGINT)  # as where Twisted imports the next plugin
        yield each

plugin.getPlugins = look
from twisted.application import app
app.ServerOptions._getPlugins = staticmethod(look)
sys.argv = ["twistd", "-n", "echod", "--check-config"]
from twisted.scripts.twistd import run
run()
"""


def test_ctrl_c_while_twisted_imports_plugins_is_not_swallowed(tmp_path: Path) -> None:
    """Fault 84: Ctrl-C ends the start as soon as Twisted has found echod."""
    ended = programs.run(tmp_path, sys.executable, "-c", SWALLOWED)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


def test_ctrl_c_that_twisted_swallows_with_an_earlier_plugin_ends_the_start_too(
    tmp_path: Path,
) -> None:
    """Fault 84: If Twisted swallows Ctrl-C while it imports other plugins, the start ends as soon
    as Twisted imports echod's.
    """
    plugins = tmp_path / "twisted" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "aaa_first.py").write_text("raise KeyboardInterrupt\n")
    here = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = programs.run(tmp_path, *TWISTD, "echod", "--port=0", env=here)
    assert ended.returncode == -signal.SIGINT


# Set-ups whose danger does not show.


def run(directory: Path, *options: str) -> str:
    """Run twistd with these options, which it has to refuse; return its output."""
    ended = programs.run(directory, SCRIPTS / "twistd", "-n", *options, "echod", "--port=0")
    assert ended.returncode == 1, ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr
    return ended.stderr


def test_a_pidfile_that_is_a_symbolic_link_is_not_written_to(tmp_path: Path) -> None:
    """Fault 50: The daemon refuses a pidfile that is a symbolic link, and does not touch its
    target.
    """
    (tmp_path / "twistd.pid").symlink_to(tmp_path / "precious")
    assert "is a symbolic link" in run(tmp_path)
    assert not (tmp_path / "precious").exists()


def test_a_pidfile_that_is_no_file_is_refused_and_stays(tmp_path: Path) -> None:
    """Fault 86: A device, a FIFO or a folder is refused as a pidfile, and stays."""
    needs_root("make a device")
    null = tmp_path / "null"
    os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mkfifo(tmp_path / "fifo")
    for path in (null, tmp_path / "fifo", tmp_path):
        assert f"--pidfile {path} is not a file: name another, or none" in run(
            tmp_path, f"--pidfile={path}"
        )
    assert null.is_char_device()


def test_a_group_alone_is_refused(tmp_path: Path) -> None:
    """Fault 51: `--gid` without `--uid` is refused: it would leave the daemon running as root."""
    needs_root("start a daemon as root")
    assert "--gid without --uid" in run(tmp_path, "--gid=65534")


def test_root_is_named_in_the_log_and_somebody_else_is_not(daemon: Start) -> None:
    """Fault 49: The log says it if handlers run as root."""
    needs_root("start a daemon as root")
    daemon().wait_for("Handlers run as root")
    running = daemon(options=["--uid=65534"])
    assert serves(running)
    running.wait_for("set uid/gid 65534/65534")
    running.stop()
    assert "Handlers run as root" not in running.log


PLUGIN = "import sys\nprint('the plugin of the current directory', file=sys.stderr)\n"


def test_a_plugin_in_the_current_directory_is_not_looked_at(tmp_path: Path, daemon: Start) -> None:
    """Fault 52: The daemon takes no plugins from the current directory. A handler that you name
    may be there, but no file there can replace an installed module.
    """
    plugins = tmp_path / "twisted" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "somebody.py").write_text(PLUGIN)
    (tmp_path / "socketserver.py").write_text(PLUGIN)
    running = daemon("--handler", "served:sleeping")
    with connect(running) as connection:
        connection.sendall(b"0")
        assert receive(connection, 1) == b"0"
    assert "the plugin of the current directory" not in running.log


def test_a_current_directory_that_others_can_write_is_named(tmp_path: Path, daemon: Start) -> None:
    """Fault 52: The log says it if other users can write the files that the daemon imports."""
    tmp_path.chmod(0o777)
    daemon().wait_for(f"{tmp_path} is writable by other users, and echod imports code from it")


def test_what_is_installed_in_the_current_directory_offers_nothing(
    tmp_path: Path, daemon: Start
) -> None:
    """Fault 52: Package metadata in the current directory offers no handlers."""
    installed = tmp_path / "somebody-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        "[echod.handlers]\necho = served:sleeping\nsleeping = served:sleeping\n"
    )
    assert serves(daemon("--handler", "echo"))
    refused = daemon("--handler", "sleeping")
    refused.wait_for(f"no handler is named 'sleeping'; installed: {', '.join(sorted(BUILT_IN))}")
    refused.wait()
    assert refused.process.returncode == 1


PATCHES = """
import _thread, socket, time

def sleeping(message):
    return message

_thread.start_new_thread = lambda *_: None
time.sleep = lambda seconds: None
"""


def test_a_module_that_exchanges_threads_is_refused(tmp_path: Path) -> None:
    """Fault 85: The daemon does not start, and one line names the replaced functions."""
    (tmp_path / "patching.py").write_text(PATCHES)
    ended = programs.run(tmp_path, *TWISTD, "echod", "--handler", "patching:sleeping")
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        "echod: --handler: patching:sleeping: its module has replaced _thread.start_new_thread, "
        "time.sleep of Python's library"
    )
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("content", ["1", "", "many"])
def test_a_pidfile_of_a_process_that_is_not_twistd_is_stale(tmp_path: Path, content: str) -> None:
    """Fault 86: The daemon removes a pidfile of a process that is not twistd, and logs a line."""
    (tmp_path / "twistd.pid").write_text(content)
    starting = Starting(tmp_path)
    block_until(lambda: starting.has_said("Socket now listening"))
    assert starting.has_said(f"Removing the pidfile {tmp_path}/twistd.pid: ")
    assert starting.pidfile.read_text() == str(starting.process.pid)
    ended_in_good_order(starting)


def test_of_two_daemons_with_one_pidfile_the_second_does_not_start(tmp_path: Path) -> None:
    """Fault 86: Of two daemons with one pidfile the second does not start, from any folder."""
    (tmp_path / "run").mkdir()
    command = [SCRIPTS / "twistd", "--rundir=run"]
    # The second knows the first by its command line, which a forked process has not.
    with Starting(tmp_path, command=command, executed=True) as starting:
        block_until(lambda: starting.has_said("Socket now listening"))
        assert (tmp_path / "run" / "twistd.pid").read_text() == str(starting.process.pid)
        assert "Another twistd server is running" in run(tmp_path, "--rundir=run")


def test_a_user_without_an_entry_is_refused(tmp_path: Path) -> None:
    """Fault 51: The daemon refuses a user without an entry in the user database, in one line."""
    needs_root("start a daemon as somebody else")
    assert "--uid 12345: there is no user with this id" in run(tmp_path, "--uid=12345")


def test_paths_are_of_the_folder_in_which_twistd_was_started(
    tmp_path: Path, certificate: Path
) -> None:
    """Fault 87: Paths of sockets, certificates and the settings file are relative to the folder in
    which twistd is started, and SIGHUP finds them again.
    """
    (tmp_path / "run").mkdir()
    (tmp_path / "pem").write_bytes(certificate.read_bytes())
    (tmp_path / "echod.toml").write_text(
        'listen = ["tcp:0:interface=127.0.0.1", "unix:s", "tls:unix:t:certificate=pem"]\n'
    )
    command = [SCRIPTS / "twistd", "--rundir=run", "--logfile=kept"]
    with Starting(tmp_path, "--config=echod.toml", command=command, port=()) as starting:
        kept = tmp_path / "kept"
        block_until(lambda: kept.exists() and kept.read_text().count("now listening") == 3)
        assert (tmp_path / "s").is_socket()
        assert (tmp_path / "t").is_socket()
        starting.process.send_signal(signal.SIGHUP)
        block_until(lambda: "Reload" in kept.read_text())
        assert "Reloaded; changed: nothing" in kept.read_text()
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "t").exists()


def test_a_cache_of_plugins_that_others_can_write_is_named(tmp_path: Path) -> None:
    """Fault 53: The log says it if other users can write `dropin.cache`."""
    plugins = tmp_path / "twisted" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "dropin.cache").touch()
    (plugins / "dropin.cache").chmod(0o666)
    running = Daemon(
        "--port=0",
        cwd=Path("/"),
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(tmp_path)},
    )
    try:
        running.wait_for(r"twisted/plugins/dropin\.cache is writable by other users")
        with connect(running) as connection:
            assert receive(connection, len(BANNER)) == BANNER
    finally:
        running.stop()
