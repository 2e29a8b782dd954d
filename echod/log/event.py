"""Frequent lines of the log: check whether a line is wanted before making any part of it.

Formatting the address and the traceback and building the event is a considerable part of the cost
of a connection. If the log would only count the line, because of its level or because there are
too many of its kind, that cost is avoided::

    _refused = LogLine(log, "warn", "Refused {peer}: {why}")

    if _refused.wanted(client.peer):
        _refused.write(peer=shown(client), why=why)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger, LogLevel, globalLogPublisher

from echod.log.rate import MOST_NOTED, EventKind, source_of


class LogLine:
    """One kind of line: a logger, a level and a format."""

    __slots__ = ("_kind", "_level", "_log")

    def __init__(self, log: Logger, level: str, form: str) -> None:
        """Define a kind of line.

        Args:
            log: the logger; it writes to Twisted's global log.
            level: the name of a `LogLevel`.
            form: a literal, as for the methods of `log`.
        """
        self._log = log
        self._level = LogLevel.lookupByName(level)
        self._kind = EventKind(log.namespace, form, level)

    def wanted(self, peer: str, source: str | None = None) -> bool:
        """Return whether to make the line; if not, it has been counted.

        A foreign observer, which cannot be asked beforehand, sees every line.

        Args:
            peer: the client that it is about, as `ADDRESS:PORT`.
            source: what `source_of` returns for it, if that is known.
        """
        observer: Any
        try:
            (observer,) = globalLogPublisher._observers
            noted: list[str] | None = observer.above.get(self._kind)
        except (ValueError, AttributeError):
            return True
        if source is None:
            source = source_of(peer)
        if noted is None:
            wants: Callable[[EventKind, str], bool] = observer.wants
            return wants(self._kind, source)
        # While there are many connections a second, each comes here twice.
        noted.append(source)
        if len(noted) > MOST_NOTED:
            observer.count(self._kind)
        return False

    def write(self, **values: object) -> None:
        """Write the line, with `values` for the fields of the format."""
        self._log.emit(self._level, self._kind.format, **values)
