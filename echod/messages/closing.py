"""The states of a closing connection, as a table: state, event, next state.

A connection has two streams, the client's and ours, and each ends separately. `INPUT_ENDS` is the
end of the client's stream, and `OUTPUT_ENDS` the end of ours, when the kernel has our FIN after
all that was written. `CLOSE` closes gently, `ABORT` at once, and `LOSE` is the last event.

* An event that the table does not have for a state is refused and changes nothing. So only the
  first reason to close counts.
* `LOST` is the end, and `LOSE` leads there from every other state.
* No stream begins again: a path through the table passes each state at most once, and ends in
  `LOST`.

Pure: `echod.connections.lifecycle.ConnectionProtocol` follows the table, and makes the transport
carry out each step.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType


class State(enum.Enum):
    """The state of a connection's two streams; the values are descriptions."""

    OPEN = "messages come, and replies go"
    INPUT_ENDED = "the client sends no more; its messages are still answered"
    CLOSING = "the last replies go; more input is discarded"
    ENDING = "the last replies go; nothing comes any more"
    FIN_SENT = "nothing goes any more; more input is discarded"
    BOTH_ENDED = "nothing comes or goes; the socket is closed"
    ABORTED = "the socket is closed at once; unsent replies are dropped"
    LOST = "the connection is gone"

    __hash__ = object.__hash__  # each member exists once; Enum's own hash is a call in Python


class Event(enum.Enum):
    """The events that lead from one state to another; the values are descriptions."""

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
