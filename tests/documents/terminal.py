"""Run the commands of a page as its reader does: in a shell, beside a server, on port 8888.

Each page has a network of its own, where port 8888 is free even if a server runs on this machine.
Where no network can be made, other ports are put into the commands, and taken out of the output.

`twistd` and `echod` spend half a second of processor time on their imports, and pages run them a
hundred times. So a command that is nothing but such a program is forked from a process that has
imported all that (`tests.support.programs`). Its shell executes `_WAITS` in place of the program:
this stops, with the arguments, the environment and the folder that the shell has given it. The
forked process gets these, and enters the page's network. As part of a longer command, as in
`twistd ... | jq`, the program is executed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from tests.support.layers import layers
from tests.support.needs import missing, needs_root
from tests.support.programs import SCRIPTS, Program, can_be_forked, enter
from tests.support.waiting import PATIENCE

# The ports that pages name: each alone, or a series of which a page names the ends.
SERIES = (("8888",), ("8443",), ("9464",), tuple(map(str, range(7000, 7010))))
PORTS = tuple(itertools.chain.from_iterable(SERIES))

# Folders of the machine that a page of its installation changes.
FOLDERS = ("/etc", "/opt", "/run", "/usr/local", "/var")

# Where a page's reader is.
HOME = "/home/me"

# A network that is made within this one has a table of connections that is read in no time: else
# it is that of the machine, with room for a million.
_SMALL_TABLES = "(echo 256 > /proc/sys/net/ipv4/tcp_child_ehash_entries) 2> /dev/null;"

# A line of such a table: its number, the address and port of this side, the other side, the state.
_LISTENING = re.compile(r"^ *\d+: \w+:(\w+) \w+:\w+ 0A ", re.MULTILINE)

# Commands that say no port have to, where it is to be another one.
_PORT_OF_MAKE = re.compile(r"\bmake run\b")
_PORT_OF_ECHOD = re.compile(r"\b(twistd( -\S+)* echod\b|echod serve \S+)")
_CONFIG = re.compile(r" --config (\S+)")
_PLACES = re.compile(r"--(listen|port|(check|print)-config)\b")

# A command that is one program, which can be forked; it may set variables before.
_ALONE = re.compile(r"((?:\w+=\S* )*)((?:\S*/)?(?:twistd|echod)(?: [^|&;<>()`\n]*)?)")

# It says to a program that it is to wait.
_FORKED = "ECHOD_PAGE_FORKED"

# How long a server that listens may go on to start, in seconds: later it works for its clients.
SETTLES = 2.0

# In place of a program: it waits until the program is forked, or else executes it.
_WAITS = f"""\
#!/bin/sh
if [ "${_FORKED}" ]; then unset {_FORKED}; kill -STOP $$; fi
exec {{program}} "$@"
"""

# These change the shell itself, so they come again before each later command.
_OF_THE_SHELL = re.compile(r"(cd|\.|source|export|alias) |[A-Z_]+=('[^']*'|\S*)$|\w+\(\) ")


class Network:
    """A network namespace, or else other ports.

    Attributes:
        within: the command that runs a command in this network.
        ports: the ports that stand for those of the pages.
        namespaces: what makes the network, by its files in /proc; in the order to enter them.
    """

    def __init__(
        self,
        keeper: int | None,
        within: list[str],
        ports: dict[str, str],
        namespaces: Sequence[str] = (),
    ) -> None:
        self.within = within
        self.ports = ports
        self.namespaces = namespaces
        self._keeper = keeper
        self._tables = Path(f"/proc/{keeper or 'self'}/net")

    def has(self, process: Path) -> bool:
        """Return whether a process, given by its folder in /proc, is in this network."""
        if self._keeper is None or process.name == str(self._keeper):
            return False
        kept = Path(f"/proc/{self._keeper}/ns/net")
        return process.joinpath("ns", "net").readlink() == kept.readlink()

    def listening(self, directory: Path) -> set[str]:
        """Return the TCP ports and the UNIX sockets on which programs listen.

        Without a network of its own, a page's are the ports put in, and paths from its folder.
        """
        found = set()
        for table in ("tcp", "tcp6"):
            # Of those that listen: the table of this machine may have thousands of others.
            for local in _LISTENING.findall(self._tables.joinpath(table).read_text()):
                port = str(int(local, 16))
                if self.within or port in self.ports.values():
                    found.add(port)
        for line in self._tables.joinpath("unix").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "00010000" and len(fields) == 8:
                path = fields[7]
                if path.startswith("@echod-tests-"):
                    continue  # there a process forks a daemon's workers
                if self.within or path.startswith(str(directory)) or path[0] not in "/@":
                    found.add(f"{path} {fields[6]}")
        return found


@contextlib.contextmanager
def network(layer: Path | None = None) -> Iterator[Network]:
    """Make a network, with its loopback interface up, if this machine permits it.

    Args:
        layer: a folder; with it, what is written to `FOLDERS` is visible here only. Only
            root can make that.
    """
    up = "PATH=$PATH:/usr/sbin:/sbin; ip link set lo up && echo up && exec sleep infinity"
    ways = [
        (["--net"], {"net": "--net"}),
        (["--user", "--map-root-user", "--net"], {"user": "--user", "net": "--net"}),
    ]
    if layer is not None:
        needs_root("give a page folders of its own, such as /etc")
        up = " && ".join([*layers(layer, FOLDERS), up])
        ways = [(["--net", "--mount"], {"net": "--net", "mnt": "--mount"})]
    said = "unshare or nsenter is not installed"
    if not shutil.which("unshare") or not shutil.which("nsenter"):
        ways = []
    for unshare, kinds in ways:
        with subprocess.Popen(
            ["unshare", *unshare, "sh", "-c", f"{_SMALL_TABLES} exec unshare --net sh -c '{up}'"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as keeper:
            assert keeper.stdout is not None
            try:
                said = keeper.stdout.readline()
                if said == "up\n":
                    enter = [f"--target={keeper.pid}", "--preserve-credentials", *kinds.values()]
                    yield Network(
                        keeper.pid,
                        ["nsenter", *enter, "--"],
                        {port: port for port in PORTS},
                        [f"/proc/{keeper.pid}/ns/{kind}" for kind in kinds],
                    )
                    return
            finally:
                keeper.kill()
    if layer is not None:
        # Without them, the commands would change the machine itself.
        missing(f"no folders can be put over others here: {said}")
    with contextlib.ExitStack() as stack:
        free = [stack.enter_context(_free_ports(len(each))) for each in SERIES]
        ports = dict(zip(PORTS, map(str, itertools.chain.from_iterable(free)), strict=True))
    yield Network(None, [], ports)


@contextlib.contextmanager
def _free_ports(count: int) -> Iterator[Sequence[int]]:
    """Find `count` ports that follow one another, and keep them from others."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            ports = range(port := first.getsockname()[1], port + count)
            try:
                for each in ports[1:]:
                    stack.enter_context(socket.create_server(("127.0.0.1", each)))
            except (OSError, OverflowError):  # it is taken, or above the last one
                continue
            yield ports
            return


