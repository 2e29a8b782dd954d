"""The journal of real connections: in every model, for each kind of handler, each listener."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import ssl
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols import basic

from echod.awaiting import loop_of
from echod.connections.direct_protocol import DirectProtocol
from echod.connections.factory import EchoFactory
from echod.connections.pooled_protocol import PooledProtocol
from echod.connections.recording import facts_of
from echod.faults import Faults, parse_fault
from echod.handlers.kinds import message_handler
from echod.handlers.script import Script
from echod.journal import Journal, Mismatch, Record
from tests.connections.test_faulty import WAYS, UNIXServer
from tests.support.daemon import MODELS
from tests.support.needs import not_here
from tests.support.reactor import reactor
from tests.support.serving import Server, eventually, make_model, server_by

WORD = b"0123456789"
TLS_WAYS = ("TLS", "Twisted's TLS")


def make_journal(most: int = 100, most_bytes: int = 0) -> Journal[Any]:
    return Journal(most, most_bytes, facts_of=facts_of, now=lambda: 12.5, seconds=reactor.seconds)


def serving(
    journal: Journal[Any] | None,
    *,
    way: str,
    certificate: Path,
    tmp_path: Path,
    model: str = "reactor",
    **options: Any,
) -> Server:
    factory = EchoFactory(
        reactor, model=make_model(model), journal=journal, listener="here", **options
    )
    if way == "UNIX":
        return UNIXServer(factory, tmp_path / "s")
    return server_by(way, factory, certificate)


async def converse(server: Server, data: bytes) -> None:
    """Send data, and the end; wait until the server has forgotten the client."""
    client = await server.connect()
    client.send(data)
    client.finish()
    await client.receive_all()
    await eventually(lambda: not server.factory.connections)


@pytest.mark.parametrize("most_bytes", [0, 15])
@pytest.mark.parametrize("way", [*WAYS, "Twisted's TLS"])
@pytest.mark.parametrize("model", MODELS)
@pytest_twisted.ensureDeferred
async def test_a_connection_is_recorded_with_its_first_bytes(
    model: str, way: str, most_bytes: int, certificate: Path, tmp_path: Path
) -> None:
    journal = make_journal(most_bytes=most_bytes)
    async with serving(
        journal, way=way, model=model, certificate=certificate, tmp_path=tmp_path
    ) as server:
        client = await server.connect()
        client.send(WORD)
        await client.until(lambda: WORD in client.data)
        (record,) = journal.records()
        assert (record.number, record.reason, record.listener) == (1, None, "here")
        assert record.received == WORD[:most_bytes]
        if model != "serial":  # which takes one message
            client.send(WORD)
            await client.until(lambda: client.data.count(WORD) == 2)
        # A thread counts a reply after it has sent it: Twisted's TLS does not wait for it.
        await eventually(lambda: next(iter(journal.records())).bytes_out >= len(client.data))
        client.finish()
        sent = len(await client.receive_all())
        await eventually(lambda: not server.factory.connections)
    (record,) = journal.records()
    data = WORD if model == "serial" else WORD * 2
    if way != "Twisted's TLS":  # which has no half-close
        assert record.reason == ("served" if model == "serial" else "client closed")
    assert (record.bytes_in, record.bytes_out) == (len(data), sent)
    assert record.received == data[:most_bytes]
    assert (record.tls is not None) == (way in TLS_WAYS)
    assert (record.proxy is not None) == (way == "PROXY")
    if record.proxy:
        assert record.peer == record.proxy.source != record.proxy.through
    assert record.seconds >= 0


class Upper(Protocol):
    """A Twisted protocol, which loses the connection at the end of the input."""

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data.upper())


class AsyncioUpper(asyncio.Protocol):
    """The same for asyncio."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data.upper())


class Buffered(asyncio.BufferedProtocol):
    """One whose buffer uvloop would fill by itself."""

    def connection_made(self, transport: Any) -> None:
        self.buffer = bytearray(100)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        pass


async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "handler", [Factory.forProtocol(Upper), AsyncioUpper, Buffered, stream, "async def"]
)
@pytest_twisted.ensureDeferred
async def test_handlers_of_each_kind_are_recorded(
    handler: Any, way: str, certificate: Path, tmp_path: Path
) -> None:
    if isinstance(handler, type | type(stream)) and loop_of(reactor) is None:
        not_here("this reactor has no asyncio loop, so such a handler is refused at the start")
    if handler == "async def":

        async def handler(message: bytes) -> bytes:
            return message

    journal = make_journal(most_bytes=15)
    async with serving(
        journal, way=way, handler=handler, certificate=certificate, tmp_path=tmp_path
    ) as server:
        await converse(server, WORD * 2)
    (record,) = journal.ended()
    assert record.received == (WORD * 2)[:15]
    assert record.bytes_in == 20


