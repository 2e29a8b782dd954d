"""The reactor of a test process: one that runs already, or one in a thread of its own.

Guarantees:

* Twisted's reactor cannot start twice in a process. So there is one thread for it, which runs
  until the main thread ends.
* A reactor that another part of the process has installed is used, whether it runs or not.
* No function here waits in the reactor's own thread.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import blockingCallFromThread
from twisted.python import threadable

if TYPE_CHECKING:
    from echod.interfaces import Reactor

T = TypeVar("T")

_starting = threading.Lock()


def installed_reactor() -> Reactor | None:
    """Return the reactor of this process; None if none is installed yet."""
    # Twisted puts the reactor itself there.
    return cast("Reactor | None", sys.modules.get("twisted.internet.reactor"))


def is_own_thread() -> bool:
    """Return whether the reactor runs in the current thread."""
    reactor = installed_reactor()
    return reactor is not None and reactor.running and threadable.isInIOThread()


def running_reactor() -> Reactor:
    """Return the running reactor; start one in a thread if none runs."""
    with _starting:
        reactor = installed_reactor()
        return reactor if reactor is not None and reactor.running else _start()


def call(function: Callable[..., T], *arguments: object) -> T:
    """Call `function` in the reactor's thread, and return its result.

    Args:
        function: may return a Deferred or a coroutine.
        *arguments: of the function.

    Raises:
        Exception: the exception of the function.
    """
    reactor = IReactorFromThreads(running_reactor())
    result: T = blockingCallFromThread(reactor, function, *arguments)
    return result


def _start() -> Reactor:
    from echod.daemon.choose_reactor import choose

    choose()
    from twisted.internet import reactor

    running = threading.Event()
    reactor.callWhenRunning(running.set)
    # The signals are the test runner's.
    threading.Thread(target=reactor.run, args=(False,), name="echod-testing").start()
    threading.Thread(target=_stop_with_main, args=(reactor,), name="echod-testing-end").start()
    running.wait()
    return reactor


def _stop_with_main(reactor: Reactor) -> None:
    """Stop the reactor when the main thread ends: its threads would keep the process alive."""
    threading.main_thread().join()
    if reactor.running:
        IReactorFromThreads(reactor).callFromThread(reactor.stop)