class Command:
    """A command that was started.

    Attributes:
        text: as the page has it.
        process: its process, which leads a group.
    """

    def __init__(
        self,
        text: str,
        process: subprocess.Popen[bytes],
        output: Path,
        shown: Callable[[str], str],
    ) -> None:
        self.text = text
        self.process = process
        self._output = output
        self._shown = shown

    @property
    def printed(self) -> list[str]:
        """The lines that it has printed, errors too."""
        text = self._output.read_text(errors="backslashreplace")
        return self._shown(text).rstrip().splitlines()

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def type(self, line: str) -> None:
        """Give it a line of input."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()


class Terminal:
    """The terminals of a page's reader: one with a server, and others for clients.

    Attributes:
        directory: where the reader is.
        patience: how long the reader waits for anything, in seconds.
        server: the command that serves, if one does.
        forks: whether it forks programs that are a command by themselves.
    """

    def __init__(
        self,
        directory: Path,
        scratch: Path,
        among: Network,
        patience: float,
        programs: Path = SCRIPTS,
    ) -> None:
        self.directory = directory
        self.patience = patience
        self.server: Command | None = None
        self.forks = bool(among.within)
        self._network = among
        self._scratch = scratch
        self._shell = [f"cd {shlex.quote(str(directory))}"]
        self._started: list[Command] = []
        self._mark = f"ECHOD_PAGE={uuid.uuid4()}"
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "VIRTUAL_ENV")
        } | {
            "HOME": str(scratch),
            "LC_ALL": "C.UTF-8",
            "NSTAT_HISTORY": str(scratch / ".nstat"),
            "PATH": f"{programs}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "PYTHONUNBUFFERED": "1",
        }
        # curl shows how far it is where its output is no terminal.
        (scratch / ".curlrc").write_text("silent\nshow-error\n")

    def until(self, condition: Callable[[], object], patience: float | None = None) -> bool:
        """Wait until `condition()` holds; return whether it does in time.

        Args:
            condition: returns whether it holds.
            patience: for how long, in seconds; None: as long as the reader waits.
        """
        deadline = time.monotonic() + (self.patience if patience is None else patience)
        # The table of this machine's connections may be large.
        pause = 0.005 if self._network.within else 0.05
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(1.5 * pause, 0.1)  # looking costs the page's programs their processor
        return True

    def run(self, text: str, *, serves: bool = True, executed: bool = False) -> Command:
        """Run a command to its end, or until it serves.

        Args:
            text: the command.
            serves: whether it may be a server; another one may leave a server behind, as
                `haproxy -D` does.
            executed: whether its programs are executed in any case.

        Raises:
            TimeoutError: it does neither.
        """
        before = self._network.listening(self.directory)
        command = (None if executed else self._start_alone(text)) or self.start(text)
        if not self.until(
            lambda: command.ended or (serves and self._network.listening(self.directory) - before)
        ):
            self.interrupt(command)
            raise TimeoutError(f"it has neither ended nor begun to listen in {self.patience} s")
        if not command.ended:
            # It may have further sockets, which come right behind the first.
            self.until(self._is_at_rest, SETTLES)
            self.server = command
        elif _OF_THE_SHELL.match(text):
            self._shell.append(text)
        return command

    def start(self, text: str, stdin: int = subprocess.DEVNULL) -> Command:
        """Start a command, in a shell in which those that change a shell have run."""
        with self._output().open("wb") as output:
            return self._started_one(text, self._in_shell(text, stdin, output), output)

    def _start_alone(self, text: str) -> Command | None:
        """Fork a command that is one program; return None where it is to be executed."""
        alone = _ALONE.fullmatch(text)
        if alone is None or not self.forks:
            return None
        variables, program = alone.groups()
        with self._output().open("wb") as output:
            waiting = self._in_shell(
                f"{variables} {_FORKED}=1 exec {program}", subprocess.DEVNULL, output
            )
            process: subprocess.Popen[bytes] = waiting
            if self.until(lambda: _has_begun(waiting)):
                process = self._forked(waiting, output) or waiting
            return self._started_one(text, process, output)

    def _forked(
        self, waiting: subprocess.Popen[bytes], output: IO[bytes]
    ) -> Program[bytes] | None:
        """Fork the program that waits to be executed; if it can only be executed, let it be."""
        if _state(waiting) != "T":
            return None
        process = Path(f"/proc/{waiting.pid}")
        _shell, path, *arguments = _words(process / "cmdline")
        environment = dict(word.split("=", 1) for word in _words(process / "environ"))
        del environment[_FORKED]
        command = [str(SCRIPTS / Path(path).name), *arguments]
        if not can_be_forked(command, environment):
            waiting.send_signal(signal.SIGCONT)
            return None
        program: Program[bytes] = Program(
            command,
            cwd=process.joinpath("cwd").readlink(),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            steps=[enter(*self._network.namespaces)],
        )
        waiting.kill()
        waiting.wait()
        return program

    def _in_shell(self, text: str, stdin: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
        name, _, value = self._mark.partition("=")
        return subprocess.Popen(
            [*self._network.within, "bash", "-c", self.real("\n".join([*self._shell, text]))],
            cwd=self.directory,
            env={**self._environment, name: value},
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _output(self) -> Path:
        """Return the file for the output of the next command."""
        return self._scratch / f"output-{len(self._started)}"

    def _started_one(
        self, text: str, process: subprocess.Popen[bytes], output: IO[bytes]
    ) -> Command:
        self._started.append(Command(text, process, Path(output.name), self._shown))
        return self._started[-1]

    def real(self, text: str) -> str:
        """Return a text of the page with the ports that there are."""
        if not self._network.within:
            text = _PORT_OF_MAKE.sub(r"\g<0> PORT=8888", text)
            if not _PLACES.search(text) and not self._listens_by_a_file(text):
                text = _PORT_OF_ECHOD.sub(r"\g<0> --port 8888", text)
        return re.sub(rf"\b({'|'.join(PORTS)})\b", lambda port: self._network.ports[port[0]], text)

    def _listens_by_a_file(self, text: str) -> bool:
        """Return whether a command's file of settings says where to listen."""
        file = _CONFIG.search(text)
        path = self.directory / file[1] if file else None
        return path is not None and path.is_file() and "listen = " in path.read_text()

    def _shown(self, text: str) -> str:
        for port, other in self._network.ports.items():
            text = text.replace(other, port)
        return text.replace(str(self.directory), f"{HOME}/echod")

    def stop_server(self) -> None:
        """Press Ctrl-C where the server runs.

        Raises:
            TimeoutError: that does not end it.
        """
        server, self.server = self.server, None
        if server is not None:
            self.interrupt(server)

    def interrupt(self, command: Command) -> None:
        """Press Ctrl-C where a command runs.

        Raises:
            TimeoutError: that does not end it.
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.process.pid, signal.SIGINT)
        if not self.until(lambda: command.ended):
            os.killpg(command.process.pid, signal.SIGKILL)
            raise TimeoutError(f"Ctrl-C has not ended {command.text}")

    def close(self) -> None:
        """End everything that was started, and all that came of it."""
        for command in self._started:
            if command.process.stdin is not None:
                command.process.stdin.close()
        while left := self._left():
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.005)
        for command in self._started:
            command.process.wait()

    def _is_at_rest(self) -> bool:
        """Return whether all of this page's processes wait for something."""
        return not any(_state_of(process) in ("R", "D") for process in self._left())

    def _left(self) -> list[int]:
        """Return this page's processes: they have its mark in their environment, or its network.

        A process that was forked shows the environment in which the one that forks was executed.
        """
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self._mark.encode() in process.joinpath(
                    "environ"
                ).read_bytes() or self._network.has(process):
                    found.append(int(process.name))
        return found


