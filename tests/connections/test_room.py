"""The wait for room in a socket."""

from __future__ import annotations

import os
import socket

import pytest_twisted

from echod.connections.room import Room
from tests.support.reactor import reactor
from tests.support.serving import eventually


@pytest_twisted.ensureDeferred
async def test_the_number_of_its_descriptor_is_free_only_in_the_next_turn() -> None:
    """Fault 211: Nor is an event of a thread's socket taken for one of the next descriptor."""
    told: list[bool] = []
    one, other = socket.socketpair()
    with one, other:
        descriptor = os.dup(one.fileno())
        room = Room(reactor, descriptor, lambda: told.append(True))
        await eventually(lambda: told)
        descriptor = os.dup(one.fileno())
        room = Room(reactor, descriptor, lambda: told.append(False))
        room.stop()
        os.fstat(descriptor)  # a failure if it is closed
        room.stop()
    assert told == [True]
