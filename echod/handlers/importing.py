"""Import what a name stands for; and tell the operator if a user's module does not return.

A script that ends in `asyncio.run(main())` or `reactor.run()` serves while it is imported: without
this, the start would hang without a word.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import PurePath
from types import FrameType, ModuleType
from typing import TypeVar, cast

from echod.text import escape, excerpt

T = TypeVar("T")

# Seconds after which the operator is told.
PATIENCE = 2.0


class BuiltIn(Mapping[str, T]):
    """Map names to objects that come with echod, and import each when it is looked up: a daemon
    uses one of them, and all together would take a twentieth of its start.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        """Set up; `places` says where each is, as `module:object`."""
        self._places = places

    def __getitem__(self, name: str) -> T:
        module, _, attribute = self._places[name].partition(":")
        return cast(T, getattr(import_module(module), attribute))

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class ModulesOnly(str):
    """An entry of `sys.path` from which modules are imported, but where nothing is installed."""

    __slots__ = ()

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)  # in processes of multiprocessing it becomes a plain one


# The remedy for a module that is also a program.
GUARD = 'put what runs it under `if __name__ == "__main__"`'


def import_watched(module: str) -> ModuleType:
    """Import a module; name the line on standard error where it is after two seconds.

    Raises:
        BaseException: any exception of the module.
    """
    with _told_after(PATIENCE, module, threading.get_ident()):
        return import_module(module)


@contextmanager
def _told_after(patience: float, module: str, thread: int) -> Iterator[None]:
    timer = threading.Timer(patience, _tell, (module, thread))
    timer.daemon, timer.name = True, "echod-import"
    try:
        timer.start()
    except RuntimeError:  # no more threads are allowed: import nevertheless
        yield
        return
    try:
        yield
    finally:
        timer.cancel()
        timer.join(1)  # the daemon forks later, when it should have one thread only


def _tell(module: str, thread: int) -> None:
    place = _place(module, sys._current_frames().get(thread))
    print(  # noqa: T201 - no log is open yet
        f"echod: {excerpt(module)} is still being imported{place}: does it run a server "
        'of its own? Put that under `if __name__ == "__main__"`',
        file=sys.stderr,
        flush=True,
    )


def _place(module: str, frame: FrameType | None) -> str:
    """Return the line of the module, or of a package that contains it, that runs now."""
    for one, line in traceback.walk_stack(frame) if frame is not None else ():
        name = str(one.f_globals.get("__name__"))
        if one.f_code.co_name == "<module>" and f"{module}.".startswith(f"{name}."):
            return f", at {escape(PurePath(one.f_code.co_filename).name)} line {line}"
    return ""