@pytest_twisted.ensureDeferred
async def test_no_encrypted_byte_of_a_twisted_protocol_is_recorded_after_start_tls(
    certificate: Path, tmp_path: Path
) -> None:
    context = ssl.PrivateCertificate.loadPEM(certificate.read_bytes()).options()

    class Starting(basic.LineReceiver):
        def lineReceived(self, line: bytes) -> None:
            self.sendLine(line)
            if line == b"STARTTLS":
                self.transport.startTLS(context)
            else:
                self.transport.loseConnection()

    journal = make_journal(most_bytes=100)
    async with serving(
        journal,
        way="clear",
        handler=Factory.forProtocol(Starting),
        certificate=certificate,
        tmp_path=tmp_path,
    ) as server:
        client = await server.connect()
        client.send(b"STARTTLS\r\n")
        await client.receive(b"STARTTLS\r\n")
        client.transport.startTLS(ssl.CertificateOptions())
        client.send(b"QUIT\r\n")
        assert await client.receive_all() == b"QUIT\r\n"
        await eventually(lambda: not server.factory.connections)
    (record,) = journal.ended()
    assert record.received == b"STARTTLS\r\n"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
@pytest_twisted.ensureDeferred
async def test_faults_and_the_bytes_behind_them_are_recorded(
    model: str, way: str, certificate: Path, tmp_path: Path
) -> None:
    journal = make_journal(most_bytes=15)
    rules = [parse_fault("truncate:after=5,direction=in"), parse_fault("reset:after=8")]
    async with serving(
        journal,
        way=way,
        model=model,
        faults=Faults(rules, 1, 1, ""),
        certificate=certificate,
        tmp_path=tmp_path,
        handler=message_handler(lambda message: message * 2),
        banner=b"",
    ) as server:
        client = await server.connect()
        client.send(WORD)
        await client.receive_all()
        await eventually(lambda: not server.factory.connections)
    (record,) = journal.ended()
    assert record.reason == "fault"
    assert record.faults == ("truncate", "reset")
    assert record.received == WORD[:5]


@pytest.mark.parametrize("way", [*WAYS, "Twisted's TLS"])
@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_its_script_is_recorded(
    way: str, certificate: Path, tmp_path: Path
) -> None:
    file = tmp_path / "talk.txt"
    file.write_text("# greets\n< hello\n> fine\n")
    journal = make_journal()
    async with serving(
        journal,
        way=way,
        handler=Script(file=str(file)),
        certificate=certificate,
        tmp_path=tmp_path,
    ) as server:
        client = await server.connect()
        client.send(b"bye\n")
        await client.receive_all()
        await eventually(lambda: not server.factory.connections)
    (record,) = journal.ended()
    assert record.mismatches == (Mismatch(2, "hello", r"'bye\n'"),)


@pytest.mark.parametrize("model", ["reactor", "defer-to-thread"])
def test_without_first_bytes_nothing_stands_in_their_way(model: str) -> None:
    plain = {"reactor": DirectProtocol, "defer-to-thread": PooledProtocol}[model]
    for journal in (None, make_journal()):
        factory = EchoFactory(reactor, model=make_model(model), journal=journal)
        factory.model.stop()
        assert factory.protocol is plain
    factory = EchoFactory(reactor, model=make_model(model), journal=make_journal(most_bytes=1))
    factory.model.stop()
    assert factory.protocol is not plain


@pytest_twisted.ensureDeferred
async def test_listeners_share_one_row_of_numbers(certificate: Path, tmp_path: Path) -> None:
    journal = make_journal()
    options: dict[str, Any] = {"certificate": certificate, "tmp_path": tmp_path}
    async with (
        serving(journal, way="clear", **options) as one,
        serving(journal, way="TLS", **options) as two,
    ):
        for server in (one, two, one):
            await converse(server, WORD)
    found: list[Record] = journal.ended()
    assert [record.number for record in found] == [1, 2, 3]
    assert [record.tls is not None for record in found] == [False, True, False]
