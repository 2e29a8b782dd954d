from __future__ import annotations

import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.messages.framing import Chunk, Line, LineFramer, MessageCutShort, MessageTooLong
from echod.messages.prefixed import Length
from echod.messages.session import CLOSED, NO_WHILE, SETS, Session
from tests.support.paths import ROOT


def lines(**options: int) -> Session:
    return Session(Line(max_message=100).framer(), **options)


def answer_all(session: Session) -> list[bytes]:
    answered = []
    while (message := session.next_message()) is not None:
        answered.append(message)
        session.answered()
    return answered


def test_the_session_of_all_closed_connections_keeps_nothing_of_any() -> None:
    ended = Session(Chunk().framer())
    ended.close()
    before = {name.strip("_"): getattr(CLOSED, name) for name in FLAGS}
    assert before == {name.strip("_"): getattr(ended, name) for name in FLAGS}
    for event in EVENTS.values():
        event(CLOSED)
    CLOSED.blocked = CLOSED.resting = True
    CLOSED.uncount()
    assert {name.strip("_"): getattr(CLOSED, name) for name in FLAGS} == before
    assert (CLOSED.messages, CLOSED.incomplete, CLOSED.idle) == (0, 0, False)
    assert CLOSED.next_message() is None
    assert not CLOSED.wants_input


def test_no_message_is_handed_out_while_one_is_in_flight() -> None:
    session = lines()
    session.receive(b"one\ntwo\n")
    assert session.next_message() == b"one"
    assert session.next_message() is None
    session.answered()
    assert session.next_message() == b"two"


def test_a_message_that_did_not_reach_the_handler_is_not_counted() -> None:
    session = lines()
    session.receive(b"one\ntwo\n")
    assert answer_all(session) == [b"one", b"two"]
    session.receive(b"three\n")
    assert session.next_message() == b"three"
    session.uncount()
    assert session.messages == 2


def test_what_is_held_is_let_go_when_the_session_is_closed() -> None:
    class Framer(LineFramer):
        """One that can be referred to weakly."""

    framer = Framer(b"\n", 100)
    session = Session(framer)
    session.receive(b"one\ntwo\nthree")
    assert session.next_message() == b"one"
    alive = weakref.ref(framer)
    del framer
    session.close()
    assert alive() is None
    session.receive(b"four\n")
    session.end_input()
    session.answered()
    assert session.next_message() is None
    assert session.finished
    assert session.incomplete == 0


def test_no_message_is_handed_out_while_replies_are_blocked() -> None:
    session = lines()
    session.blocked = True
    session.receive(b"one\n")
    assert session.next_message() is None
    session.blocked = False
    assert session.next_message() == b"one"


def test_no_message_is_handed_out_while_the_connection_rests() -> None:
    session = lines()
    session.receive(b"one\ntwo\n")
    session.resting = True
    assert session.next_message() is None
    assert not session.idle
    session.resting = False
    assert answer_all(session) == [b"one", b"two"]


def test_a_framer_is_asked_again_only_once_more_has_come() -> None:
    class Asked(LineFramer):
        times = 0

        def next_message(self) -> bytes | None:
            self.times += 1
            return super().next_message()

    framer = Asked(b"\n", 100)
    session = Session(framer)
    session.receive(b"one\ntw")
    assert answer_all(session) == [b"one"]
    assert framer.times == 2
    assert session.next_message() is None
    assert framer.times == 2
    session.receive(b"o\n")
    assert answer_all(session) == [b"two"]


def test_input_is_wanted_up_to_the_read_ahead() -> None:
    session = lines(read_ahead=10)
    session.receive(b"one\n")
    assert session.next_message() == b"one"
    session.receive(b"12345678\n")
    assert session.wants_input
    session.receive(b"9\n")
    assert not session.wants_input
    session.answered()
    assert answer_all(session) == [b"12345678", b"9"]
    assert session.wants_input


@pytest.mark.parametrize(("size", "wanted"), [(9, True), (10, False), (11, False)])
def test_what_is_held_never_passes_the_read_ahead_by_more_than_one_read(
    size: int, wanted: bool
) -> None:
    session = lines(read_ahead=10)
    session.receive(b"one\n")
    assert session.next_message() == b"one"
    session.receive(b"x" * size)
    assert session.wants_input is wanted


def test_a_last_line_without_its_end_is_handed_out_though_it_was_looked_for_before() -> None:
    session = lines()
    session.receive(b"one\ntwo")
    assert answer_all(session) == [b"one"]
    session.end_input()
    assert not session.finished
    assert answer_all(session) == [b"two"]
    assert session.finished


