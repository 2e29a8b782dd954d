"""Redirect the prints and the `logging` records of a handler's module to the log.

A handler's module may `print`, write to `sys.stderr`, or call `logging.basicConfig()`; as a
service it has no terminal. Guarantees:

* From before the import of the module to the end of the process, `sys.stdout` and `sys.stderr`
  write to the log. Their lines have level info, because libraries also report there without an
  error, as `http.server` does for each request. Each thread's lines are kept apart, and of a line
  that does not end no more is held than the longest line of the log.
* The root logger of `logging` has a handler. Handlers that write to the terminal are replaced by
  one that writes to the log, with the same level and filters; files, and other handlers that the
  module has set up, stay as they are.
* An exception that ends a thread, or that Python cannot raise anywhere, is a line of level error;
  but not if a client has gone, and a file made from its connection is deleted with unsent bytes.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, AnyStr

from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LoggingFile,
    LogLevel,
    globalLogPublisher,
)
from zope.interface import implementer

from echod.concurrency.thread_socket import is_of_a_connection
from echod.log.tracebacks import traceback_of_exception
from echod.text import LONGEST

_LEVELS = (
    (logging.CRITICAL, LogLevel.critical),
    (logging.ERROR, LogLevel.error),
    (logging.WARNING, LogLevel.warn),
    (logging.INFO, LogLevel.info),
)


@implementer(ILogObserver)
class Outlet:
    """The target of captured lines: Twisted's log while it runs; before and after, one observer.

    Before it runs, Twisted keeps events, but only a limited number of them. The lines of a module
    that is being imported have to appear at once, and all of them.
    """

    def __init__(self, first: Callable[[LogEvent], object]) -> None:
        """Start with `first` as the target."""
        self._first = first
        self._target = first

    def open(self) -> None:
        """Use Twisted's log, which has begun, from now on."""
        self._target = globalLogPublisher

    def close(self) -> None:
        """Bypass Twisted's log, which is about to end; the interpreter's end may still print."""
        self._target = self._first

    def __call__(self, event: LogEvent) -> None:
        self._target(event)


class _Begun:
    """The line that a thread has begun to print; when the thread ends, its rest is a line, too."""

    __slots__ = ("_tell", "text")

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self.text = ""

    def __del__(self) -> None:
        if self.text:
            self._tell(self.text)


class PrintedLines(LoggingFile):
    """Makes events of printed lines.

    Twisted's own file holds a line until it ends: if a handler prints its clients' input without a
    newline, it would hold all of it, and copy it each time. And it has one line for all threads.
    """

    def __init__(self, logger: Logger) -> None:
        """Set up, to write the lines with `logger`."""
        super().__init__(logger, LogLevel.info, "utf-8")
        self._lines = threading.local()

    def write(self, message: AnyStr) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        text = message.decode(self.encoding) if isinstance(message, bytes) else message
        begun, lines = self._begun, text.split("\n")
        if len(begun.text) + len(lines[0]) > LONGEST:
            lines.insert(0, begun.text)
        else:
            lines[0] = begun.text + lines[0]
        begun.text = lines.pop() if len(lines[-1]) < LONGEST else ""
        for line in lines:
            self._tell(line)

    @property
    def _begun(self) -> _Begun:
        begun: _Begun | None = getattr(self._lines, "begun", None)
        if begun is None:
            begun = self._lines.begun = _Begun(self._tell)
        return begun

    def _tell(self, line: str) -> None:
        self.log.emit(self.level, "{log_io}", log_io=line)


