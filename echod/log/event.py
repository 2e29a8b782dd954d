"""Lines of the log that may come very often: asked for before anything of them is made.

What one line costs, its address shown, its traceback written out, the event built, is a good part
of what a connection costs.  Where the log would only count it, because of its level or because
there were too many of its kind, nobody shall pay for it::

    _refused = LogLine(log, "warn", "Refused {peer}: {why}")

    if _refused.wanted(client.peer):
        _refused.write(peer=shown(client), why=why)
"""

from __future__ import annotations

from twisted.logger import Logger, LogLevel, globalLogPublisher

from echod.log.rate import EventKind


class LogLine:
    """One kind of line: a logger, a level and a format."""

    __slots__ = ("_kind", "_level", "_log")

    def __init__(self, log: Logger, level: str, form: str) -> None:
        """Name a kind of line.

        Args:
            log: who says it; it writes to Twisted's global log.
            level: the name of a `LogLevel`.
            form: a literal, as for the methods of `log`.
        """
        self._log = log
        self._level = LogLevel.lookupByName(level)
        self._kind = EventKind(log.namespace, form, level)

    def wanted(self, peer: str) -> bool:
        """Return whether to make the line; one that is not wanted has been counted.

        An observer that cannot be asked beforehand, as one of somebody else's, sees every line.

        Args:
            peer: whom it is about, as `ADDRESS:PORT`.
        """
        observers = globalLogPublisher._observers
        wants = getattr(observers[0], "wants", None) if len(observers) == 1 else None
        return wants is None or bool(wants(self._kind, peer))

    def write(self, **values: object) -> None:
        """Write the line, with `values` in the places that the format has for them."""
        self._log.emit(self._level, self._kind.format, **values)
