"""Choose the Twisted reactor of the daemon: uvloop's, unless another one is installed already.

Under `twistd` and `twist`, a reactor is installed before `Options.postOptions` only if `--reactor`
asked for it.
"""

from __future__ import annotations

import re
import sys
import time
from typing import Any

from twisted.logger import Logger
from twisted.python import runtime

log = Logger("echod")


def choose(*, asked_for: bool = True) -> None:
    """Install the uvloop reactor, if no reactor is installed yet and uvloop can be imported.

    Args:
        asked_for: whether a reactor that is installed already was asked for, by `--reactor`.
    """
    if installed := sys.modules.get("twisted.internet.reactor"):
        if not asked_for and name_of(installed) != "uvloop":
            log.warn(
                "Running on the {name} reactor: {plugins} imports twisted.internet.reactor before "
                "echod can choose one",
                name=name_of(installed),
                plugins=", ".join(_plugins_with_a_reactor()) or "a plugin of Twisted's",
            )
        return
    try:
        from echod import reactor
    except ImportError as error:
        log.warn("The uvloop reactor is not available: {why}", why=str(error))
    else:
        reactor.install()


def name_of(reactor: object) -> str:
    """Return the name of this reactor for `--reactor`, if it is one of Twisted's or echod's."""
    # That of asyncio is its AsyncioSelectorReactor.
    return re.sub("(Selector)?Reactor$", "", type(reactor).__name__).lower()


def _plugins_with_a_reactor() -> list[str]:
    plugins = [name for name in sys.modules if name.startswith("twisted.plugins.")]
    return [name for name in plugins if hasattr(sys.modules[name], "reactor")]


def follow_the_monotonic_clock(reactor: Any) -> None:
    """Keep timers unaffected when the wall clock is set; call this before the first timer is made.

    This is needed only if the reactor uses the wall clock: the uvloop reactor's is monotonic.
    """
    if reactor.seconds is runtime.seconds and not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic
