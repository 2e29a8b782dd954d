"""Programs that tests start; those that import Twisted start in a fifth of the time.

`Program` is `subprocess.Popen`, except for `twistd`, `twist` and `echod` of this environment: it
forks them from a process that has imported what they import (`tests/support/fork_server.py`). All
else is as if the system had executed them: the arguments, the environment, the folder, the
descriptors, the signals, the exit code. They are children of the tests' own process.

`Program` executes a command that differs before Python runs: below another program, or with
another `PYTHON...` or `LC_...` in its environment. Pass `executed` for a test that is about the
imports, about a signal during them, or about the interpreter's end: a forked program deletes no
module there. Nor does it freeze objects for the garbage collector, or thaw any. Pass `steps`
instead of a program such as prlimit, which does them and then becomes the command. A daemon that
is forked forks its workers.
"""

from __future__ import annotations

import atexit
import inspect
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, AnyStr

from tests.support.fork_server import ask, prepare
from tests.support.waiting import PATIENCE

SCRIPTS = Path(sys.executable).parent

_FORKED = {str(SCRIPTS / name) for name in ("twistd", "twist", "echod")}

# Python, the C library and the loader read these before a script runs, and Twisted reads
# LISTEN_FDS when it is imported.
_EARLY = (
    *("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "GLIBC_", "COVERAGE_", "OPENSSL_", "SSL_"),
    "LISTEN_",
)

# The environment of the process that forks. A test may have changed that of this process since.
_ENVIRONMENT = dict(os.environ)

# The child does what these say itself.
_LATE = ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")

# Of `subprocess`: those that change how a process begins. `start_new_session` is provided for.
_PLAIN = {
    "executable": None,
    "preexec_fn": None,
    "shell": False,
    "gid": None,
    "gids": None,
    "uid": None,
    "umask": -1,
    "process_group": -1,
}


# The name of a step, and its arguments; `fork_server` takes it.
Step = tuple[str | int, ...]


def limit(what: int, soft: int, hard: int | None = None) -> Step:
    """The step that sets a limit, as prlimit does: `what` is one of `resource.RLIMIT_...`."""
    return "limit", what, soft, soft if hard is None else hard


def join(group: Path) -> Step:
    """The step into a control group."""
    return "join", str(group)


def enter(*namespaces: Path | str) -> Step:
    """The step into namespaces, by their files in /proc, as nsenter takes it."""
    return "enter", *map(str, namespaces)


def close(descriptor: int) -> Step:
    """The step that closes a descriptor, such as a standard stream."""
    return "close", descriptor


def block() -> Step:
    """The step that blocks all signals."""
    return ("block",)


class Program(subprocess.Popen[AnyStr]):
    """A program that runs."""

    def __init__(
        self, *arguments: Any, executed: bool = False, steps: Sequence[Step] = (), **options: Any
    ) -> None:
        """Start it.

        Args:
            arguments: as of `subprocess.Popen`.
            executed: whether it is executed in any case.
            steps: the steps that the process takes before: see `limit` and those below.
            options: as of `subprocess.Popen`.
        """
        self._executed = executed
        self._steps = steps
        super().__init__(*arguments, **options)

    def _execute_child(self, *arguments: Any) -> None:  # type: ignore[misc] # a private method
        given = _BEGINS.bind(self, *arguments).arguments
        command = [os.fspath(word) for word in given["args"]]
        environment = dict(os.environ if given["env"] is None else given["env"])
        if self._executed or not can_be_forked(command, environment, given):
            if self._steps:
                assert given["preexec_fn"] is None
                given["preexec_fn"] = partial(prepare, self._steps)
                arguments = tuple(given.values())[1:]
            return super()._execute_child(*arguments)  # type: ignore[misc]
        pipes = [
            given[name]
            for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        ]
        ends = (given["p2cread"], given["c2pwrite"], given["errwrite"])
        streams = {number: number if end == -1 else end for number, end in enumerate(ends)}
        self.pid = _server().fork(
            command,
            environment,
            cwd=os.path.abspath(given["cwd"] or "."),  # noqa: PTH100 - as given
            descriptors=streams | {number: number for number in given["pass_fds"]},
            session=given["start_new_session"],
            steps=[*_other_limit(), *self._steps],
        )
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]
        return None


_NONE: Mapping[str, Any] = {}

_BEGINS = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]


def can_be_forked(
    command: Sequence[str], environment: Mapping[str, str], given: Mapping[str, Any] = _NONE
) -> bool:
    """Return whether a program can be forked.

    Args:
        command: the program, and its arguments.
        environment: its environment.
        given: those options of `subprocess.Popen` that are given.
    """
    return (
        sys.platform == "linux"
        and command[0] in _FORKED
        and all(given.get(name, plain) == plain for name, plain in _PLAIN.items())
        and _early(environment) == _early(_ENVIRONMENT)
        and all(_is_open(number) for number in range(3))
    )


def _early(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_EARLY) and name not in _LATE
    }


_DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)


def _other_limit() -> list[Step]:
    """Return the step to the limit of descriptors of this process, if that has changed."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    return [] if limits == _DESCRIPTORS else [limit(resource.RLIMIT_NOFILE, *limits)]


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


class _Server:
    """The process that forks; it ends when this one does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # The kernel keeps the name until the process has gone: nothing is left on a disk.
        self._address = f"\0echod-tests-{os.getpid()}"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self._address)
            listening.listen(16)
            number = listening.fileno()
            script = Path(__file__).parent / "fork_server.py"
            self._process = subprocess.Popen(
                [sys.executable, script, str(number), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[number],
                env=_ENVIRONMENT,
                cwd=SCRIPTS.parent,
            )
        atexit.register(self._end)

    @property
    def pid(self) -> int:
        return self._process.pid

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()

    def fork(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        cwd: str,
        descriptors: Mapping[int, int],
        session: bool,
        steps: Sequence[Step],
    ) -> int:
        """Return the process id of a new child of this process that runs a script.

        Args:
            command: the script, and its arguments.
            environment: the child's.
            cwd: the folder that it runs in.
            descriptors: those of this process that it has, by the numbers that they have there.
            session: whether it leads a session of its own.
            steps: the steps that it takes before.
        """
        request = {
            "script": command[0],
            "arguments": list(command),
            "environment": dict(environment),
            "cwd": cwd,
            "session": session,
            "steps": steps,
            "ignores_interrupt": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        }
        with self._lock:
            return ask(self._address, request, descriptors)


_servers: dict[int, _Server] = {}
_starting = threading.Lock()


def _server() -> _Server:
    """Return the process that forks for this one, which may itself have been forked."""
    number = os.getpid()
    with _starting:
        if number not in _servers:
            _servers[number] = _Server()
        return _servers[number]


def children() -> set[int]:
    """Return the children of this process, ended ones too, without the process that forks."""
    threads = Path("/proc/self/task").glob("*/children")
    server = _servers.get(os.getpid())
    own = {server.pid} if server is not None else set()
    return {int(pid) for each in threads for pid in each.read_text().split()} - own


def run(
    directory: Path, *command: str | Path, executed: bool = False, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command, and wait for its end.

    Args:
        directory: the folder that it runs in.
        command: the program and its arguments.
        executed: see `Program`.
        options: further ones of `subprocess.run`.
    """
    streams = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
    timeout = options.pop("timeout", PATIENCE)
    program: Program[str] = Program(
        command, executed=executed, cwd=directory, text=True, **{**streams, **options}
    )
    with program:
        try:
            said = program.communicate(timeout=timeout)
        except BaseException:
            program.kill()
            raise
    return subprocess.CompletedProcess(command, program.returncode, *said)
