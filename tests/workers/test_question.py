"""A question to several workers, with time that the test plays; any object stands for a worker."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from echod.workers.question import Question

SECONDS = 3.0


class Asking:
    """A question to two workers.

    Attributes:
        answered: has a value for each time that the question was answered.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.one, self.other = object(), object()
        asked = [self.one, self.other]
        self.question = Question(self.clock, asked, SECONDS)  # type: ignore[arg-type]
        self.answered: list[None] = []
        self.question.answered.addCallback(self.answered.append)

    def told(self, worker: object) -> None:
        self.question.told(worker)  # type: ignore[arg-type]


@pytest.fixture
def asking() -> Asking:
    return Asking()


def test_a_question_ends_with_the_last_answer(asking: Asking) -> None:
    asking.told(asking.one)
    asking.told(asking.one)  # it may say so again
    assert not asking.answered
    assert asking.question.waiting == {asking.other}
    asking.told(asking.other)
    assert asking.answered == [None]
    assert not asking.clock.getDelayedCalls()


def test_a_question_ends_with_its_time_and_shows_which_workers_have_not_answered(
    asking: Asking,
) -> None:
    asking.told(asking.one)
    asking.clock.advance(SECONDS - 0.01)
    assert not asking.answered
    asking.clock.advance(0.02)
    assert asking.answered == [None]
    assert asking.question.waiting == {asking.other}


def test_an_answer_that_comes_too_late_changes_nothing(asking: Asking) -> None:
    asking.clock.advance(SECONDS)
    asking.told(asking.one)
    asking.told(asking.other)
    asking.question.end()
    assert asking.answered == [None]


def test_a_worker_that_was_not_asked_answers_for_no_other(asking: Asking) -> None:
    asking.told(object())
    asking.told(object())
    assert not asking.answered
    asking.question.forget()


def test_a_question_to_no_worker_is_answered_at_once() -> None:
    clock = Clock()
    assert Question(clock, [], SECONDS).answered.called
    assert not clock.getDelayedCalls()


def test_code_that_waits_no_longer_leaves_no_timer(asking: Asking) -> None:
    asking.question.forget()
    assert not asking.clock.getDelayedCalls()
    asking.told(asking.one)
    asking.told(asking.other)
    assert not asking.answered
