"""Every private name of Twisted and of the standard library that echod uses: each is still there.

A release of theirs may remove one without notice. Then one of these tests fails, and says what the
name was used for.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import pytest

import echod

# Where each is, and what for.
PRIVATES = {
    "os:_exit": "end the process in the thread that insists",
    "sys:_current_frames": "show where a thread is",
    "subprocess:_args_from_interpreter_flags": "start workers with the same flags of Python",
    "ssl:_ASN1Object": "name the object identifiers in a certificate",
    "socket:socket._accept": "accept without a socket object for each client",
    "socket:socket._real_close": "know when a handler's thread has let go of its socket",
    "_socket:socket": "a socket object without the methods in Python",
    "_thread:start_new_thread": "see whether a module has exchanged threads; count as running",
    "asyncio:_get_running_loop": "see whether a loop runs, without an exception",
    "asyncio:_set_running_loop": "talk without the loop that runs the test",
    "asyncio:_enter_task": "lend a task to a coroutine; documented for who extends asyncio",
    "asyncio:_leave_task": "take it back",
    "asyncio:Task._callbacks": "see whether other code waits for a lent task",
    "asyncio:Task._log_destroy_pending": "end with an idle task",
    "asyncio:Future._asyncio_future_blocking": "hand a task a future as await does",
    "twisted.application.app:_exitWithSignal": "see that ending by a signal goes by _exitSignal",
    "twisted.internet.base:ReactorBase._exitSignal": "end the interpreter before the signal",
    "twisted.internet.base:ReactorBase._signalsFactory": "leave SIGCHLD alone",
    "twisted.internet.base:ReactorBase._moveCallLaterSooner": "arm the loop's timer anew",
    "twisted.internet.posixbase:PosixReactorBase._supportedAddressFamilies": "refuse others",
    "twisted.internet.base:BaseConnector._makeTransport": "connect by uvloop's transports",
    "twisted.internet.tcp:BaseClient._connectDone": "hand a connected socket to uvloop",
    "twisted.internet.tcp:Port._fromListeningDescriptor": "adopt sockets that systemd passes",
    "twisted.internet.tcp:_reservedFD": "listen on a passed UNIX socket as Twisted does",
    "twisted.internet._newtls:ConnectionMixin": "Twisted's own TLS over uvloop's transports",
    "twisted.internet.abstract:FileDescriptor._getLogPrefix": "name connections in the log",
    "asyncio.protocols:_feed_data_to_buffered_proto": "fill the buffers of protocols over TLS",
    "twisted.web.server:Request._handleStar": "answer OPTIONS * on the status",
    "twisted.web.http:HTTPChannel._respondToBadRequestAndDisconnect": "a status error in words",
}

# Set on instances only: in whose source, and what for.
SET = {
    "_startedBefore": ("twisted.internet.base:ReactorBase", "see that a module has run it"),
    "_poller": ("twisted.internet.epollreactor:EPollReactor", "let uvloop watch Twisted's epoll"),
    "_selectables": ("twisted.internet.epollreactor:EPollReactor", "see whether any is watched"),
    "_waiter": ("asyncio.streams:StreamReader", "see whether a handler waits for its client"),
    "_initialBuffer": (
        "twisted.logger._global:LogBeginner",
        "see whether Twisted has swallowed Ctrl-C while it imported plugins",
    ),
    "_observers": ("twisted.logger._observer:LogPublisher", "see whether anybody wants a line"),
    "_tempDataLen": (
        "twisted.internet.abstract:FileDescriptor",
        "see how much waits to be sent on Twisted's own reactors",
    ),
    "_aborted": (
        "twisted.protocols.tls:TLSMemoryBIOProtocol",
        "send no close_notify before a reset",
    ),
    "_realPortNumber": ("twisted.internet.tcp:Port", "say which port a connection came to"),
    "_bindPath": ("twisted.internet.unix:Port", "log where a passed UNIX socket is"),
    "_shouldShutdown": ("twisted.internet.tcp:Port", "leave a passed UNIX socket to others"),
}

# Only in type checkers, where mypy checks that it is there.
TYPES = {"_IReactorCommon", "_RetAddress", "_SendableFile"}

FOLDER = Path(echod.__file__).parent


def find(place: str) -> object:
    module, _, name = place.partition(":")
    return attrgetter(name)(importlib.import_module(module))


@pytest.mark.parametrize("place", PRIVATES)
def test_what_is_private_is_still_there(place: str) -> None:
    assert find(place) is not None or place.endswith("_exitSignal"), PRIVATES[place]


@pytest.mark.parametrize("name", SET)
def test_what_instances_have_is_still_set(name: str) -> None:
    place, why = SET[name]
    assert f"self.{name}" in inspect.getsource(find(place)), why  # type: ignore[arg-type]


def test_twistd_still_ends_by_the_signal_that_the_reactor_got() -> None:
    from twisted.application import app
    from twisted.scripts import twistd

    assert "reactor._exitSignal" in inspect.getsource(app.ApplicationRunner.startReactor)
    assert "_exitSignal is not None" in inspect.getsource(twistd.runApp)


def test_twistd_still_waits_for_the_other_end_of_its_pipe() -> None:
    from twisted.scripts._twistd_unix import UnixApplicationRunner

    source = inspect.getsource(UnixApplicationRunner.daemonize)
    assert "r, w = os.pipe()\n        if os.fork():" in source


def names_used() -> set[str]:
    """Return each private name in the sources that they do not define themselves."""
    defined: set[str] = set()
    used: set[str] = set()
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    defined.add(name)
                case ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                    defined.add(name)
                case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                    defined.add(name)
                case ast.Constant(value=str(name)):  # in __slots__
                    defined.add(name)
                case ast.Attribute(attr=name):
                    used.add(name)
                case ast.ImportFrom(names=names):
                    used.update(each.name for each in names)
    return {name for name in used - defined if is_private(name)}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def names_overridden() -> Iterator[str]:
    """Yield each private name of a foreign class that a class of ours has too."""
    for module in pkgutil.walk_packages([str(FOLDER)], "echod."):
        for made in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(made) and made.__module__.startswith("echod"):
                foreign = [one for one in made.__mro__ if not one.__module__.startswith("echod")]
                theirs = {name for one in foreign for name in vars(one)}
                yield from (name for name in vars(made) if is_private(name) and name in theirs)


def test_all_that_is_private_is_in_the_list() -> None:
    listed = {part for place in PRIVATES for part in place.replace(":", ".").split(".")}
    made_by_python = {"_abc_impl", "_is_protocol", "_fields_", "_is_runtime_protocol", "_replace"}
    made_by_python.add("_value_")  # of members of an Enum; documented
    overridden = set(names_overridden())
    made_by_enum = {name for name in overridden if name.endswith("_")}
    used = names_used() | overridden
    assert used - listed - set(SET) - TYPES - made_by_python - made_by_enum == set()
    assert "_current_frames" in used  # the scan finds something


def test_the_constraints_are_what_the_tests_run_with() -> None:
    from importlib.metadata import version

    lines = (FOLDER.parent / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert {name: version(name) for name in pinned} == pinned
    assert {"twisted", "uvloop", "prometheus-client", "zope.interface"} <= set(pinned)
