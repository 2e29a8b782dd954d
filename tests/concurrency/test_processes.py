"""How many programs run at once, and for whom."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from echod.concurrency.model import Busy
from echod.concurrency.processes import Processes
from echod.limits import Limits
from echod.reasons import Refusal


class Connection:
    def __init__(self, network: str = "") -> None:
        self.network = network


def enter(model: Processes, network: str = "") -> Connection:
    connection = Connection(network)
    model.enter(connection, lambda: None)
    return connection


def refusal(model: Processes, network: str = "") -> Refusal:
    with pytest.raises(Busy) as caught:
        enter(model, network)
    return caught.value.refusal


def test_a_connection_holds_its_place_until_it_leaves() -> None:
    model = Processes(Clock(), 2)
    first = enter(model)
    enter(model)
    assert refusal(model) is Refusal.MAX_PROCESSES
    model.leave(first)
    model.leave(first)
    enter(model)
    assert [(level.limit, level.used, level.most) for level in model.levels] == [
        ("max-processes", 2, 2)
    ]


def test_one_address_has_a_share_of_the_processes_and_others_the_rest() -> None:
    model = Processes(Clock(), 4)
    for _ in range(3):
        enter(model, "192.0.2.1")
    assert refusal(model, "192.0.2.1") is Refusal.PROCESSES_PER_ADDRESS
    enter(model, "192.0.2.2")
    assert refusal(model, "192.0.2.3") is Refusal.MAX_PROCESSES


def test_a_reload_may_lift_the_share_of_an_address() -> None:
    model = Processes(Clock(), 2)
    enter(model, "192.0.2.1")
    model.reconfigure(Limits(max_connections_per_address=0))
    enter(model, "192.0.2.1")
    assert refusal(model, "192.0.2.1") is Refusal.MAX_PROCESSES


def test_without_a_process_a_drain_is_over_at_once() -> None:
    model = Processes(Clock(), 2)
    ended: list[object] = []
    model.drain().addCallback(ended.append)
    assert ended == [None]
