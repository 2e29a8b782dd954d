from __future__ import annotations

import itertools
from typing import Any

import pytest

from echod.messages.closing import TRANSITIONS, Event, State
from tests.support.paths import ROOT

# The pairs that are not in the table, each with its reason.
REFUSED = {
    # Our stream ends by `close` alone; a thread may shut it down, and read on.
    **dict.fromkeys(itertools.product([State.OPEN, State.INPUT_ENDED], [Event.OUTPUT_ENDS])),
    # The client's stream has ended already.
    **dict.fromkeys(
        itertools.product([State.INPUT_ENDED, State.ENDING, State.BOTH_ENDED], [Event.INPUT_ENDS])
    ),
    # Ours has.
    **dict.fromkeys(itertools.product([State.FIN_SENT, State.BOTH_ENDED], [Event.OUTPUT_ENDS])),
    # The first reason to close counts.
    **dict.fromkeys(
        itertools.product(
            [State.CLOSING, State.ENDING, State.FIN_SENT, State.BOTH_ENDED], [Event.CLOSE]
        )
    ),
    # Only the last event can follow an abort, and none that.
    **dict.fromkeys(itertools.product([State.ABORTED], {*Event} - {Event.LOSE})),
    **dict.fromkeys(itertools.product([State.LOST], Event)),
}


def after(state: State, event: Event) -> State | None:
    return TRANSITIONS.get((state, event))


def reached_from(state: State) -> set[State]:
    """Return each state that can follow `state`, by any number of events."""
    reached: set[State] = set()
    fresh = {state}
    while fresh:
        fresh = {then for (before, _), then in TRANSITIONS.items() if before in fresh} - reached
        reached |= fresh
    return reached


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_each_event_leads_on_from_each_state_or_is_refused(state: State, event: Event) -> None:
    assert (after(state, event) is None) is ((state, event) in REFUSED)


def test_the_table_can_not_be_changed() -> None:
    table: Any = TRANSITIONS
    with pytest.raises(TypeError):
        table[State.LOST, Event.CLOSE] = State.OPEN


def test_each_state_is_reached_but_the_first_which_is_left_for_ever() -> None:
    assert reached_from(State.OPEN) == {*State} - {State.OPEN}


@pytest.mark.parametrize("state", State)
def test_no_state_comes_again(state: State) -> None:
    assert state not in reached_from(state)


@pytest.mark.parametrize("state", [each for each in State if each is not State.LOST])
def test_each_state_may_be_lost_and_nothing_follows_that(state: State) -> None:
    assert after(state, Event.LOSE) is State.LOST
    assert not reached_from(State.LOST)


@pytest.mark.parametrize("state", State)
def test_each_stream_ends_once(state: State) -> None:
    for event in (Event.INPUT_ENDS, Event.OUTPUT_ENDS):
        if (then := after(state, event)) is not None:
            for later in {then} | reached_from(then):
                assert after(later, event) is None


@pytest.mark.parametrize("state", State)
def test_our_stream_ends_only_once_we_close(state: State) -> None:
    ends = after(state, Event.OUTPUT_ENDS) is not None
    assert not (ends and after(state, Event.CLOSE))


@pytest.mark.parametrize(
    "state", [each for each in State if each not in (State.ABORTED, State.LOST)]
)
def test_an_abort_ends_both_streams_in_any_state(state: State) -> None:
    assert after(state, Event.ABORT) is State.ABORTED
    assert reached_from(State.ABORTED) == {State.LOST}


def test_the_order_in_which_the_streams_end_makes_no_difference() -> None:
    events = (Event.CLOSE, Event.OUTPUT_ENDS, Event.INPUT_ENDS)
    for order in itertools.permutations(events):
        if order.index(Event.CLOSE) < order.index(Event.OUTPUT_ENDS):
            state: State | None = State.OPEN
            for event in order:
                assert state is not None
                state = after(state, event)
            assert state is State.BOTH_ENDED


def shown(state: State | None) -> str:
    return "" if state is None else state.name.replace("_", " ").lower()


def test_the_document_on_the_architecture_shows_the_table() -> None:
    lines = [f"| state | {' | '.join(event.value for event in Event)} |", "| --- " * 6 + "|"]
    for state in State:
        cells = [f"**{shown(state)}**: {state.value}", *(shown(after(state, e)) for e in Event)]
        lines.append("".join(f"| {cell} " if cell else "| " for cell in cells) + "|")
    assert "\n".join(lines) + "\n" in (ROOT / "docs" / "architecture.md").read_text()