def write_programs(directory: Path) -> None:
    """Put programs into a folder, each of which waits to be forked where it is alone."""
    for name in ("twistd", "echod"):
        path = directory / name
        path.unlink(missing_ok=True)  # it may be a link
        path.write_text(_WAITS.format(program=shlex.quote(str(SCRIPTS / name))))
        path.chmod(0o755)


def _has_begun(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a shell has executed its program, which may wait or may have ended."""
    if _state(process) in ("T", "Z"):
        return True
    words = _words(Path(f"/proc/{process.pid}/cmdline"))
    return bool(words) and "python" in words[0]  # there are none for a moment


def _state(process: subprocess.Popen[bytes]) -> str:
    """Return the letter of the state of a process: T if it has stopped, Z if it has ended."""
    return "Z" if process.poll() is not None else _state_of(process.pid)


def _state_of(process: int) -> str:
    """Return the letter of the state of a process that has this number; Z if there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def _words(path: Path) -> list[str]:
    """Return what a file of /proc has, each ended by a zero."""
    return os.fsdecode(path.read_bytes()).split("\0")[:-1]


@contextlib.contextmanager
def terminal(
    directory: Path,
    scratch: Path,
    patience: float = PATIENCE,
    layer: Path | None = None,
    programs: Path = SCRIPTS,
) -> Iterator[Terminal]:
    """Give a terminal for as long as this lasts.

    Args:
        directory: where its reader is.
        scratch: a folder for what is needed beside.
        patience: how long its reader waits for anything, in seconds.
        layer: see `network`.
        programs: the folder of the programs that come first.
    """
    with network(layer) as among:
        made = Terminal(directory, scratch, among, patience, programs)
        try:
            yield made
        finally:
            made.close()
