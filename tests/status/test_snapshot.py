from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from echod.connections.sweeper import SLICE
from echod.metrics import Metrics
from echod.status.snapshot import ListenerFigures, figures_of
from tests.status.fakes import FakeConnection, FakeFactory, FakeListener


class Gathering:
    """Figures that are gathered a slice at a time."""

    def __init__(self, listener: FakeListener) -> None:
        self.turn: Deferred[None] = Deferred()
        self.figures: ListenerFigures | None = None
        gathering = Deferred.fromCoroutine(figures_of([listener], self._pause))
        gathering.addCallback(self._gathered)

    def _pause(self) -> Deferred[None]:
        self.turn = Deferred()
        return self.turn

    def _gathered(self, figures: list[ListenerFigures]) -> None:
        (self.figures,) = figures


def end(factory: FakeFactory, connection: FakeConnection) -> None:
    factory.connections.remove(connection)
    messages, received, sent = connection.figures
    factory.metrics.end("client closed", messages=messages, received=received, sent=sent)


def test_others_have_their_turn_between_slices_of_connections() -> None:
    connections = [FakeConnection((1, 2, 3)) for _ in range(2 * SLICE + 1)]
    gathering = Gathering(FakeListener(factory=FakeFactory(Metrics(messages=5), connections)))
    turns = 0
    while gathering.figures is None:
        gathering.turn.callback(None)
        turns += 1
    assert turns == 2
    assert gathering.figures.messages == 5 + len(connections)
    assert gathering.figures.received == 2 * len(connections)
    assert gathering.figures.sent == 3 * len(connections)


@given(st.lists(st.integers(0, 3 * SLICE - 1), unique=True), st.booleans())
def test_who_ends_meanwhile_is_counted_once(ending: list[int], between: bool) -> None:
    """So no counter goes back from one look to the next."""
    connections = [FakeConnection((1, 10, 100)) for _ in range(3 * SLICE)]
    factory = FakeFactory(Metrics(), list(connections))
    gathering = Gathering(FakeListener(factory=factory))
    if between:
        gathering.turn.callback(None)
    for number in ending:
        end(factory, connections[number])
    factory.connections.append(FakeConnection((7, 7, 7)))  # for the next look
    while gathering.figures is None:
        gathering.turn.callback(None)
    figures = gathering.figures
    assert (figures.messages, figures.received, figures.sent) == (750, 7500, 75000)
    assert not any(figures.ended.values())
