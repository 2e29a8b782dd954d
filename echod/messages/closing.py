"""The states of a connection on its way to the end, as a table: state, event, next state.

A connection has two streams, the client's and ours, and each ends by itself.  `INPUT_ENDS` is the
end of the client's stream, `OUTPUT_ENDS` that of ours, when the kernel has our FIN behind all that
was written.  `CLOSE` closes gently, `ABORT` at once, and `LOSE` is the last event of all.

* An event that the table does not have for a state is refused: it changes nothing.  So the first
  reason to close counts, and no other.
* `LOST` is the end, and `LOSE` leads there from every other state.
* No stream begins again: a way through the table passes each state once, and then comes `LOST`.

Pure: `echod.connections.lifecycle.ConnectionProtocol` follows the table, and does what each step
asks of the transport.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType


class State(enum.Enum):
    """How far the two streams of a connection are; the values are for readers."""

    OPEN = "messages come, and replies go"
    INPUT_ENDED = "the client sends no more; its messages are still answered"
    CLOSING = "the last replies go; more input is discarded"
    ENDING = "the last replies go; nothing comes any more"
    FIN_SENT = "nothing goes any more; more input is discarded"
    BOTH_ENDED = "nothing comes or goes; the socket is closed"
    ABORTED = "the socket is closed at once; unsent replies are dropped"
    LOST = "the connection is gone"

    __hash__ = object.__hash__  # as there is one of each; Enum's own is a call in Python


class Event(enum.Enum):
    """The events that lead from one state to another; the values are for readers."""

    INPUT_ENDS = "the client's FIN"
    CLOSE = "close"
    OUTPUT_ENDS = "our FIN"
    ABORT = "abort"
    LOSE = "lost"

    __hash__ = object.__hash__


TRANSITIONS: Mapping[tuple[State, Event], State] = MappingProxyType(
    {
        (State.OPEN, Event.INPUT_ENDS): State.INPUT_ENDED,
        (State.OPEN, Event.CLOSE): State.CLOSING,
        (State.OPEN, Event.ABORT): State.ABORTED,
        (State.OPEN, Event.LOSE): State.LOST,
        (State.INPUT_ENDED, Event.CLOSE): State.ENDING,
        (State.INPUT_ENDED, Event.ABORT): State.ABORTED,
        (State.INPUT_ENDED, Event.LOSE): State.LOST,
        (State.CLOSING, Event.INPUT_ENDS): State.ENDING,
        (State.CLOSING, Event.OUTPUT_ENDS): State.FIN_SENT,
        (State.CLOSING, Event.ABORT): State.ABORTED,
        (State.CLOSING, Event.LOSE): State.LOST,
        (State.ENDING, Event.OUTPUT_ENDS): State.BOTH_ENDED,
        (State.ENDING, Event.ABORT): State.ABORTED,
        (State.ENDING, Event.LOSE): State.LOST,
        (State.FIN_SENT, Event.INPUT_ENDS): State.BOTH_ENDED,
        (State.FIN_SENT, Event.ABORT): State.ABORTED,
        (State.FIN_SENT, Event.LOSE): State.LOST,
        (State.BOTH_ENDED, Event.ABORT): State.ABORTED,
        (State.BOTH_ENDED, Event.LOSE): State.LOST,
        (State.ABORTED, Event.LOSE): State.LOST,
    }
)


def after(state: State, event: Event) -> State | None:
    """Return the state that follows `state` by `event`; None: the event is refused."""
    return TRANSITIONS.get((state, event))
