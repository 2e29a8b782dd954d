from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from echod.cli.serve import twistd_arguments
from echod.settings.definitions import SETTINGS
from tests.support.clients import connect, receive_all
from tests.support.daemon import REACTOR
from tests.support.needs import needs_root, not_here
from tests.support.programs import SCRIPTS, Program, run
from tests.support.waiting import PATIENCE, block_until

ECHOD = SCRIPTS / "echod"
GREETING = "def greet(name: bytes) -> bytes:\n    return b'Good day, ' + name + b'!'\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with nothing but a handler."""
    (tmp_path / "greeting.py").write_text(GREETING)
    return tmp_path


@contextlib.contextmanager
def serving(
    folder: Path, *arguments: str, command: tuple[str | Path, ...] = (ECHOD,)
) -> Iterator[tuple[subprocess.Popen[str], list[str], int]]:
    """Run `echod serve`; give its process, the lines of its log until it listens, and its port."""
    with Program(
        [*command, "serve", *arguments, *REACTOR],
        cwd=folder,
        # Modules of the folder leave their bytecode there, as with any program.
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        try:
            for line in process.stdout:
                lines.append(line)
                if "Socket now listening" in line:
                    break
            found = re.search(r"starting on (\d+)", "".join(lines))
            assert found, lines
            yield process, lines, int(found[1])
            lines += process.stdout
            process.wait(PATIENCE)
        finally:
            process.kill()


def ask(port: int, words: bytes) -> bytes:
    with connect(port) as connection:
        connection.sendall(words)
        connection.shutdown(socket.SHUT_WR)
        return receive_all(connection)


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        (["echod", "serve", "greeting:greet"], "Give echod serve --uid"),
        (["twist", "echod", "--handler=greeting:greet"], "Run it as another user"),
        (["twistd", "-n", "--pidfile=", "echod", "--handler=greeting:greet"], "twistd with --uid"),
    ],
)
def test_each_program_says_how_it_is_run_as_another_user(
    folder: Path, command: list[str], remedy: str
) -> None:
    needs_root("serve as root")
    with Program(
        [SCRIPTS / command[0], *command[1:], "--port=0"],
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            said = next(line for line in process.stdout if "Handlers run as root" in line)
        finally:
            process.terminate()
            process.stdout.read()
    assert remedy in said


# Ctrl-C is SIGINT. For a process that a signal has ended, a shell reports 128 and its number.
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_handler_of_the_folder_is_served_until_a_signal_and_leaves_nothing_behind(
    folder: Path, number: signal.Signals
) -> None:
    with serving(
        folder, "greeting:greet", "--framing=line", "--listen", "tcp:0:interface=127.0.0.1"
    ) as (process, lines, port):
        assert ask(port, b"Ada\nGrace\n") == b"Good day, Ada!\nGood day, Grace!\n"
        process.send_signal(number)
    assert process.returncode in (-number, 128 + number)
    assert "Stopped" in "".join(lines)
    assert "Traceback" not in "".join(lines)
    assert [each.name for each in folder.iterdir()] == ["greeting.py"]


@pytest.mark.parametrize("module", ["echod.cli", "echod.daemon.process", "uvloop"])
def test_ctrl_c_during_the_start_ends_it_without_a_traceback(folder: Path, module: str) -> None:
    interrupted = (
        "import signal, sys\n"
        "class Hook:\n"
        "    def find_spec(name, *_):\n"
        f"        if name == {module!r}: signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Hook)\n"
        "sys.argv = ['echod', 'serve', 'echo', '--port=0']\n"
        "from echod.__main__ import main\n"
        "main()\n"
    )
    ended = run(folder, sys.executable, "-c", interrupted)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


def test_the_handler_may_stand_behind_the_flags_and_take_arguments(folder: Path) -> None:
    with serving(folder, "--port", "0", "--no-banner", "echo:prefix=> ") as (process, _, port):
        assert ask(port, b"happy") == b"> happy"
        process.terminate()


def test_the_module_is_the_command_too(folder: Path) -> None:
    (folder / "json.py").write_text("raise SystemExit('a file of the folder comes last')\n")
    command = (sys.executable, "-m", "echod")
    with serving(folder, "greeting:greet", "--port=0", command=command) as (process, _, port):
        assert ask(port, b"Ada") == b"Good day, Ada!"
        process.terminate()
    listed = run(folder, *command, "handlers")
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout == run(folder, ECHOD, "handlers").stdout


def test_a_package_of_the_user_that_hides_twisted_is_named(folder: Path) -> None:
    package = folder / "twisted" / "__init__.py"
    package.parent.mkdir()
    package.touch()
    hidden = {**os.environ, "PYTHONPATH": str(folder)}
    for command in ((ECHOD, "serve", "echo"), (ECHOD, "handlers")):
        ended = run(folder, *command, env=hidden)
        assert ended.returncode == 1
        assert ended.stderr == (
            f"echod: '{package}' hides Twisted: remove that file, "
            "or take its folder from PYTHONPATH\n"
        )
    # The current folder comes last, and so hides nothing.
    assert run(folder, sys.executable, "-m", "echod", "handlers").returncode == 0


def test_the_log_can_go_to_a_file(folder: Path) -> None:
    log = folder / "served.log"
    process: Program[str] = Program(
        [ECHOD, "serve", "greeting:greet", "--port=0", "--logfile", log, *REACTOR],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        block_until(lambda: log.exists() and "Socket now listening" in log.read_text())
        process.terminate()
        assert process.communicate(timeout=PATIENCE)[0] == ""
    finally:
        process.kill()
        process.wait()
    assert "Stopped" in log.read_text()


def test_the_reactor_can_be_chosen(folder: Path) -> None:
    if REACTOR:
        not_here("another reactor is chosen for all tests")
    with serving(folder, "echo", "--port=0", "--reactor=poll") as (process, lines, port):
        assert "Running on the poll reactor" in "".join(lines)
        assert ask(port, b"happy").endswith(b"OK...happy")
        process.terminate()


def test_a_program_is_served_as_another_user(folder: Path) -> None:
    needs_root("become another user")
    with serving(folder, "exec:command=id -u", "--port=0", "--uid=65534", "--gid=65534") as (
        process,
        _,
        port,
    ):
        assert ask(port, b"") == b"65534\n"
        process.terminate()


REFUSED = {
    "": "name the handler, as in: echod serve module:function",
    "--port=0": "name the handler, as in: echod serve module:function",
    "greeting": "no handler is named 'greeting'",
    "greeting.py": "greeting.py is in this folder: give greeting:FUNCTION",
    "greeting:great": "module 'greeting' has no attribute 'great'",
    "greeting:greet other": "unexpected argument 'other': 'greeting:greet' is served",
    "echo --handler=count": "the handler is named twice: echo and --handler count",
    "echo --prot=1": "there is no option --prot; did you mean --port?",
    "echo --fram=line": "there is no option --fram; did you mean --framing?",
    "--hel": "no option --hel; the options that begin with it are: --help, --help-reactors",
    "echo --logfil=x": "there is no option --logfil; did you mean --logfile?",
    "echo --port": "option --port requires argument",
    "echo --port=http": "--port: 'http' is not a whole number",
    "echo -n": "-n is an option of twistd, and stands before echod: twistd -n echod",
    "echo -p 8888": "there is no option -p; it is given as --port 8888",
    "echo --user=nobody": "no option --user; it is given as --uid USER, an option of twistd",
    "echo --daemonize": "no option --daemonize; it is given as twistd echod, without -n",
    "echo --pidfile=a": "--pidfile is an option of twistd",
    "echo --reactor=none": "The specified reactor does not exist: 'none'",
    "--config=missing": "No such file or directory",
    "greeting.py --reload": "greeting.py is in this folder: give greeting:FUNCTION",
    "echo --reload --listen=badtls:0": "badtls:0 and --reload: each worker would have",
    "echo --reload --workers=2 --concurrency=serial": "--workers contradicts --concurrency serial",
    "echo --uid=nosuch": "--uid 'nosuch': there is no such user",
    "echo --uid=0 --gid=nosuch": "--gid 'nosuch': there is no such group",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_cannot_be_served_is_one_line_that_says_what_would_do(
    folder: Path, arguments: str
) -> None:
    ended = run(folder, ECHOD, "serve", *arguments.split())
    assert ended.returncode == 1
    assert re.fullmatch(r"echod: [^\n]+\n", ended.stderr), ended.stderr
    assert REFUSED[arguments] in ended.stderr
    assert ended.stdout == ""
    assert "twistd echod --help" not in ended.stderr


def test_reloading_is_no_setting(folder: Path) -> None:
    plain, reloading = (
        run(folder, ECHOD, "serve", "echo", *flags, "--print-config").stdout
        for flags in ((), ("--reload",))
    )
    assert plain == reloading != ""


def test_only_this_command_reloads(folder: Path) -> None:
    ended = run(folder, SCRIPTS / "twistd", "-n", "--pidfile=", "echod", "--reload")
    assert ended.returncode == 1
    assert ended.stderr.startswith("echod: --reload is for development: echod serve has it")


def test_a_configuration_can_be_checked(folder: Path) -> None:
    (folder / "echod.toml").write_text('handler = "greeting:greet"\n')
    for arguments in (["greeting:greet"], ["--config=echod.toml"], ["greeting:greet", "--reload"]):
        ended = run(folder, ECHOD, "serve", *arguments, "--check-config")
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.startswith("echod: the configuration is good")


def test_help_says_what_it_is_and_lists_each_flag_in_its_group(folder: Path) -> None:
    shown = run(folder, ECHOD, "serve", "--help").stdout
    assert run(folder, ECHOD, "serve", "-h").stdout == shown
    of_twistd = run(folder, SCRIPTS / "twistd", "echod", "--help").stdout
    assert shown.startswith("Usage: echod serve HANDLER [options]\n")
    assert "`twistd -n --pidfile= echod --handler HANDLER ...`" in " ".join(shown.split())
    groups = of_twistd[of_twistd.index("Listening:") :]
    assert groups in shown
    assert all(f"  {one.flag}" in groups for one in SETTINGS)
    assert "  --reactor=NAME" in shown
    assert "  --logfile=FILE" in shown
    assert "  --uid=USER" in shown
    assert "  --gid=GROUP" in shown
    assert "  --reload\n" in shown
    assert "--reload" not in of_twistd
    assert "daemon" not in " ".join(re.findall("--[a-z-]+", shown))


def test_the_command_lists_it_and_does_not_import_the_daemon_otherwise(folder: Path) -> None:
    assert "serve " in run(folder, ECHOD, "--help").stdout
    asked = (
        "import sys; from echod.cli import main; main(['handlers']); "
        "print([name for name in sys.modules if name.startswith(('echod.daemon', 'echod.set'))])"
    )
    assert run(folder, sys.executable, "-c", asked).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("m:f --port 8888", "-n --pidfile= echod --handler m:f --port 8888"),
        ("--port=8888 m:f", "-n --pidfile= echod --handler m:f --port 8888"),
        (
            "m:f --no-banner --reactor=epoll",
            "-n --pidfile= --reactor epoll echod --handler m:f --no-banner",
        ),
        ("--logfile=a -- m:f", "-n --pidfile= --logfile a echod --handler m:f"),
        ("m:f --uid=0 --gid 0", "-n --pidfile= --uid 0 --gid 0 echod --handler m:f"),
        ("--config a", "-n --pidfile= echod --config a"),
        ("m:f --reload", "-n --pidfile= echod --handler m:f --reload"),
        ("--handler m:f", "-n --pidfile= echod --handler m:f"),
        ("--help", "-n --pidfile= echod --help"),
        ("--help-reactors", "-n --pidfile= --help-reactors echod"),
    ],
)
def test_it_is_twistd_in_the_foreground(given: str, meant: str) -> None:
    assert twistd_arguments(given.split()) == meant.split()
