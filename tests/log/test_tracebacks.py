from __future__ import annotations

import asyncio
import importlib
import json
import sys
import traceback
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from echod.awaiting import make_task
from echod.concurrency.lending import Lender, LentTask
from echod.errors import UserError
from echod.handlers.calling import close_in_thread
from echod.handlers.contract import Close, answer_of
from echod.log.tracebacks import traceback_of, traceback_of_handler, traceback_of_start
from echod.messages.framing import BufferingFramer, Fixed, Line
from echod.messages.guarded import Guarded
from echod.messages.prefixed import Length
from echod.text import LONGEST
from tests.support.paths import ROOT

PACKAGE = f"{ROOT}/echod/"


def plain() -> None:
    raise ValueError("odd")


def with_a_cause() -> None:
    try:
        plain()
    except ValueError as error:
        raise RuntimeError("because of that") from error


def with_a_context() -> None:
    try:
        plain()
    except ValueError:
        raise RuntimeError("while handling that")  # noqa: B904 - what the test is about


def with_a_note() -> None:
    error = ValueError("odd")
    error.add_note("it was a Monday")
    raise error


def of_a_group() -> None:
    errors: list[Exception] = []
    for function in (plain, with_a_cause):
        try:
            function()
        except Exception as error:
            errors.append(error)
    raise ExceptionGroup("several", errors)


def too_deep() -> None:
    too_deep()


class WrongFramer(BufferingFramer):
    def next_message(self) -> str:  # type: ignore[override]
        return "text"


class Wrong:
    """A framing whose methods return text."""

    max_message = 100

    def framer(self) -> WrongFramer:
        return WrongFramer(self.max_message)

    def encode(self, reply: bytes) -> str:
        return reply.decode()

    encode_line = encode


def failure_of(function: Callable[[], None]) -> Failure:
    try:
        function()
    except Exception:
        return Failure()
    raise AssertionError


@pytest.mark.parametrize(
    "function", [plain, with_a_cause, with_a_context, with_a_note, of_a_group, too_deep]
)
def test_a_traceback_shows_what_python_shows(function: Callable[[], None]) -> None:
    failure = failure_of(function)
    shown = traceback_of(failure)
    assert failure.value is not None
    assert shown == "".join(traceback.format_exception(failure.value)).rstrip("\n")
    for told in {
        plain: ["ValueError: odd"],
        with_a_cause: ["ValueError: odd", "direct cause", "RuntimeError: because of that"],
        with_a_context: ["ValueError: odd", "During handling", "RuntimeError: while handling"],
        with_a_note: ["ValueError: odd", "it was a Monday"],
        of_a_group: ["several (2 sub-exceptions)", "ValueError: odd", "RuntimeError: because"],
        too_deep: ["RecursionError", "times"],
    }[function]:
        assert told in shown


async def early(message: bytes) -> None:
    plain()


async def late(message: bytes) -> None:
    await asyncio.sleep(0)
    plain()


async def in_child_task(message: bytes) -> None:
    await asyncio.create_task(late(message))


async def in_group(message: bytes) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(late(message))


async def with_a_chain(message: bytes) -> None:
    try:
        await in_child_task(message)
    except ValueError as error:
        raise RuntimeError("because of that") from error


@pytest.mark.parametrize("function", [early, late, in_child_task, in_group, with_a_chain])
def test_a_handlers_traceback_has_its_own_lines_only(
    function: Callable[[bytes], Coroutine[object, object, None]],
) -> None:
    """In a lent task, and in tasks of its own, whose tracebacks and chains it joins."""
    results: list[object] = []

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(make_task)
        coroutine = function(b"")
        try:
            lent = Lender(loop).start(coroutine)
        except ValueError:
            results.append(Failure())
            return
        assert isinstance(lent, LentTask)
        lent.take_over(None, results.append)
        while not results:
            await asyncio.sleep(0)

    with ThreadPoolExecutor(1) as threads:  # where no reactor runs
        threads.submit(asyncio.run, serve()).result()
    (failure,) = results
    assert isinstance(failure, Failure)
    assert "/echod/concurrency/lending.py" in traceback_of(failure)
    shown = traceback_of_handler(failure)
    assert PACKAGE not in shown
    assert f'File "{__file__}"' in shown.splitlines()[1].lstrip(" |+")
    assert "ValueError: odd" in shown


def test_an_error_of_echods_own_keeps_the_lines_from_the_handler_on() -> None:
    shown = traceback_of_handler(failure_of(lambda: Line(max_message=-1)))
    assert "in __post_init__" in shown
    assert shown.index(f'File "{__file__}"') < shown.index(PACKAGE)


def test_an_error_that_meets_no_other_code_is_shown_whole() -> None:
    failure = failure_of(lambda: Line(max_message=-1))
    assert failure.value is not None
    tb = failure.tb
    while tb is not None and not tb.tb_frame.f_code.co_filename.startswith(PACKAGE):
        tb = tb.tb_next
    ours = Failure(failure.value, type(failure.value), tb)
    assert traceback_of_handler(ours) == traceback_of(ours)
    assert PACKAGE in traceback_of(ours)