class Capture:
    """Captures printed lines, and the records of `logging`."""

    def __init__(self, first: Callable[[LogEvent], object]) -> None:
        """Set up, without capturing anything.

        Args:
            first: the target of lines until `publish`.
        """
        self._outlet = Outlet(first)
        self._log = Logger(observer=self._outlet)
        self._replaced: dict[str, Any] = {}
        self._files = {
            name: PrintedLines(Logger(namespace=name, observer=self._outlet))
            for name in ("stdout", "stderr")
        }

    def begin(self) -> None:
        """Replace `sys.stdout` and `sys.stderr`, and catch exceptions that end a thread."""
        self._replaced = {name: getattr(sys, name) for name in self._files}
        self._put_in_place()
        threading.excepthook = self._thread_failed
        sys.unraisablehook = self._unraisable

    def _put_in_place(self) -> None:
        for name, file in self._files.items():
            setattr(sys, name, file)

    def end(self) -> None:
        """Undo `begin`, because the daemon does not start."""
        for name, stream in self._replaced.items():
            setattr(sys, name, stream)
        threading.excepthook = threading.__excepthook__
        sys.unraisablehook = sys.__unraisablehook__

    def publish(self) -> None:
        """Use Twisted's log, which has begun and has replaced our files by its own."""
        self._outlet.open()
        self._put_in_place()

    def withdraw(self) -> None:
        """Bypass Twisted's log, which is about to end."""
        self._outlet.close()

    def take_logging(self) -> None:
        """Redirect Python's `logging`, once the handler's module has been imported."""
        for logger in _loggers():
            for handler in list(logger.handlers):
                if self._writes_to_the_terminal(handler):
                    logger.removeHandler(handler)
                    logger.addHandler(LogHandler(self._outlet, handler))
        root = logging.getLogger()
        if not root.handlers:
            root.addHandler(LogHandler(self._outlet))

    def _writes_to_the_terminal(self, handler: logging.Handler) -> bool:
        if not isinstance(handler, logging.StreamHandler) or isinstance(
            handler, logging.FileHandler
        ):
            return False
        ours = [*self._files.values(), *self._replaced.values(), sys.__stdout__, sys.__stderr__]
        return any(handler.stream is stream for stream in ours)

    def _thread_failed(self, args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not SystemExit:  # which ends a thread silently
            self._log.error(
                "A thread ended with an exception: {thread}\n{traceback}",
                thread=args.thread.name if args.thread is not None else "unknown",
                traceback=traceback_of_exception(
                    args.exc_type, args.exc_value, args.exc_traceback
                ),
            )

    def _unraisable(self, args: sys.UnraisableHookArgs) -> None:
        # Since Python 3.13 a file reports in this way that it cannot write its last bytes.
        if args.exc_value is not None and is_of_a_connection(args.exc_value):
            return
        self._log.error(
            "{what} {object!r}\n{traceback}",
            what=args.err_msg or "Exception ignored in:",
            object=args.object,
            traceback=traceback_of_exception(args.exc_type, args.exc_value, args.exc_traceback),
        )


class LogHandler(logging.Handler):
    """Passes on the records of `logging`."""

    def __init__(self, observer: ILogObserver, instead_of: logging.Handler | None = None) -> None:
        """Set up.

        Args:
            observer: where records go, as events.
            instead_of: the handler whose level and filters to take over.
        """
        super().__init__(instead_of.level if instead_of else logging.NOTSET)
        for each in instead_of.filters if instead_of else ():
            self.addFilter(each)
        self._observer = observer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._pass_on(record)
        except Exception:  # as in every handler, an error must not reach the caller
            self.handleError(record)

    def _pass_on(self, record: logging.LogRecord) -> None:
        details = []
        if record.exc_info and record.exc_info[0] is not None:
            details.append(traceback_of_exception(*record.exc_info))
        if record.stack_info:
            details.append(record.stack_info)
        Logger(namespace=record.name, observer=self._observer).emit(
            next((level for least, level in _LEVELS if record.levelno >= least), LogLevel.debug),
            "{_text}{_details}",
            _text=record.getMessage(),
            _details=":\n" + "\n".join(details) if details else "",
            traceback="\n".join(details),
            # Records are of one kind if they were made from the same format.
            log_kind=str(record.msg),
        )


def _loggers() -> Iterator[logging.Logger]:
    yield logging.getLogger()
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            yield logger


@contextlib.contextmanager
def capturing(capture: Capture | None) -> Iterator[None]:
    """Capture from here on; if the block raises, undo that."""
    if capture is None:
        yield
        return
    capture.begin()
    try:
        yield
        capture.take_logging()
    except BaseException:
        capture.end()
        raise
