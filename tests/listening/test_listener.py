from __future__ import annotations

import errno
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol

from echod.listening import last_clients
from echod.listening.backlog import backlog_of
from echod.listening.endpoints import ListenError, Listening, parse_listen
from echod.listening.listener import Listener, bind_error
from tests.support.log import Log
from tests.support.needs import missing
from tests.support.reactor import reactor
from tests.support.serving import LOOPBACK, SlowEndpoint, eventually, turns


def listener(endpoint: Any = None, description: str = LOOPBACK) -> Listener[Factory]:
    wanted = Listening(endpoint) if endpoint else parse_listen(reactor, description)
    return Listener(reactor, description, wanted, Factory.forProtocol(Protocol))


@pytest_twisted.ensureDeferred
async def test_it_has_an_address_while_it_listens_and_listens_again() -> None:
    made = listener()
    for _ in range(2):
        assert made.address is None
        await made.listen()
        address: Any = made.address
        with socket.create_connection(("127.0.0.1", address.port)):
            pass
        await made.stop()
    assert made.address is None
    await made.stop()


@pytest.mark.parametrize(
    ("description", "length"),
    [
        ("tcp:0:interface=127.0.0.1", socket.SOMAXCONN),
        ("tcp:0:interface=127.0.0.1:backlog=7", 7),
        ("tcp:0:127.0.0.1:7", 7),
        ("tcp6:0:7", 7),
        ("plugin:0", socket.SOMAXCONN),
        ("plugin:0:backlog=7", 7),
    ],
)
@pytest_twisted.ensureDeferred
async def test_as_many_clients_wait_as_the_endpoint_says_or_as_can(
    description: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plugin(reactor: Any, text: str) -> TCP4ServerEndpoint:
        return TCP4ServerEndpoint(reactor, 0, 7, "127.0.0.1")

    monkeypatch.setattr("twisted.internet.endpoints.serverFromString", plugin)
    made = listener(description=description)
    await made.listen()
    (port,) = made._ports
    assert backlog_of(port.socket) == length
    await made.stop()


@pytest_twisted.ensureDeferred
async def test_a_connection_sends_each_reply_at_once() -> None:
    accepted: list[Any] = []

    class Noting(Protocol):
        def connectionMade(self) -> None:
            accepted.append(self.transport)

    wanted = parse_listen(reactor, LOOPBACK)
    made = Listener(reactor, LOOPBACK, wanted, Factory.forProtocol(Noting))
    await made.listen()
    address: Any = made.address
    with socket.create_connection(("127.0.0.1", address.port)):
        await eventually(lambda: accepted)
        assert accepted[0].getTcpNoDelay()
    await made.stop()


def needs_a_filter() -> None:
    """End a test where this user may attach no filter to a socket, as in some sandboxes."""
    with socket.socket() as probe:
        try:
            last_clients._drop_requests(probe)
        except PermissionError as error:
            missing(f"a socket gets no filter here: {error}: run the tests as root")


# Of <linux/tcp.h>: a connection that the server has not answered, and one that it has refused.
SYN_SENT, CLOSED = 2, 7


@pytest.mark.parametrize("kind", ["tcp", "tcp6", "unix"])
@pytest_twisted.ensureDeferred
async def test_no_client_is_connected_once_the_last_has_been_accepted(
    kind: str, tmp_path: Path
) -> None:
    """Fault 204: A client that comes in that moment is refused, not reset: it can try another
    server, because none has got what it sent.
    """
    if kind != "unix":
        needs_a_filter()
    endpoint = {
        "tcp": LOOPBACK,
        "tcp6": r"tcp6:0:interface=\:\:1",
        "unix": f"unix:{tmp_path / 's'}",
    }[kind]
    accepted: list[Noting] = []

    class Noting(Protocol):
        def connectionMade(self) -> None:
            accepted.append(self)

    factory = Factory.forProtocol(Noting)
    made = Listener(reactor, endpoint, parse_listen(reactor, endpoint), factory)
    await made.listen()
    address: Any = made.address
    where = str(tmp_path / "s") if kind == "unix" else (address.host, address.port)
    family = {"tcp": socket.AF_INET, "tcp6": socket.AF_INET6, "unix": socket.AF_UNIX}[kind]
    with socket.socket(family) as waits, socket.socket(family) as late:
        late.setblocking(False)
        asked: list[int] = []
        port: Any = made._port
        stop_listening = port.stopListening

        def ask_and_stop() -> Any:
            asked.append(late.connect_ex(where))
            return stop_listening()

        port.stopListening = ask_and_stop
        waits.connect(where)
        await made.stop()
        assert len(accepted) == 1
        if kind == "unix":
            assert asked == [errno.ENOENT]
        else:
            assert asked == [errno.EINPROGRESS]
            # On a busy machine a second may have passed: then it has asked again, and is refused.
            state = late.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
            error = late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            assert (state, error) in ((SYN_SENT, 0), (CLOSED, errno.ECONNREFUSED))
        accepted[0].transport.abortConnection()


@pytest_twisted.ensureDeferred
async def test_an_endpoint_that_is_slower_than_the_end_is_stopped_as_soon_as_it_listens() -> None:
    endpoint = SlowEndpoint()
    made = listener(endpoint)
    listening = made.listen()
    await made.stop()
    port = await endpoint.begin()
    await listening
    assert made.address is None
    assert port.disconnected


@pytest_twisted.ensureDeferred
async def test_what_cannot_listen_says_where_and_why(log: Log) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        line = (
            "Bind failed. Error Code : 98 Message Address already in use; ss -ltnp shows which.*"
        )
        with pytest.raises(ListenError, match=f"^{endpoint}: {line}$"):
            await listener(description=endpoint).listen()
        assert re.search(f"{endpoint}: {line}", log.take_errors()[0])


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            OSError(errno.EACCES, ""),
            "Error Code : 13 Message Permission denied; a port below 1024",
        ),
        (
            OSError(errno.EADDRNOTAVAIL, None),
            "Error Code : 99 Message Cannot assign requested addr",
        ),
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "Error Code : -2 Message Name or service not known; interface= takes an address",
        ),
        (OSError(errno.EMFILE, None), "Error Code : 24 Message Too many open files"),
        (CannotListenError("", 1, OSError(98, None)), "Error Code : 98 Message Address already"),
        (OSError(98, "in use\x1b"), r"Error Code : 98 Message in use\x1b"),
        (CannotListenError("", 1, "odd\x1b"), r"Error Code : 22 Message odd\x1b"),
        (ValueError("odd"), "Error Code : 22 Message odd"),
    ],
)
def test_why_listening_failed_is_told_in_the_words_of_every_first_server(
    error: Exception, text: str
) -> None:
    assert bind_error(error).startswith(f"Bind failed. {text}")


