"""The files that the code of this process comes from, for a supervisor that watches them.

Python's library, packages that are installed, and echod itself are left out: a programmer does not
change them while the service runs.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from traceback import walk_tb

from echod.threads import start_thread
from echod.user_code import is_users

# How often a thread looks for modules that have been imported since, in seconds.
PERIOD = 0.25


class Sources:
    """Tells the files, and those of modules that are imported later."""

    def __init__(self, tell: Callable[[list[str]], object]) -> None:
        """Set up.

        Args:
            tell: is called with all files, whenever there are more; in any thread.
        """
        self._tell = tell
        self._told: set[str] = set()
        self._modules = 0
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the thread: it tells the files of an import that does not end, too.

        Raises:
            NoThreadError: the system allows no further thread.
        """
        start_thread(self._run, "echod-sources", "--reload")

    def _run(self) -> None:
        while True:
            if len(sys.modules) != self._modules:
                self.look()
            time.sleep(PERIOD)

    def look(self, error: BaseException | None = None) -> None:
        """Tell the files now.

        Args:
            error: why the code could not be loaded; the files that it names are among them.
        """
        with self._lock:
            self._modules = len(sys.modules)
            files = files_of_modules(list(sys.modules.values())) | files_of_error(error)
            if not files <= self._told:
                self._told |= files
                self._tell(sorted(self._told))


def files_of_modules(modules: Iterable[object]) -> set[str]:
    """Return the files of those modules that are the user's own."""
    found = (getattr(module, "__dict__", {}).get("__file__") for module in modules)
    return _absolute(file for file in found if type(file) is str)


def files_of_error(error: BaseException | None) -> set[str]:
    """Return the user's files that an error is about: a change in one may mend it.

    A module that could not be imported is in no list of modules. The file of one that does not
    exist may be made.
    """
    found: set[str] = set()
    waiting, seen = [error], set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        found |= {frame.f_code.co_filename for frame, _ in walk_tb(one.__traceback__)}
        if isinstance(one, SyntaxError | OSError) and isinstance(one.filename, str):
            found.add(one.filename)
        if isinstance(one, ImportError) and one.name:
            missing = getattr(one, "name_from", None)  # from Python 3.12 on
            found |= possible_files(f"{one.name}.{missing}" if missing else one.name, sys.path)
            found |= {one.path} if one.path else set()
        waiting += [one.__cause__, one.__context__]
    return _absolute(found)


def possible_files(module: str, folders: Iterable[str]) -> set[str]:
    """Return the files that a module of this name may have, in those folders that are the user's.

    Args:
        module: its full name.
        folders: those in which Python looks for it.
    """
    parts = module.split(".")
    found: set[str] = set()
    if not all(parts):
        return found
    for folder in folders:
        for count in range(1, len(parts) + 1):
            base = os.path.join(str(folder), *parts[:count])  # noqa: PTH118 - these are texts
            found.add(os.path.join(base, "__init__.py"))  # noqa: PTH118
        found.add(f"{base}.py")
    return _absolute(found)


def _absolute(files: Iterable[str]) -> set[str]:
    return {os.path.abspath(file) for file in files if is_users(file)}  # noqa: PTH100
