from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

import pytest
from twisted.python.failure import Failure

from echod.log.tracebacks import traceback_of
from echod.text import LONGEST


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


def test_a_failure_without_a_traceback_is_shown_as_it_shows_itself() -> None:
    failure = Failure(ValueError("odd"))
    assert traceback_of(failure) == failure.getTraceback().rstrip("\n")
    assert traceback_of(failure).endswith("ValueError: odd")


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