def test_an_error_with_words_of_its_own_gets_no_remedy_for_a_port() -> None:
    assert bind_error(OSError(98, "a file is there")).endswith("a file is there")


def test_an_error_names_the_file_that_is_missing_as_after_a_chroot() -> None:
    error = FileNotFoundError(2, "No such file or directory", "/dev/null")
    assert bind_error(error).endswith(
        "Error Code : 2 Message No such file or directory: /dev/null"
    )


@pytest_twisted.ensureDeferred
async def test_a_paused_listener_lets_clients_wait_until_no_reason_is_left() -> None:
    made: Any = listener()
    accepted: list[object] = []
    made.factory.buildProtocol = accepted.append
    made.pause("one")
    await made.listen()
    made.pause("two")
    address = made.address
    with socket.create_connection(("127.0.0.1", address.port)):
        made.resume("one")
        made.resume("one")
        await turns(20)
        assert not accepted
        made.resume("two")
        await eventually(lambda: accepted)
    made.pause("three")
    with socket.create_connection(("127.0.0.1", address.port)):
        await turns(20)
        assert len(accepted) == 1
    await made.stop()


@pytest_twisted.ensureDeferred
async def test_a_client_that_was_just_accepted_has_its_protocol_before_the_stop_is_over() -> None:
    begun: list[Protocol] = []

    class Begins(Protocol):
        def connectionMade(self) -> None:
            begun.append(self)

    made = Listener(
        reactor, LOOPBACK, parse_listen(reactor, LOOPBACK), Factory.forProtocol(Begins)
    )
    await made.listen()
    address: Any = made.address
    (port,) = made._ports
    stop_listening = port.stopListening
    stopped: list[int] = []

    def accept_a_last_one() -> Any:
        port.doRead()  # on uvloop the protocol follows in a later turn
        return stop_listening()

    port.stopListening = accept_a_last_one
    made.pause("nothing else accepts it")
    with socket.create_connection(("127.0.0.1", address.port)):
        made.stop().addCallback(lambda _: stopped.append(len(begun)))
        await eventually(lambda: stopped)
        assert stopped == [1]
        begun[0].transport.abortConnection()
        await turns(3)
