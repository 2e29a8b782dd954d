"""Fork a process for each request; it runs a script of Python, as if it had been executed.

Most of the processor time of a daemon's start goes into its imports. This process has imported all
that before, and its children go on from there. `tests.support.programs` starts it and says what a
child has to be like. This process has one thread, no reactor, and handles no signal.

Each connection to the socket, whose descriptor is the argument, is one request: JSON, with the
child's descriptors. The answer is the child's process id.

A daemon with `--workers` or `--reload` has such a process of its own, forked before it has run any
code: workers are children of the daemon, and as new as executed ones.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import io
import json
import os
import pkgutil
import re
import resource
import select
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# They are what a daemon has imported once it serves, also with a status, a control or faults on
# purpose. Not the reactor, whose import makes it, nor echod's plugin, which handles signals from
# its import on.
_IMPORTS = (
    "argparse",
    "asyncio",
    "ssl",
    "unittest",
    "uvloop",
    "echod.cli.serve",
    "echod.connections.direct_protocol",
    "echod.connections.pooled_protocol",
    "echod.connections.socket_protocol",
    "echod.control.server",
    "echod.entry",
    "echod.faults.grammar",
    "echod.reactor",
    "echod.status.server",
    "echod.tls.connection",
    "echod.workers.process",
    "echod.workers.start",
    "twisted.cred.strcred",
    "twisted.internet.epollreactor",
    "twisted.internet.process",
    "twisted.scripts._twistd_unix",
    "twisted.scripts.twistd",
    "twisted.trial.itrial",
    "twisted.words.iwords",
)

# Descriptors from here on are for moving others about.
_SPARE = 256

# A request has no more descriptors than this.
_MOST_DESCRIPTORS = 64

_PR_SET_CHILD_SUBREAPER = 36

_PATIENCE = 60.0

_libc = ctypes.CDLL(None, use_errno=True)


def ask(address: str, request: Mapping[str, Any], descriptors: Mapping[int, int]) -> int:
    """Let the process at `address` fork a child; return the child's process id.

    The child becomes one of this process, which has to be its ancestor. Only one thread may ask
    at a time.

    Args:
        address: of its socket.
        request: what the child is to be.
        descriptors: those of this process that it has, by the numbers that they have there.
    """
    data = json.dumps({**request, "umask": _umask(), "descriptors": list(descriptors)}).encode()
    passed = array.array("i", descriptors.values())
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_PATIENCE)
        connection.connect(address)
        # An orphan becomes a child of this process, but only for this moment.
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            connection.sendmsg(
                [len(data).to_bytes(4, "big")],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)],
            )
            connection.sendall(data)
            answer = connection.recv(16)
        finally:
            _libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    assert answer, "the process that forks has ended"
    return int(answer)


def _umask() -> int:
    found = re.search(r"^Umask:\s*(\d+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1], 8)


def main(listening: socket.socket, parent: int) -> dict[str, Any] | None:
    """Serve requests until the parent has gone; in a child, return its request."""
    # Ctrl-C in a terminal reaches this process too. It is for the tests and the daemons.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    poll = select.poll()
    poll.register(listening, select.POLLIN)
    poll.register(parent, select.POLLIN)
    while True:
        if any(descriptor == parent for descriptor, _ in poll.poll()):
            return None
        connection, _ = listening.accept()
        with connection:
            request = _receive(connection)
            if request is None:
                continue
            number = _fork(request["ignores_interrupt"])
            if not number:
                connection.recv(1)  # until `ask` is over: this child's orphans are not the tests'
                return request
            for descriptor in request["descriptors"].values():
                os.close(descriptor)
            connection.sendall(b"%d" % number)


def _receive(connection: socket.socket) -> dict[str, Any] | None:
    """Return a request, with `descriptors` from the numbers wanted to those received."""
    data, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(_MOST_DESCRIPTORS * 4))
    if len(data) < 4:
        return None
    received = array.array("i")
    for _, _, content in ancillary:
        received.frombytes(content)
    size = int.from_bytes(data, "big")
    with connection.makefile("rb") as file:
        request = json.loads(file.read(size))
    request["descriptors"] = dict(zip(request["descriptors"], received, strict=True))
    return request


def _fork(ignores_interrupt: bool) -> int:
    """Fork a process whose parent ends at once, so that the tests become its parent.

    Returns:
        Its process id; 0 in the process itself.
    """
    reading, writing = os.pipe()
    end, held = os.pipe()
    between = os.fork()
    if not between:
        number = os.fork()
        if number:
            os.write(writing, b"%d" % number)
            os._exit(0)
        os.close(held)
        os.read(end, 1)  # the process between has gone: from here on the tests are the parent
        signal.signal(
            signal.SIGINT, signal.SIG_IGN if ignores_interrupt else signal.default_int_handler
        )
        return 0  # `_take_descriptors` closes the pipes
    for descriptor in (writing, end, held):
        os.close(descriptor)
    os.waitpid(between, 0)
    number = int(os.read(reading, 16))
    os.close(reading)
    return number


def prepare(steps: Iterable[Sequence[Any]]) -> None:
    """Do what a process has to do before it becomes a program, each step with its arguments."""
    for name, *arguments in steps:
        _STEPS[name](*arguments)


def _join(group: str) -> None:
    """Join a control group, which is a folder."""
    with open(f"{group}/cgroup.procs", "w", encoding="ascii") as file:  # noqa: PTH123 - as above
        file.write("0")


def _enter(*namespaces: str) -> None:
    """Enter namespaces, given by their files in /proc."""
    # All at first: within the first of them these files may be out of reach.
    opened = [os.open(path, os.O_RDONLY) for path in namespaces]
    for descriptor in opened:
        if _libc.setns(descriptor, 0):
            raise OSError(ctypes.get_errno(), "cannot enter a namespace")
        os.close(descriptor)


# `limit`: a resource, and its two limits. `close`: a descriptor. `block`: all signals.
_STEPS: dict[str, Callable[..., object]] = {
    "limit": lambda what, *limits: resource.setrlimit(what, limits),
    "join": _join,
    "enter": _enter,
    "close": os.close,
    "block": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()),
}


def _become(request: dict[str, Any]) -> None:
    """Give this process the descriptors, the environment and the folder of its request."""
    _take_descriptors(request["descriptors"])
    prepare(request["steps"])
    if request["session"]:
        os.setsid()
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    sys.argv[:] = request["arguments"]
    buffered = not request["environment"].get("PYTHONUNBUFFERED")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = _stream(number, getattr(sys, f"__{name}__"), buffered)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _take_descriptors(wanted: dict[int, int]) -> None:
    """Let these numbers be these descriptors, and close all others."""
    moved = {
        int(target): fcntl.fcntl(source, fcntl.F_DUPFD, _SPARE)
        for target, source in wanted.items()
    }
    os.closerange(0, _SPARE)
    for target, source in moved.items():
        os.dup2(source, target)
    os.closerange(_SPARE, _SPARE + len(moved))


def _stream(descriptor: int, like: io.TextIOWrapper, buffered: bool) -> io.TextIOWrapper | None:
    """Return a standard stream such as Python opens: None if its descriptor is closed.

    Args:
        descriptor: its number.
        like: the one that Python has opened here.
        buffered: whether it is to be buffered, if it is for writing.
    """
    try:
        raw = io.FileIO(descriptor, "r" if descriptor == 0 else "w", closefd=False)
    except OSError:
        return None
    raw.name = like.name  # type: ignore[misc]
    binary: Any = raw
    if descriptor == 0:
        binary = io.BufferedReader(raw)
    elif buffered:
        binary = io.BufferedWriter(raw)
    text = io.TextIOWrapper(
        binary,
        like.encoding,
        like.errors,
        line_buffering=buffered and (raw.isatty() or descriptor == 2),
        write_through=not buffered,
    )
    text.mode = like.mode  # type: ignore[misc]
    return text


# Signals that a test may send to a whole process group: the process that forks workers outlives
# them.
_TO_A_GROUP = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}


def _fork_workers_of(daemon: dict[str, Any]) -> dict[str, Any]:
    """Let this daemon fork its workers from another process, as new as this one is now.

    Returns:
        What this process is to be: the daemon, or a worker.
    """
    address = f"\0echod-tests-workers-{os.getpid()}"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(16)
    watched = os.pidfd_open(os.getpid())
    if os.fork():
        listening.close()
        os.close(watched)
        _fork_instead_of_spawn(address)
        return daemon
    # Of the daemon's own descriptors it keeps none: the daemon closes them at its end.
    nothing = os.open(os.devnull, os.O_RDWR)
    _take_descriptors({**dict.fromkeys(range(3), nothing), 3: listening.detach(), 4: watched})
    for number in _TO_A_GROUP:
        signal.signal(number, signal.SIG_IGN)
    worker = main(socket.socket(fileno=3), 4)
    if worker is None:
        os._exit(0)
    for ignored in signal.valid_signals() - _IGNORED_BY_PYTHON:
        if signal.getsignal(ignored) == signal.SIG_IGN:
            signal.signal(ignored, signal.SIG_DFL)  # as Twisted does before it executes a program
    _become(worker)
    return worker


def _fork_instead_of_spawn(address: str) -> None:
    """Let Twisted fork workers from the process at `address`, and spawn all else."""
    process: Any = importlib.import_module("twisted.internet.process").Process
    code = importlib.import_module("echod.workers.child")._PROGRAM
    spawn = process._trySpawnInsteadOfFork
    here, user = os.getpid(), os.geteuid()

    def fork(
        self: Any, path: str, uid: int, gid: int, executable: str, args: Any, env: Any, more: Any
    ) -> bool:
        # In the background, or as another user, the daemon is another process than this one.
        if code not in args or (os.getpid(), os.geteuid()) != (here, user):
            return bool(spawn(self, path, uid, gid, executable, args, env, more))
        worker = {
            "code": code,
            "arguments": ["-c", *args[args.index(code) + 1 :]],
            "environment": env,
            "cwd": os.getcwd(),
            "session": False,
            "steps": [["limit", what, *resource.getrlimit(what)] for what in _LIMITS],
            "ignores_interrupt": False,
        }
        self.pid = ask(address, worker, more["fdmap"])
        self.status = -1
        return True

    process._trySpawnInsteadOfFork = fork


# The limits that a daemon changes.
_LIMITS = (resource.RLIMIT_NOFILE,)


def _import() -> None:
    # `python FILE` has put the folder of FILE first. A script has its own folder there.
    sys.path[0] = os.path.dirname(sys.executable)  # noqa: PTH120 - as Python has it, a str
    for name in _IMPORTS:
        importlib.import_module(name)
    plugins = importlib.import_module("twisted.plugins")
    for module in pkgutil.iter_modules(plugins.__path__):
        if module.name.startswith("twisted_"):
            importlib.import_module(f"twisted.plugins.{module.name}")
    assert "twisted.internet.reactor" not in sys.modules
    gc.collect()
    gc.freeze()  # a collection in a child would copy the pages of all that


def _keep_frozen() -> None:
    """Let what has been frozen here stay so, and let nothing be frozen from here on.

    At its end a daemon thaws all objects and looks at each, for files to flush. To look at those
    of this process would copy their pages, which takes as long as all else that a daemon does.
    """
    gc.freeze = gc.unfreeze = lambda: None


def _exit_code_of(code: types.CodeType, module: types.ModuleType) -> int:
    """Run a program; return the exit code that Python has for its end."""
    try:
        exec(code, module.__dict__)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1
    return 0


def _end(code: int) -> None:
    """End this process as the interpreter does, but for the deletion of all modules.

    That would take longer than all that a daemon of a test does.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError, ValueError):
            stream.flush()
    # It calls what the daemon has left to libc. Here no other thread runs any more.
    ctypes.PyDLL(None).exit(code & 0xFF)


if __name__ == "__main__":
    _import()
    _request = main(
        socket.socket(fileno=int(sys.argv[1])),
        os.pidfd_open(int(sys.argv[2])),
    )
    if _request is None:
        os._exit(0)
    _become(_request)
    _keep_frozen()
    if {"--workers", "--reload"}.intersection(_request["arguments"]):
        _request = _fork_workers_of(_request)
    # The program's module takes the place of this one.
    _main = types.ModuleType("__main__")
    if (_text := _request.get("code")) is None:
        _main.__file__ = _script = _request["script"]
        with open(_script, encoding="utf-8") as _file:  # noqa: PTH123 - see above
            _text = _file.read()
    sys.modules["__main__"] = _main
    _end(_exit_code_of(compile(_text, _main.__dict__.get("__file__", "<string>"), "exec"), _main))