def test_a_wrong_reply_is_shown_without_the_way_to_it_through_echod() -> None:
    failure = failure_of(lambda: answer_of("text") and None)
    assert failure.tb is not None
    ours = Failure(failure.value, type(failure.value), failure.tb.tb_next.tb_next)
    assert traceback_of_handler(ours).splitlines() == [
        "Traceback (most recent call last):",
        "TypeError: a handler returns bytes, None or Close, not str",
    ]
    of_close = traceback_of_handler(failure_of(lambda: Close("text") and None))  # type: ignore[arg-type]
    assert of_close.startswith("Traceback (most recent call last):\n")
    assert f'File "{__file__}"' in of_close
    assert PACKAGE not in of_close


@pytest.mark.parametrize(
    "misuse",
    [
        lambda: close_in_thread(lambda _: Deferred(), "drained"),
        lambda: Fixed(size=2).encode(b"long"),
        lambda: Length(bytes=1).encode(b"x" * 300),
        lambda: Guarded(Wrong()).encode(b"x"),  # type: ignore[arg-type]
        lambda: Guarded(Wrong()).framer().next_message(),  # type: ignore[arg-type]
    ],
)
def test_a_refusal_of_what_the_users_code_returned_has_no_lines_of_echods(
    misuse: Callable[[], object],
) -> None:
    shown = traceback_of_handler(failure_of(misuse))
    assert shown.startswith("Traceback (most recent call last):\n")
    assert PACKAGE not in shown


def test_a_failure_without_a_traceback_is_shown_as_it_shows_itself() -> None:
    failure = Failure(ValueError("odd"))
    assert traceback_of(failure) == failure.getTraceback().rstrip("\n")
    assert traceback_of(failure).endswith("ValueError: odd")
    assert traceback_of_handler(failure) == traceback_of(failure)


def test_a_traceback_is_escaped_and_has_an_end() -> None:
    def hostile() -> None:
        error = ValueError("\x1b" * LONGEST)
        error.add_note("\r\x07")
        raise error from KeyError("\u202e")

    shown = traceback_of(failure_of(hostile))
    assert "characters left out" in shown
    assert shown.endswith("\\r\\x07")
    assert not set(shown) & set("\x1b\r\x07\u202e")


def test_an_exception_that_cannot_be_shown_does_no_harm() -> None:
    class Hostile(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    def fail() -> None:
        raise Hostile

    assert "<exception str() failed>" in traceback_of(failure_of(fail))
    assert sys.exc_info() == (None, None, None)


@pytest.mark.parametrize("raised", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_an_exception_that_raises_while_it_is_shown_is_named(raised: type[BaseException]) -> None:
    class Hostile(Exception):
        @property
        def __notes__(self) -> list[str]:
            raise raised("no")

    def fail() -> None:
        raise Hostile

    assert "Hostile" in traceback_of(failure_of(fail))


def start_that_fails(import_it: Callable[[], object]) -> BaseException:
    """Return the error of a start, as the look-up of a handler and the daemon raise it."""
    try:
        try:
            import_it()
        except BaseException as error:
            raise UserError("--handler: it cannot be imported") from error
    except UserError as error:
        try:
            raise SystemExit(f"echod: {error}") from None
        except SystemExit as end:
            return end
    raise AssertionError("it can be imported")


def test_the_traceback_of_a_start_has_only_the_users_lines() -> None:
    shown = traceback_of_start(start_that_fails(lambda: json.loads("{")))
    assert shown.startswith("Traceback (most recent call last):\n")
    assert shown.count("  File ") == shown.count(__file__) == 2
    assert shown.endswith("(char 1)")


def test_an_error_of_syntax_names_its_line_itself() -> None:
    shown = traceback_of_start(start_that_fails(lambda: import_broken("def f(:\n")))
    assert shown.splitlines()[-4:-1] == ['  File "app.py", line 1', "    def f(:", "          ^"]
    assert "Traceback" in shown  # of the line here that imports it


def import_broken(text: str) -> None:
    compile(text, "app.py", "exec")


def test_a_start_without_an_error_of_the_users_has_no_traceback() -> None:
    def refuse() -> None:
        raise UserError("there is no such handler")

    assert traceback_of_start(start_that_fails(refuse)) == ""
    missing = start_that_fails(lambda: importlib.import_module("not_there_at_all"))
    assert missing.__context__ is not None
    cause = missing.__context__.__cause__
    assert cause is not None
    cause.__traceback__ = cause.__traceback__.tb_next.tb_next  # without the lines of this test
    assert traceback_of_start(missing) == ""
    assert traceback_of_start(UserError("the settings are wrong")) == ""


def test_an_end_of_the_program_while_it_is_imported_is_shown() -> None:
    def leave() -> None:
        raise SystemExit(3)

    assert traceback_of_start(start_that_fails(leave)).endswith("SystemExit: 3")


def test_an_error_of_installed_code_alone_is_shown_without_our_frames() -> None:
    code: dict[str, Callable[[], None]] = {}
    exec(compile("def fail():\n    raise KeyError(7)", "/x/site-packages/a.py", "exec"), code)
    error = start_that_fails(code["fail"])
    assert error.__context__ is not None
    found = error.__context__.__cause__
    assert found is not None
    assert found.__traceback__ is not None
    found.__traceback__ = found.__traceback__.tb_next
    assert "/x/site-packages/a.py" in traceback_of_start(error)
    parsed = start_that_fails(lambda: compile("(", "/x/site-packages/a.py", "exec"))
    found = parsed.__context__.__cause__ if parsed.__context__ else None
    assert found is not None
    found.__traceback__ = None
    assert traceback_of_start(parsed).startswith('  File "/x/site-packages/a.py", line 1')