def test_after_a_read_beyond_the_read_ahead_no_other_is_wanted_before_it_is_handed_out() -> None:
    session = lines(read_ahead=10)
    session.receive(b"1\n" * 50)
    for _ in range(49):
        assert session.next_message() == b"1"
        assert not session.wants_input
        session.answered()
    assert session.next_message() == b"1"
    assert session.wants_input
    session.receive(b"2\n")
    assert session.wants_input


def test_input_is_wanted_beyond_the_read_ahead_while_a_message_is_incomplete() -> None:
    session = lines(read_ahead=10)
    session.receive(b"x" * 50)
    assert session.next_message() is None
    assert session.wants_input


def test_no_input_is_wanted_while_replies_are_blocked() -> None:
    session = lines()
    session.blocked = True
    assert not session.wants_input


def test_a_session_is_finished_once_all_before_the_end_of_input_is_answered() -> None:
    session = lines()
    session.receive(b"one\ntwo")
    session.end_input()
    assert not session.finished
    assert session.next_message() == b"one"
    session.answered()
    assert not session.finished
    assert session.next_message() == b"two"
    assert session.next_message() is None
    assert not session.finished
    session.answered()
    assert answer_all(session) == []
    assert session.finished
    assert not session.wants_input


def test_a_message_that_the_daemon_cut_off_is_neither_answered_nor_an_error() -> None:
    for framing in (Line(), Length()):
        session = Session(framing.framer())
        session.receive(b"\0\0")
        session.end_input(cut_off=True)
        assert answer_all(session) == []
        assert session.finished


def test_a_message_that_the_client_cut_short_is_an_error() -> None:
    session = Session(Length().framer())
    session.receive(b"\0\0")
    session.end_input()
    with pytest.raises(MessageCutShort):
        session.next_message()


def test_messages_before_an_overlong_one_are_handed_out_first() -> None:
    session = Session(Line(max_message=5).framer())
    session.receive(b"one\ntwo\nmuch too long\n")
    assert session.next_message() == b"one"
    session.answered()
    assert session.next_message() == b"two"
    session.answered()
    with pytest.raises(MessageTooLong):
        session.next_message()


def test_after_close_nothing_is_handed_out_or_taken() -> None:
    session = lines()
    session.receive(b"one\n")
    session.close()
    session.receive(b"two\n")
    assert session.next_message() is None
    assert session.finished
    assert not session.wants_input


@pytest.mark.parametrize("how", ["close", "the last message"])
def test_what_comes_after_close_is_not_even_held(how: str) -> None:
    framer = Line().framer()
    session = Session(framer, max_messages=1)
    if how == "close":
        session.close()
    else:
        session.receive(b"one\n")
        assert answer_all(session) == [b"one"]
    for _ in range(100):
        session.receive(b"x" * 1000)
    assert framer.buffered == 0
    assert not session.full


def test_a_message_is_incomplete_while_its_client_alone_is_due() -> None:
    session = lines()
    assert session.incomplete == 0
    session.receive(b"one\ntw")
    assert session.incomplete == 0  # it is not known yet whether there are messages
    assert answer_all(session) == [b"one"]
    assert session.incomplete == 2
    session.receive(b"o")
    assert answer_all(session) == []
    assert session.incomplete == 3
    session.receive(b"\n")
    assert session.next_message() == b"two"
    assert session.incomplete == 0
    session.answered()
    assert answer_all(session) == []
    session.receive(b"thr")
    assert answer_all(session) == []
    session.end_input(cut_off=True)
    assert session.incomplete == 0


def test_a_close_waits_for_the_message_in_flight() -> None:
    session = lines()
    session.receive(b"one\n")
    assert session.next_message() == b"one"
    session.close()
    assert not session.finished
    session.answered()
    assert session.finished


def test_a_session_of_one_message_closes_after_it() -> None:
    session = lines(max_messages=1)
    session.receive(b"one\ntwo\n")
    assert answer_all(session) == [b"one"]
    assert session.closed
    assert session.finished
    assert session.messages == 1


@given(
    st.lists(
        st.one_of(
            st.binary(min_size=1, max_size=3000), st.sampled_from(["answer", "block", "unblock"])
        ),
        max_size=60,
    )
)
def test_every_byte_is_handed_out_once_in_order_whatever_happens_meanwhile(
    events: list[bytes | str],
) -> None:
    session = Session(Chunk().framer())
    sent, got = b"", b""

    def pull() -> None:
        nonlocal got
        while (message := session.next_message()) is not None:
            got += message

    for event in events:
        match event:
            case bytes():
                sent += event
                session.receive(event)
            case "answer":
                if session.in_flight:
                    session.answered()
            case _:
                session.blocked = event == "block"
        pull()
        assert sent.startswith(got)
    session.blocked = False
    session.end_input()
    while not session.finished:
        pull()
        if session.in_flight:
            session.answered()
    assert got == sent


