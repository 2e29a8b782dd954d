"""`echod serve --reload`: replace the workers when their code, or the file of settings, changes.

Guarantees:

* New code takes over once it serves; until then the old one goes on, and no client is refused.
* New code that cannot start is told with its error, and is tried again when a file changes next:
  a start does not succeed by being repeated. Workers that have served and end are replaced as
  without `--reload`, and at once when a file changes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Collection, Iterable
from importlib.util import cache_from_source
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from echod.errors import UserError
from echod.handlers.builtin import HANDLERS
from echod.settings.definitions import differences
from echod.text import escape
from echod.workers.sources import possible_files
from echod.workers.watch import Watch

if TYPE_CHECKING:
    from echod.interfaces import Reactor
    from echod.settings.flags import Options
    from echod.workers.child import Child

log = Logger("echod")

# How often the files are looked at, in seconds.
LOOK_AT_FILES = 0.2

# How many files a line names.
NAMED = 3

# The settings that the supervisor has used for good when it started.
OF_THE_SUPERVISOR = frozenset(
    ("port", "listen", "workers", "status", "status_host", "control", "log_format")
)


class CodeReload:
    """Watches the files, and replaces the workers."""

    def __init__(
        self, reactor: Reactor, options: Options, replace: Callable[[str], object]
    ) -> None:
        """Set up.

        Args:
            reactor: for the timer.
            options: the flags and the file.
            replace: replaces the workers; it takes the content of the file of settings.
        """
        self._replace = replace
        self._options = options
        self._settings = options.settings
        self._folder = Path.cwd()
        self._watch = Watch(self._always())
        self._looks = LoopingCall(self._look)
        self._looks.clock = reactor

    def _always(self) -> set[str]:
        """Return the files that are watched before a worker has told its own, and after."""
        spec = self._settings.handler_spec
        files: set[str] = set()
        if self._options.file is not None:
            files.add(str(self._options.file))
        if ":" in spec.name:
            files |= possible_files(spec.name.partition(":")[0], [*sys.path, str(self._folder)])
        for name in getattr(HANDLERS.get(spec.name), "named_files", ()):
            if text := spec.arguments.get(name):
                files.add(os.path.abspath(text))  # noqa: PTH100 - it may be any text
        return files

    def start(self) -> None:
        """Begin to look at the files."""
        self._looks.start(LOOK_AT_FILES, now=False)

    def stop(self) -> None:
        """Look no more."""
        if self._looks.running:
            self._looks.stop()

    def take_files(self, child: Child, files: Iterable[str], serving: Collection[Child]) -> None:
        """Watch the files of a worker.

        Args:
            child: the worker.
            files: their absolute paths.
            serving: the workers that serve; files that none of them has any more are forgotten.
        """
        self._watch.tell(child, files, child.began)
        if child in serving:
            self._watch.keep(serving)

    def tell_refusal(self, child: Child, *, old_serves: bool) -> None:
        """Log why new code could not start."""
        then = "the old code serves until then" if old_serves else "nothing serves until then"
        log.error(
            "{why}; the next change of a file is tried again, {then}{traceback}",
            why=escape(child.why),
            then=then,
            traceback=f":\n{child.traceback}" if child.traceback else "",
        )

    def _look(self) -> None:
        if changed := self._watch.look():
            self._changed(changed)

    def _changed(self, files: list[str]) -> None:
        named = ", ".join(map(self._shown, files[:NAMED]))
        more = len(files) - NAMED
        also = f" and {more} more" if more > 0 else ""
        log.info("{files}{also} changed: reloading", files=named, also=also)
        for file in files:
            _forget_bytecode(file)
        try:
            text = self._new_text()
        except UserError as error:
            log.error("Not reloaded: {why}", why=escape(str(error)))
            return
        self._replace(text)

    def _new_text(self) -> str:
        """Return the text of the file of settings.

        Raises:
            UserError: the settings are wrong, or workers alone cannot apply them.
        """
        text = self._options.read_file()
        changed = differences(self._settings, self._options.configure_from(text))
        if fixed := ", ".join(one.key for one in changed if one.name in OF_THE_SUPERVISOR):
            raise UserError(f"{fixed}: end the program, and start it again, to change that")
        return text

    def _shown(self, file: str) -> str:
        """Return the path of a file as a reader knows it."""
        path = Path(file)
        inside = path.is_relative_to(self._folder)
        return escape(str(path.relative_to(self._folder) if inside else path))


def _forget_bytecode(file: str) -> None:
    """Remove the bytecode of a module that has changed.

    Python takes it for that of the new code if that has the same size, and was saved in the same
    second.
    """
    if file.endswith(".py"):
        with contextlib.suppress(OSError, NotImplementedError):
            Path(cache_from_source(file)).unlink()
