"""Handlers and framings that other distributions offer: by entry points, and handlers also as
Twisted plugins.

Offers are independent: a broken one carries its error, and does not hide others. Nothing here
imports an offered object. The daemon does not use this module for a built-in one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePath
from traceback import walk_tb
from typing import cast

from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.plugin import IPlugin, getCache
from twisted.python import reflect
from twisted.python.failure import Failure
from zope.interface import Attribute, Interface, implementer

from echod.handlers.importing import ModulesOnly
from echod.permissions import is_file
from echod.text import clipped, escape, quoted, told
from twisted import plugins

# The groups of entry points.
HANDLERS = "echod.handlers"
FRAMINGS = "echod.framings"

# The target of an entry point; a list of extras after it does not concern the object.
TARGET = re.compile(r"([\w.]+)\s*:\s*([\w.]+)\s*(?:\[.*\])?\s*")


class IHandlerPlugin(Interface):
    """A handler offered as a Twisted plugin (a dropin in `twisted/plugins`)."""

    name = Attribute("Its name for `--handler` (`str`).")
    target = Attribute("Where it is, as `module:object` (`str`); imported when asked for.")


@implementer(IPlugin, IHandlerPlugin)
@dataclass(frozen=True)
class HandlerPlugin:
    """A declaration for a dropin: `shout = HandlerPlugin("shout", "shouting:shout")`."""

    name: str
    target: str


@dataclass(frozen=True)
class Offer:
    """An installed object that is declared as a handler, or as a framing.

    Attributes:
        name: its name for `--handler`, or `--framing`.
        target: its location, as `module:object`.
        source: the distribution, or the dropin, that offers it.
        error: why it cannot be loaded; "" if that is not known before the import.
    """

    name: str
    target: str
    source: str
    error: str = ""

    @property
    def origin(self) -> str:
        """Its location and its source."""
        known = [clipped(self.target, 200)] if self.target else []
        return escape(" ".join([*known, f"({self.source})" if known else self.source]))


def offered_handlers() -> list[Offer]:
    """Return all installed handlers, broken or not."""
    return [*_entry_points(HANDLERS), *_dropins()]


def offered_framings() -> list[Offer]:
    """Return all installed framings, broken or not."""
    return list(_entry_points(FRAMINGS))


# Entry points.


def _entry_points(group: str) -> Iterator[Offer]:
    """Yield the offers in `group`; if a distribution is installed twice, of the one imported
    first.
    """
    found = set()
    for each in _distributions():
        if isinstance(each, Offer):
            yield each
            continue
        where = _place(each)
        try:
            name = (each.metadata.get_all("Name") or [""])[0] or where
            if name not in found:
                found.add(name)
                yield from _offered_by(each, name, group)
        except Exception as error:  # its files may contain anything
            yield Offer(where, "", where, f"its metadata cannot be read: {told(error)}")


def _distributions() -> Iterator[Distribution | Offer]:
    """Yield all distributions, and a broken offer if they cannot be listed."""
    path = [one for one in sys.path if not isinstance(one, ModulesOnly)]
    try:
        yield from distributions(path=path)
    except Exception as error:  # from a finder that was added to `sys.meta_path`
        where = "importlib.metadata"
        yield Offer(where, "", where, f"distributions cannot be listed: {told(error)}")


def _place(distribution: Distribution) -> str:
    """Return the name of the folder that has a distribution's metadata."""
    path = getattr(distribution, "_path", None)
    return str(getattr(path, "name", None) or type(distribution).__name__)


def _offered_by(distribution: Distribution, source: str, group: str) -> list[Offer]:
    return [
        _entry_point(entry.name, entry.value, source)
        for entry in distribution.entry_points
        if entry.group == group
    ]


def _entry_point(name: str, value: str, source: str) -> Offer:
    target = TARGET.fullmatch(value)
    if target is None:
        return Offer(name, "", source, f"{quoted(value)} is not module:object")
    return Offer(name, f"{target[1]}:{target[2]}", source)


# Twisted plugins.


def _dropins() -> list[Offer]:
    """Return the handlers of dropins, and the dropins that cannot be imported."""
    failures: list[Failure] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:  # Twisted reports it only in the log
        if "failure" in event:
            failures.append(event["failure"])

    globalLogPublisher.addObserver(observe)
    try:
        found = [
            offer
            for dropin in getCache(plugins).values()
            for cached in dropin.plugins
            for offer in _declared(cached, dropin.moduleName)
        ]
    finally:
        globalLogPublisher.removeObserver(observe)
    return [*found, *map(_broken_dropin, failures), *_hidden()]


def _hidden() -> Iterator[Offer]:
    """Yield the dropins that Twisted leaves out because their folder is a package."""
    seen = {Path(each).resolve() for each in plugins.__path__}
    for entry in sys.path:
        folder = Path(entry, "twisted", "plugins").absolute()
        package = folder / "__init__.py"
        if isinstance(entry, ModulesOnly) or not is_file(package) or folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        why = escape(str(package))
        for path in sorted(folder.glob("*.py")):
            if path != package:
                yield Offer(path.stem, "", escape(str(path)), f"{why} hides it: remove that file")


def _declared(cached: object, module: str) -> Iterator[Offer]:
    """Yield the handler that a dropin declares, if it is one."""
    try:
        plugin = IHandlerPlugin(cached, None)
        if plugin is None:
            return
        name, target = plugin.name, plugin.target
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # this imports the dropin, which may raise anything
        yield Offer(module.rpartition(".")[2], "", module, _not_imported(error))
        return
    if isinstance(name, str) and isinstance(target, str):
        yield _entry_point(name, target, module)
    else:
        yield Offer(str(name), "", module, "its name and its target have to be texts")


def _broken_dropin(failure: Failure) -> Offer:
    error = cast(BaseException, failure.value)
    frames = list(walk_tb(failure.getTracebackObject()))
    written = error.filename if isinstance(error, SyntaxError) else None
    origin = written or frames[-1][0].f_code.co_filename
    if origin == reflect.__file__ and "pluginModule" in frames[0][0].f_locals:
        # No code of the dropin has run: that of Twisted alone knows which one it was to be.
        origin = frames[0][0].f_locals["pluginModule"].filePath.path
    return Offer(PurePath(origin).stem, "", origin, _not_imported(error))


def _not_imported(error: BaseException) -> str:
    return f"cannot be imported: {told(error)}"
