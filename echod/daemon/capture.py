"""Lead into the log what a handler's module prints, and what it says to the standard library's.

A module that is a handler may `print`, write to `sys.stderr`, call `logging.basicConfig()`; as a
service it has no terminal.  Guarantees:

* From before the module is imported to the end of the process, `sys.stdout` and `sys.stderr` are
  the log.  What is written to them is a line of level info: a library that reports on standard
  error, as `http.server` does each request, means no error by that.  Each thread's lines are its
  own, and of one that does not end no more is held than a line of the log may have.
* The root logger of `logging` has a handler.  Handlers that write to the terminal are exchanged
  for one that writes to the log, with level and filters kept; files, and whatever else the module
  has set up, stay as they are.
* An exception that ends a thread, or that Python can raise nowhere, is a line of level error; but
  not where a client has gone, and a file made from its connection is let go with bytes unsent.
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
    """Where captured lines go: Twisted's log while that runs; before and after, one observer.

    Until then Twisted keeps events, and only so many; lines of a module that is being imported
    shall be seen while that goes on, and all of them.
    """

    def __init__(self, first: Callable[[LogEvent], object]) -> None:
        """Begin with `first`."""
        self._first = first
        self._target = first

    def open(self) -> None:
        """Twisted's log has begun: go there from now on."""
        self._target = globalLogPublisher

    def close(self) -> None:
        """Twisted's log is about to end, and the interpreter's end may have something to say."""
        self._target = self._first

    def __call__(self, event: LogEvent) -> None:
        self._target(event)


class _Begun:
    """The line that a thread has begun to print.  What the thread leaves is a line as well."""

    __slots__ = ("_tell", "text")

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self.text = ""

    def __del__(self) -> None:
        if self.text:
            self._tell(self.text)


class PrintedLines(LoggingFile):
    """Makes events of printed lines.

    Twisted's own file holds a line until it ends: where a handler prints what clients send, and no
    newline, it would hold all that, and copy it each time.  And it has one line for all threads.
    """

    def __init__(self, logger: Logger) -> None:
        """Set up: `logger` is who says the lines."""
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
    """Captures what is printed, and what goes to `logging`."""

    def __init__(self, first: Callable[[LogEvent], object]) -> None:
        """Set up, without capturing anything.

        Args:
            first: where lines go until `publish`.
        """
        self._outlet = Outlet(first)
        self._log = Logger(observer=self._outlet)
        self._replaced: dict[str, Any] = {}
        self._files = {
            name: PrintedLines(Logger(namespace=name, observer=self._outlet))
            for name in ("stdout", "stderr")
        }

    def begin(self) -> None:
        """Let `sys.stdout` and `sys.stderr` be the log, and catch what ends a thread."""
        self._replaced = {name: getattr(sys, name) for name in self._files}
        self._put_in_place()
        threading.excepthook = self._thread_failed
        sys.unraisablehook = self._unraisable

    def _put_in_place(self) -> None:
        for name, file in self._files.items():
            setattr(sys, name, file)

    def end(self) -> None:
        """Give back what `begin` has taken: the daemon does not start."""
        for name, stream in self._replaced.items():
            setattr(sys, name, stream)
        threading.excepthook = threading.__excepthook__
        sys.unraisablehook = sys.__unraisablehook__

    def publish(self) -> None:
        """Twisted's log has begun, and has put files of its own in the place of ours."""
        self._outlet.open()
        self._put_in_place()

    def withdraw(self) -> None:
        """Twisted's log is about to end: pass it by."""
        self._outlet.close()

    def take_logging(self) -> None:
        """Lead the standard library's `logging` here, now that the handler's module is there."""
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
                "A thread has ended with an exception: {thread}\n{traceback}",
                thread=args.thread.name if args.thread is not None else "unknown",
                traceback=traceback_of_exception(
                    args.exc_type, args.exc_value, args.exc_traceback
                ),
            )

    def _unraisable(self, args: Any) -> None:
        # Since Python 3.13 a file tells so that it cannot write its last bytes.
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
            instead_of: whose level and filters to take over.
        """
        super().__init__(instead_of.level if instead_of else logging.NOTSET)
        for each in instead_of.filters if instead_of else ():
            self.addFilter(each)
        self._observer = observer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._pass_on(record)
        except Exception:  # as every handler does: the caller shall not suffer
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
            # What makes records alike is what they were made from.
            log_kind=str(record.msg),
        )


def _loggers() -> Iterator[logging.Logger]:
    yield logging.getLogger()
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            yield logger


@contextlib.contextmanager
def capturing(capture: Capture | None) -> Iterator[None]:
    """Capture from here on; where the block fails, nothing was captured."""
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
