from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol

from echod import EchoFactory
from echod.listening import unix
from echod.listening.unix import UNIXEndpoint
from tests.support.clients import BANNER
from tests.support.log import Log
from tests.support.needs import needs_root
from tests.support.reactor import reactor
from tests.support.serving import Talker


@asynccontextmanager
async def listening(path: Path, **options: Any) -> AsyncIterator[Any]:
    port = await UNIXEndpoint(reactor, str(path), **options).listen(EchoFactory(reactor))
    try:
        yield port
    finally:
        await port.stopListening()


def leave_stale(path: Path) -> None:
    """Leave the socket of a killed process behind."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()


@pytest.mark.parametrize(("options", "mode"), [({}, 0o660), ({"mode": 0o600}, 0o600)])
@pytest_twisted.ensureDeferred
async def test_the_mode_is_explicit_whatever_the_umask(
    tmp_path: Path, options: dict[str, int], mode: int
) -> None:
    path = tmp_path / "s"
    before = os.umask(0)
    try:
        async with listening(path, **options):
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(before)


@pytest_twisted.ensureDeferred
async def test_the_file_is_there_while_it_listens_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with listening(path):
        client = await connectProtocol(UNIXClientEndpoint(reactor, str(path)), Talker())
        await client.receive(BANNER)
        client.finish()
        await client.receive_all()
        assert list(tmp_path.iterdir()) == [path]
    assert not list(tmp_path.iterdir())


@pytest_twisted.ensureDeferred
async def test_what_nobody_listens_on_is_replaced(tmp_path: Path, log: Log) -> None:
    path = tmp_path / "s"
    leave_stale(path)
    async with listening(path):
        client = await connectProtocol(UNIXClientEndpoint(reactor, str(path)), Talker())
        await client.receive(BANNER)
        client.finish()
        await client.receive_all()
    assert f"Removing the stale socket {path}" in log.text


@pytest_twisted.ensureDeferred
async def test_what_somebody_listens_on_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        # Even if it does not accept, and its queue is full: of one, and that is who asked first.
        for _ in range(2):
            with pytest.raises(OSError, match="Address in use by another process"):
                await UNIXEndpoint(reactor, str(path)).listen(EchoFactory(reactor))
        assert path.exists()


@pytest.mark.parametrize("kind", ["file", "link"])
@pytest_twisted.ensureDeferred
async def test_what_is_no_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "s", tmp_path / "other"
    other.write_text("precious")
    if kind == "file":
        path.write_text("precious")
    else:
        path.symlink_to(other)
    with pytest.raises(OSError, match="A file that is not a socket exists there"):
        await UNIXEndpoint(reactor, str(path)).listen(EchoFactory(reactor))
    assert path.read_text() == "precious"


@pytest_twisted.ensureDeferred
async def test_anothers_socket_is_not_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with listening(path):
        path.unlink()
        leave_stale(path)
    assert path.exists()


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_gone_is_no_error_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with listening(path):
        path.unlink()


@pytest_twisted.ensureDeferred
async def test_a_directory_that_anyone_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(OSError, match=r"Any user may write to .*chmod o-w"):
        await UNIXEndpoint(reactor, str(tmp_path / "s")).listen(EchoFactory(reactor))


@pytest_twisted.ensureDeferred
async def test_a_shared_directory_is_warned_of(tmp_path: Path, log: Log) -> None:
    tmp_path.chmod(0o1777)
    async with listening(tmp_path / "s"):
        assert "another user could have been there first" in log.text


@pytest_twisted.ensureDeferred
async def test_a_directory_that_its_user_may_not_use_is_said_to_be(tmp_path: Path) -> None:
    needs_root("become another user")
    tmp_path.chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError, match=r"This user may not make a file in /$"):
            await UNIXEndpoint(reactor, "/s").listen(EchoFactory(reactor))
        with pytest.raises(PermissionError, match=f"This user may not enter {tmp_path}/a$"):
            await UNIXEndpoint(reactor, f"{tmp_path}/a/s").listen(EchoFactory(reactor))
    finally:
        os.seteuid(0)


@pytest_twisted.ensureDeferred
async def test_a_directory_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no directory .*/no: make it first"):
        await UNIXEndpoint(reactor, str(tmp_path / "no" / "s")).listen(EchoFactory(reactor))
    (tmp_path / "no").write_text("")
    with pytest.raises(NotADirectoryError, match=r"/no is not a directory"):
        await UNIXEndpoint(reactor, str(tmp_path / "no" / "s")).listen(EchoFactory(reactor))


@pytest_twisted.ensureDeferred
async def test_of_two_that_start_at_once_one_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix, "LOCK_SECONDS", 0.05)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"Another process keeps .* locked"):
            await UNIXEndpoint(reactor, str(tmp_path / "s")).listen(EchoFactory(reactor))
    finally:
        os.close(descriptor)
    async with listening(tmp_path / "s"):
        pass