# The table.

FLAGS = ("in_flight", "blocked", "resting", "closed", "input_ended", "_starved", "full")


class Stub:
    """A framer that holds some input, or none, and finds a message in it, or none."""

    def __init__(self, buffered: int, message: bytes | None = b"message") -> None:
        self.buffered = buffered
        self.message = message

    def feed(self, data: bytes) -> None:
        self.buffered += len(data)

    def end(self) -> None:
        pass

    def next_message(self) -> bytes | None:
        return self.message


def sessions(message: bytes | None = b"message") -> Iterator[Session]:
    """Yield a session in each combination of conditions."""
    for buffered, *values in itertools.product([0, 8], *[[False, True]] * len(FLAGS)):
        session = Session(Stub(buffered, message), read_ahead=10)
        for name, value in zip(FLAGS, values, strict=True):
            setattr(session, name, value)
        yield session


def conditions(session: Session) -> set[str]:
    """Return the conditions of the table that hold."""
    starved, holding = session._starved, session._framer.buffered > 0
    derived = {
        "starved": starved,
        "unheard": not starved,
        "holding": holding,
        "empty": not holding,
        "choked": session.full and holding and not starved,
        "unended": not (session.closed or (session.input_ended and starved)),
    }
    plain = {name for name in FLAGS if not name.startswith("_") and getattr(session, name)}
    return plain | {name for name, holds in derived.items() if holds}


def answer_to(session: Session, question: str) -> bool:
    if question == "next_message":
        return session.next_message() is not None
    return bool(getattr(session, question))


@pytest.mark.parametrize("question", NO_WHILE)
def test_each_question_is_answered_as_in_the_table_in_every_combination(question: str) -> None:
    answers: Counter[bool] = Counter()
    for session in sessions():
        before = conditions(session)
        answer = answer_to(session, question)
        assert answer is not bool(NO_WHILE[question] & before), before
        answers[answer] += 1
    assert min(answers[True], answers[False]) > 0
    assert answers.total() == 256


def test_each_condition_of_the_table_can_be_the_only_one_that_forbids() -> None:
    for question, forbidding in NO_WHILE.items():
        alone = {frozenset(forbidding & conditions(session)) for session in sessions()}
        assert {frozenset({one}) for one in forbidding} <= alone, question


EVENTS: dict[str, Callable[[Session], object]] = {
    "receive": lambda session: session.receive(b"xx"),
    "end_input": lambda session: session.end_input(),
    "cut_off": lambda session: session.end_input(cut_off=True),
    "message": lambda session: session.next_message(),
    "no message": lambda session: session.next_message(),
    "answered": lambda session: session.answered(),
    "close": lambda session: session.close(),
}


@pytest.mark.parametrize("event", SETS)
def test_each_event_sets_what_the_table_says_and_nothing_else(event: str) -> None:
    for session in sessions(None if event == "no message" else b"message"):
        before = {name.strip("_"): getattr(session, name) for name in FLAGS}
        dropped = event == "receive" and session.closed
        refused = "message" in event and bool(NO_WHILE["next_message"] & conditions(session))
        held = session._framer.buffered
        EVENTS[event](session)
        after = {name.strip("_"): getattr(session, name) for name in FLAGS}
        if event == "receive" and not dropped:
            assert after["full"] is (session._framer.buffered >= 10)
            before["full"] = after["full"]
            held += 2
        assert after == before | ({} if dropped or refused else dict(SETS[event]))
        assert session._framer.buffered == (0 if event == "close" else held)
        assert session.messages == (event == "message" and not refused)


def test_the_page_shows_the_table() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    head, _, *rows = page.partition("| no, while |")[2].split("\n\n", 1)[0].splitlines()
    questions = [cell.strip(" `") for cell in head.strip("|").split("|")]
    shown: dict[str, set[str]] = {question: set() for question in questions}
    for row in rows:
        condition, *cells = [cell.strip() for cell in row.strip("|").split("|")]
        for question, cell in zip(questions, cells, strict=True):
            if cell == "no":
                shown[question].add(condition.partition("`")[2].partition("`")[0])
    assert shown == NO_WHILE
