"""The length of the kernel's queue of a listening socket, by the kernel."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from echod.listening.backlog import backlog_of


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_the_kernel_says_how_many_clients_may_wait(
    family: socket.AddressFamily, tmp_path: Path
) -> None:
    with socket.socket(family) as listening:
        if family == socket.AF_UNIX:
            listening.bind(str(tmp_path / "s"))
        for length in (0, 1, 77):
            listening.listen(length)
            assert backlog_of(listening) == length


def test_an_unknown_queue_may_be_as_long_as_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen(7)
        monkeypatch.setattr("echod.listening.backlog._SOCK_DIAG", 31)  # there is no such family
        assert backlog_of(listening) == socket.SOMAXCONN
