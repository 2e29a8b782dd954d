"""Ports without a descriptor: test_port.py runs these tests, in a process of their own."""

from __future__ import annotations

import errno
import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from echod.reactor import port as port_module
from tests.support.waiting import PATIENCE

from .harness import Echo, Harness, dial
from .test_port import echoes, logged


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Use up all descriptors of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 20, hard))
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        pass
    try:
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_out_of_descriptors(harness: Harness) -> None:
    """Clients are refused, nothing spins or floods the log, and then accepting continues."""
    number = harness.listen(Echo)
    spent: list[float] = []

    def client() -> None:
        before = dial(number)
        assert echoes(before)
        waiting = [socket.socket() for _ in range(10)]
        with no_descriptors():
            for connection in waiting:
                connection.settimeout(PATIENCE)
                connection.connect(("127.0.0.1", number))
                assert connection.recv(1) == b""
            assert echoes(before)
            started = time.process_time()
            time.sleep(1)
            spent.append(time.process_time() - started)
        assert echoes(dial(number))
        for connection in waiting:
            connection.close()

    with logged() as events:
        harness.run(client)
    assert spent[0] < 0.05
    assert 0 < len(events) < 10


def test_out_of_descriptors_in_a_storm(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that reconnect as soon as they are refused do not keep the port busy."""
    harness.listen(Echo)
    tries: list[int] = []
    spent: list[float] = []

    def never(listener: socket.socket) -> Any:
        tries.append(1)
        if len(tries) % 2:
            raise OSError(errno.EMFILE, "no descriptor")
        return os.dup(listener.fileno()), None

    def client() -> None:
        began = time.monotonic()
        dial(harness.port.getHost().port)
        time.sleep(1)
        spent.append(time.monotonic() - began)

    monkeypatch.setattr(port_module, "_accept", never)
    with logged() as events:
        harness.run(client)
    # Two tries for each client of a batch, a batch for each rest.
    most = 1.5 * spent[0] / port_module.REST * 2 * port_module.BATCH
    assert port_module.BATCH < len(tries) < most
    assert 0 < len(events) < 10


def test_out_of_descriptors_without_a_reserve(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then clients wait, and are served once there is a descriptor."""
    number = harness.listen(Echo)
    spent: list[float] = []

    def client() -> None:
        waiting = socket.socket()
        with no_descriptors():
            waiting.connect(("127.0.0.1", number))
            started = time.process_time()
            time.sleep(1)
            spent.append(time.process_time() - started)
        waiting.settimeout(PATIENCE)
        assert echoes(waiting)
        waiting.close()

    monkeypatch.setattr(port_module._reserve, "take", lambda: False)
    with logged() as events:
        harness.run(client)
    assert spent[0] < 0.05
    assert 0 < len(events) < 10
