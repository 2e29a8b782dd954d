"""A TLS connection by itself: its transport is a list, its peer is OpenSSL in memory."""

from __future__ import annotations

import contextlib
import gc
import itertools
import ssl
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    ILoggingContext,
    IProtocol,
    ISSLTransport,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from echod import Chunk, EchoFactory, Handler, Line
from echod.messages.framing import Framing
from echod.tls import Files, Pair, ServerContext, TLSConnection, TLSError, TLSFactory, TLSFacts
from echod.tls.connection import BATCH, LINGER, MOST, RECORD
from echod.turns import LONG, Turns
from tests.support.certificates import Authority
from tests.support.log import Log
from tests.support.looping import BOUND, Loop, Work
from tests.support.tls_peer import VERSIONS, client_context, hello_of, records

HERE, THERE = IPv4Address("TCP", "127.0.0.1", 1), IPv4Address("TCP", "127.0.0.1", 2)


class Lower:
    """The transport below: it records its calls."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.reading = True
        self.asked: list[str] = []
        self.producer: Any = None
        self.no_delay = False
        self.has_context = False

    def write(self, data: bytes) -> None:
        assert data
        self.sent.append(data)

    def loseConnection(self) -> None:
        self.asked.append("close")

    def loseWriteConnection(self) -> None:
        self.asked.append("fin")

    def abortConnection(self) -> None:
        self.asked.append("abort")

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self.producer is None
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def getPeer(self) -> Any:
        return THERE

    def getHost(self) -> Any:
        return HERE

    def getHandle(self) -> str:
        return "the socket"

    def getTcpNoDelay(self) -> bool:
        return self.no_delay

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = enabled

    getTcpKeepAlive, setTcpKeepAlive = getTcpNoDelay, setTcpNoDelay


class Plain(Protocol):
    """An application without half-close."""

    transport: Any
    greeting = b""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.events: list[str] = []
        self.reason: Failure | None = None

    def connectionMade(self) -> None:
        if self.greeting:
            self.transport.write(self.greeting)

    def dataReceived(self, data: bytes) -> None:
        self.got.append(data)

    def connectionLost(self, reason: Any = None) -> None:
        self.reason = reason


@implementer(IHalfCloseableProtocol, IHandshakeListener)
class Application(Plain):
    """An application with half-close, which waits for the handshake."""

    def readConnectionLost(self) -> None:
        self.events.append("input over")

    def writeConnectionLost(self) -> None:
        self.events.append("output over")

    def handshakeCompleted(self) -> None:
        self.events.append("handshake")


class Producer:
    def __init__(self) -> None:
        self.events: list[str] = []

    def pauseProducing(self) -> None:
        self.events.append("pause")

    def resumeProducing(self) -> None:
        self.events.append("resume")

    def stopProducing(self) -> None:
        self.events.append("stop")


class Wire:
    """A connection, with its application above and OpenSSL as its peer."""

    def __init__(
        self,
        certificate: Path,
        application: Any = None,
        client: ssl.SSLContext | None = None,
        lower: Lower | None = None,
    ) -> None:
        self.application = Application() if application is None else application
        self.clock, self.lower = Loop(), lower or Lower()
        self.work = Work(lambda: self.clock.turns)
        context = ServerContext(Files(str(certificate), alpn=("h2",)))
        turns = Turns(self.clock, self.work.seconds)
        self.connection = TLSConnection(self.application, context, self.clock, turns)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = client or client_context()
        self.client = client.wrap_bio(self._incoming, self._outgoing, server_hostname="host")

    def connect(self) -> None:
        self.connection.makeConnection(self.lower)

    def begin(self) -> None:
        """Let the client send its hello."""
        with pytest.raises(ssl.SSLWantReadError):
            self.client.do_handshake()

    def shake_hands(self) -> Wire:
        self.connect()
        while True:
            try:
                self.client.do_handshake()
            except ssl.SSLWantReadError:
                self.pass_on()
                self.take()
            else:
                self.pass_on()
                return self

    def written(self) -> bytes:
        """Take the client's output."""
        return self._outgoing.read()

    def pass_on(self) -> None:
        """Pass the client's output to the connection."""
        if data := self.written():
            self.connection.dataReceived(data)

    def take(self) -> int:
        """Pass the connection's output to the client; return the number of writes."""
        sent, self.lower.sent = self.lower.sent, []
        self._incoming.write(b"".join(sent))
        return len(sent)

    def send(self, *pieces: bytes) -> None:
        """Let the client send, each in a record or more of its own."""
        for piece in pieces:
            self.client.write(piece)
        self.pass_on()

    def end(self) -> None:
        """Let the client send close_notify."""
        with contextlib.suppress(ssl.SSLError):
            self.client.unwrap()
        self.pass_on()

    def records(self) -> list[bytes]:
        """Return the client's input, record by record; b"" is close_notify."""
        self.take()
        got: list[bytes] = []
        while True:
            try:
                got.append(self.client.read(RECORD))
            except ssl.SSLWantReadError:
                return got
            except ssl.SSLZeroReturnError:
                got.append(b"")
            if not got[-1]:
                return got

    def got(self) -> bytes:
        """Return the client's input."""
        return b"".join(self.records())

    def got_before_the_alert(self) -> bytes:
        """Return the client's input before an alert, which must be there."""
        self.take()
        came: list[bytes] = []
        with pytest.raises(ssl.SSLError, match="ALERT"):
            came.extend(iter(lambda: self.client.read(RECORD), b""))
        return b"".join(came)


@pytest.fixture
def wire(certificate: Path) -> Wire:
    """A connection that has shaken hands."""
    return Wire(certificate).shake_hands()


def test_it_is_what_twisted_asks_of_a_protocol_and_a_transport(wire: Wire) -> None:
    for interface in (IProtocol, IHalfCloseableProtocol, ILoggingContext):
        assert verifyObject(interface, wire.connection)
    transport = wire.application.transport
    assert verifyObject(ISSLTransport, transport)
    assert (transport.getPeer(), transport.getHost()) == (THERE, HERE)
    assert transport.getHandle() == "the socket"
    assert transport.getPeerCertificate() is None
    transport.setTcpNoDelay(True)
    assert transport.getTcpNoDelay()
    transport.setTcpKeepAlive(False)
    assert not transport.getTcpKeepAlive()
    assert transport.logPrefix() == "Application"


def test_messages_go_both_ways(wire: Wire) -> None:
    assert wire.application.events == ["handshake"]
    wire.send(b"happy")
    wire.application.transport.write(b"days")
    wire.application.transport.writeSequence([b"days", b"", b"days"])
    wire.application.transport.write(b"")
    wire.application.transport.write(bytearray(b"!"))
    assert wire.application.got == [b"happy"]
    assert wire.got() == b"daysdaysdays!"
    with pytest.raises(TypeError):
        wire.application.transport.write("text")


@pytest.mark.parametrize("has_context", [True, False])
@pytest.mark.parametrize("size", [1, 1000, RECORD, 70_000])
def test_an_echo_counts_its_bytes_in_clear_whether_it_or_tls_counts_them(
    certificate: Path, has_context: bool, size: int
) -> None:
    clock = Clock()
    framing = Chunk(max_message=RECORD)
    factory = EchoFactory(clock, handler=lambda data: data * 2, framing=framing, banner=b"happy\n")
    factory.doStart()
    application = factory.buildProtocol(THERE)
    wire = Wire(certificate, application)
    wire.lower.has_context = has_context
    wire.shake_hands().send(b"x" * size)
    assert application.push(b"days")
    while not wire.clock.at_rest:
        wire.clock.advance(0)
    got = wire.got()
    assert sorted(got) == sorted(b"happy\n" + b"x" * 2 * size + b"days")
    assert application.figures == (-(-size // RECORD), size, len(got))
    wire.connection.connectionLost(Failure(ConnectionDone()))
    assert application.figures == (-(-size // RECORD), size, len(got))
    factory.doStop()


@pytest.mark.parametrize("version", VERSIONS)
def test_what_was_agreed_on_is_known(certificate: Path, version: ssl.TLSVersion) -> None:
    client = client_context(version)
    client.set_alpn_protocols(["h2"])
    wire = Wire(certificate, client=client).shake_hands()
    facts = wire.connection.facts
    cipher = wire.client.cipher()
    assert cipher is not None
    name = {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]
    assert facts == TLSFacts(name, cipher[0], "h2", "host")
    assert wire.connection.negotiatedProtocol == b"h2"
    assert Wire(certificate).shake_hands().connection.negotiatedProtocol is None


def test_what_is_written_before_the_handshake_is_over_is_sent_after_it(certificate: Path) -> None:
    application = Plain()
    application.greeting = b"hello"
    wire = Wire(certificate, application).shake_hands()
    assert wire.got() == b"hello"


def test_a_producer_is_paused_until_the_handshake_is_over(certificate: Path) -> None:
    wire = Wire(certificate)
    wire.connect()
    producer, transport = Producer(), wire.application.transport
    transport.registerProducer(producer, True)
    with pytest.raises(RuntimeError, match="was never unregistered"):
        transport.registerProducer(producer, True)
    transport.write(b"x" * MOST)
    assert producer.events == []
    transport.write(b"y")
    transport.write(b"y")
    assert producer.events == ["pause"]
    wire.begin()
    wire.pass_on()
    wire.take()
    wire.client.do_handshake()
    wire.pass_on()
    assert producer.events == ["pause", "resume"]
    assert wire.lower.producer is producer
    assert wire.got() == b"x" * MOST + b"yy"


def test_a_pause_does_not_stop_the_handshake(certificate: Path) -> None:
    wire = Wire(certificate)
    wire.connect()
    wire.application.transport.pauseProducing()
    assert wire.lower.reading
    wire.begin()
    wire.pass_on()
    wire.take()
    wire.client.do_handshake()
    wire.send(b"early")
    assert (wire.application.events, wire.application.got) == (["handshake"], [])
    assert not wire.lower.reading
    wire.application.transport.resumeProducing()
    wire.clock.advance(0)
    assert wire.application.got == [b"early"]
    assert wire.lower.reading


class Echo(Plain):
    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


def test_replies_to_what_came_together_leave_in_one_write(certificate: Path) -> None:
    wire = Wire(certificate, Echo()).shake_hands()
    wire.got()
    wire.send(*[b"happy"] * 16)
    assert len(wire.lower.sent) == 1
    assert wire.got() == b"happy" * 16


@pytest.mark.parametrize("size", [1000, RECORD])
def test_replies_to_one_long_read_leave_in_one_write(certificate: Path, size: int) -> None:
    class Pieces(Plain):
        def dataReceived(self, data: bytes) -> None:
            for start in range(0, len(data), size):
                self.transport.write(b"OK..." + data[start : start + size])

    wire = Wire(certificate, Pieces()).shake_hands()
    wire.got()
    wire.send(b"x" * 65536)
    assert len(wire.lower.sent) == 1
    assert wire.got().replace(b"OK...", b"") == b"x" * 65536


def test_after_a_long_read_the_next_ones_shall_be_shorter(wire: Wire) -> None:
    def shorten() -> None:
        wire.lower.asked.append("short reads")

    wire.lower.shortenReads = shorten  # type: ignore[attr-defined]
    wire.send(b"x" * 1000)
    assert wire.lower.asked == []
    wire.send(b"x" * 4 * RECORD)  # not more waits than of a shortened read
    assert wire.lower.asked == []
    wire.send(b"x" * LONG)
    assert wire.lower.asked == ["short reads"]


def test_a_long_write_leaves_in_pieces(wire: Wire) -> None:
    data = b"x" * (5 * BATCH + 1)
    wire.got()
    wire.application.transport.write(data)
    assert len(wire.lower.sent) == 6
    assert wire.got() == data


def test_long_replies_leave_before_all_is_read(certificate: Path) -> None:
    class Long(Plain):
        def dataReceived(self, data: bytes) -> None:
            for _ in range(10):
                self.transport.write(b"x" * MOST)
            self.left_early = sum(map(len, wire.lower.sent))  # type: ignore[attr-defined]

    wire = Wire(certificate, Long()).shake_hands()
    wire.send(b"go")
    assert wire.application.left_early >= 10 * MOST - BATCH
    assert len(wire.got()) == 10 * MOST


def test_input_waits_while_the_application_does_not_read(certificate: Path) -> None:
    class OneByOne(Application):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            self.transport.pauseProducing()

    wire = Wire(certificate, OneByOne()).shake_hands()
    pieces = [b"%d" % number * 7000 for number in range(10)]
    wire.send(*pieces)
    for number in range(1, 10):
        assert wire.application.got == pieces[:number]
        assert wire.connection.undelivered > 0
        assert not wire.lower.reading
        wire.application.transport.resumeProducing()
        wire.application.transport.resumeProducing()
        assert wire.application.got == pieces[:number]  # not within the call
        wire.clock.advance(0)
    assert wire.application.got == pieces
    assert wire.connection.undelivered == 0
    assert wire.lower.reading is False
    wire.application.transport.resumeProducing()
    assert wire.lower.reading


def test_the_end_waits_while_the_application_does_not_read(wire: Wire) -> None:
    wire.application.transport.pauseProducing()
    wire.client.write(b"last")
    wire.pass_on()
    wire.connection.readConnectionLost()
    assert (wire.application.got, wire.application.events) == ([], ["handshake"])
    wire.application.transport.resumeProducing()
    wire.clock.advance(0)
    assert wire.application.got == [b"last"]
    assert wire.application.events == ["handshake", "input over"]


def test_a_pause_may_be_taken_back_while_input_is_delivered(certificate: Path) -> None:
    class Nervous(Application):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            self.transport.pauseProducing()
            self.transport.resumeProducing()

    wire = Wire(certificate, Nervous()).shake_hands()
    wire.send(b"a", b"b", b"c")
    wire.send(b"d")
    assert wire.application.got == [b"a", b"b", b"c", b"d"]
    assert wire.lower.reading


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("how", ["close_notify", "fin", "both"])
def test_the_end_of_input_ends_nothing_else(
    certificate: Path, version: ssl.TLSVersion, how: str
) -> None:
    wire = Wire(certificate, client=client_context(version)).shake_hands()
    wire.client.write(b"last")
    if how != "fin":
        wire.end()
    wire.pass_on()
    if how != "close_notify":
        wire.connection.readConnectionLost()
    assert wire.application.events == ["handshake", "input over"]
    assert wire.application.got == [b"last"]
    assert wire.lower.asked == []
    wire.application.transport.write(b"the reply")
    wire.application.transport.loseConnection()
    assert wire.records() == [b"the reply", b""]
    assert wire.lower.asked == ["close"]
    wire.connection.connectionLost(Failure(ConnectionDone()))
    assert wire.application.reason.check(ConnectionDone)


def test_an_application_without_half_close_is_closed_behind_what_it_wrote(
    certificate: Path,
) -> None:
    wire = Wire(certificate, Echo()).shake_hands()
    wire.client.write(b"last")
    wire.end()
    assert wire.records() == [b"last", b""]
    assert wire.lower.asked == ["close"]
    wire.connection.writeConnectionLost()


@pytest.mark.parametrize("size", [1, 5 * MOST])
def test_what_comes_with_the_peers_close_notify_behind_it_is_waited_for_by_nobody(
    wire: Wire, size: int
) -> None:
    with contextlib.suppress(ssl.SSLError):
        wire.client.unwrap()
    wire.connection.dataReceived(wire.written() + b"x" * size)
    assert wire.application.events == ["handshake", "input over"]
    assert wire.connection.undelivered == 0


def test_what_comes_after_the_peers_close_notify_is_not_looked_at(wire: Wire) -> None:
    wire.end()
    wire.connection.dataReceived(b"GET / HTTP/1.1\r\n\r\n")
    wire.connection.readConnectionLost()
    assert wire.application.events == ["handshake", "input over"]
    assert wire.application.got == []
    wire.application.transport.loseConnection()
    assert wire.got() == b""


@pytest.mark.parametrize("version", VERSIONS)
def test_after_our_close_notify_input_goes_on(certificate: Path, version: ssl.TLSVersion) -> None:
    wire = Wire(certificate, client=client_context(version)).shake_hands()
    transport = wire.application.transport
    transport.write(b"our last")
    transport.loseWriteConnection()
    transport.loseWriteConnection()
    assert wire.lower.asked == ["fin"]
    transport.write(b"too late")
    wire.connection.writeConnectionLost()
    wire.send(b"more", b"and more")
    assert wire.application.got == [b"more", b"and more"]
    assert wire.application.events == ["handshake", "output over"]
    wire.end()
    assert wire.application.events[-1] == "input over"
    assert wire.records() == [b"our last", b""]
    transport.loseConnection()
    assert transport.disconnecting
    assert wire.lower.asked == ["fin", "close"]


def test_output_may_end_while_input_waits(wire: Wire) -> None:
    transport = wire.application.transport
    transport.pauseProducing()
    wire.send(b"x" * 40_000)
    transport.loseWriteConnection()
    transport.resumeProducing()
    wire.clock.advance(0)
    assert b"".join(wire.application.got) == b"x" * 40_000
    assert wire.records() == [b""]


def test_closing_waits_for_no_answer(wire: Wire) -> None:
    wire.application.transport.write(b"bye")
    wire.application.transport.loseConnection()
    wire.application.transport.loseConnection()
    assert wire.lower.asked == ["close"]
    assert wire.records() == [b"bye", b""]
    wire.send(b"not read")
    assert wire.application.got == []


@pytest.mark.parametrize(
    ("how", "asked"), [("loseConnection", "close"), ("loseWriteConnection", "fin")]
)
def test_closing_waits_for_the_producer(wire: Wire, how: str, asked: str) -> None:
    transport = wire.application.transport
    transport.registerProducer(Producer(), True)
    getattr(transport, how)()
    assert wire.lower.asked == []
    transport.write(b"its last")
    transport.unregisterProducer()
    transport.unregisterProducer()
    assert wire.lower.asked == [asked]
    assert wire.records() == [b"its last", b""]


@pytest.mark.parametrize("streaming", [True, False])
def test_the_end_of_a_peer_stops_the_producer_of_an_application_without_half_close(
    certificate: Path, streaming: bool
) -> None:
    """As in clear: the peer does not read on, so the rest of an answer keeps no connection."""
    wire = Wire(certificate, Plain()).shake_hands()
    producer, transport = Producer(), wire.application.transport
    transport.registerProducer(producer, streaming)
    transport.write(b"its last")
    wire.end()
    assert producer.events == ["stop"]
    assert wire.lower.producer is None
    assert wire.lower.asked == ["close"]
    assert wire.records() == [b"its last", b""]


def test_the_end_is_sent_once_whatever_produces_after_it(wire: Wire) -> None:
    transport = wire.application.transport
    transport.loseWriteConnection()
    for _ in range(2):
        transport.registerProducer(Producer(), True)
        transport.unregisterProducer()
        transport.loseWriteConnection()
    assert wire.lower.asked == ["fin"]
    assert wire.records() == [b""]
    transport.loseConnection()
    transport.loseConnection()
    assert wire.lower.asked == ["fin", "close"]
    assert wire.lower.sent == []


@pytest.mark.parametrize("long", [b"x", b"x" * 3 * MOST])
@pytest.mark.parametrize(
    ("how", "asked"), [("stopProducing", "close"), ("loseWriteConnection", "fin")]
)
def test_closing_within_a_message_is_behind_its_reply(
    certificate: Path, how: str, asked: str, long: bytes
) -> None:
    class UntilQuit(Plain):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            self.transport.write(data)
            if data == b"quit":
                getattr(self.transport, how)()

    wire = Wire(certificate, UntilQuit()).shake_hands()
    wire.send(b"happy", long, b"quit", b"never answered")
    assert wire.application.got[-1] == (b"quit" if asked == "close" else b"never answered")
    records = wire.records()
    assert b"".join(records) == b"happy" + long + b"quit"
    assert records[-1] == b""
    assert wire.lower.asked == [asked]


def test_before_the_handshake_closing_waits_only_if_there_is_something_to_say(
    certificate: Path,
) -> None:
    silent = Wire(certificate)
    silent.connect()
    silent.application.transport.loseConnection()
    assert silent.lower.asked == ["close"]
    talking = Wire(certificate)
    talking.connect()
    talking.application.transport.write(b"busy")
    talking.application.transport.loseConnection()
    talking.application.transport.write(b"too late")
    assert talking.lower.asked == []
    talking.begin()
    talking.pass_on()
    talking.take()
    talking.client.do_handshake()
    talking.pass_on()
    assert talking.records() == [b"busy", b""]
    assert talking.lower.asked == ["close"]


def test_an_abort_is_at_once(wire: Wire) -> None:
    transport = wire.application.transport
    transport.abortConnection()
    transport.write(b"x")
    transport.resumeProducing()
    assert wire.lower.asked == ["abort"]
    assert wire.got() == b""
    producer = Producer()
    transport.registerProducer(producer, True)
    assert producer.events == ["stop"]


def test_a_protocol_that_aborts_at_once_sees_no_handshake(certificate: Path) -> None:
    class Refusing(Application):
        def connectionMade(self) -> None:
            self.transport.abortConnection()

    wire = Wire(certificate, Refusing())
    wire.connect()
    wire.begin()
    wire.pass_on()
    assert wire.lower.sent == []


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "http request"),
        (b"happy days, happy days\n", "wrong version number"),
        (b"\x16\x03\x01\0\x05\x63\0\0\x01x", "unexpected message"),
    ],
)
def test_what_is_no_tls_gets_an_alert_and_a_close(
    certificate: Path, data: bytes, why: str
) -> None:
    wire = Wire(certificate)
    wire.connect()
    producer = Producer()
    wire.application.transport.registerProducer(producer, True)
    wire.connection.dataReceived(data)
    assert wire.lower.asked == ["fin"]
    assert producer.events == ["stop"]
    # To what is not even a record OpenSSL says nothing.
    assert [sent[0] for sent in wire.lower.sent] == [21] * (data[0] == 0x16)
    wire.connection.writeConnectionLost()
    wire.connection.dataReceived(b"more of it")
    wire.application.transport.loseConnection()
    wire.connection.readConnectionLost()
    assert wire.lower.asked == ["fin", "close"]
    wire.connection.connectionLost(Failure(ConnectionDone()))
    assert wire.application.reason.check(TLSError)
    assert wire.application.reason.check(ConnectionLost)
    assert why in str(wire.application.reason.value)
    assert not wire.clock.getDelayedCalls()


def test_a_peer_that_stays_after_an_alert_is_aborted_in_time(certificate: Path) -> None:
    wire = Wire(certificate)
    wire.connect()
    wire.connection.dataReceived(b"happy days\n")
    wire.clock.advance(LINGER - 0.01)
    assert wire.lower.asked == ["fin"]
    wire.clock.advance(0.02)
    assert wire.lower.asked == ["fin", "abort"]


def test_a_damaged_record_ends_the_connection(wire: Wire) -> None:
    producer = Producer()
    wire.application.transport.registerProducer(producer, True)
    wire.client.write(b"happy")
    data = bytearray(wire.written())
    data[-1] ^= 1
    wire.got()
    wire.connection.dataReceived(bytes(data))
    assert wire.lower.asked == ["fin"]
    assert wire.lower.producer is None
    wire.take()
    with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
        wire.client.read()
    wire.application.transport.write(b"in vain")
    assert wire.lower.sent == []
    wire.connection.connectionLost(Failure(ConnectionDone()))
    assert "bad record mac" in str(wire.application.reason.value)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("damage", ["a bit", "plain bytes"])
@pytest.mark.parametrize("size", [1, 1000, RECORD + 1, MOST, 70_000, 300_000])
def test_what_came_before_a_damaged_record_is_answered(
    certificate: Path, version: ssl.TLSVersion, damage: str, size: int
) -> None:
    wire = Wire(certificate, Echo(), client_context(version)).shake_hands()
    wire.got()
    sent = b"%07d\n" * (size // 8 + 1) % tuple(range(size // 8 + 1))
    wire.client.write(sent[:size])
    intact = wire.written()
    wire.client.write(b"damaged")
    behind = bytearray(wire.written())
    behind[-1] ^= 1
    wire.connection.dataReceived(intact + (b"GET / " if damage != "a bit" else b"") + behind)
    assert wire.lower.asked == ["fin"]
    assert wire.got_before_the_alert() == sent[:size]


def test_a_reply_longer_than_a_batch_is_sent_before_a_damaged_record_is_looked_at(
    certificate: Path,
) -> None:
    class Long(Plain):
        def dataReceived(self, data: bytes) -> None:
            self.transport.write(data * 3 * BATCH)

    wire = Wire(certificate, Long()).shake_hands()
    wire.got()
    wire.client.write(b"x")
    wire.client.write(b"y")
    wire.connection.dataReceived(wire.written() + b"GET / HTTP/1.1\r\n\r\n")
    assert wire.got_before_the_alert() == b"x" * 3 * BATCH + b"y" * 3 * BATCH


def cut_off(wire: Wire, *sizes: int) -> bytes:
    """Return writes of these sizes as one read, with a damaged record behind them."""
    for size in sizes:
        wire.client.write(b"x" * size)
    intact = wire.written()
    wire.client.write(b"damaged")
    *damaged, last = wire.written()
    return intact + bytes([*damaged, last ^ 1])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("sizes", [(RECORD,), (5, 3 * RECORD), (3 * RECORD, 9, RECORD)])
@pytest.mark.parametrize("ends", [False, True])
def test_full_records_before_a_damaged_one_are_passed_on_but_not_answered(
    certificate: Path, version: ssl.TLSVersion, sizes: tuple[int, ...], ends: bool
) -> None:
    class Ending(Echo):
        def dataReceived(self, data: bytes) -> None:
            Plain.dataReceived(self, data)
            super().dataReceived(data)
            if ends and len(data) == sizes[-1]:
                self.transport.loseConnection()

    wire = Wire(certificate, Ending(), client_context(version)).shake_hands()
    wire.got()
    wire.connection.dataReceived(cut_off(wire, *sizes))
    assert sum(map(len, wire.application.got)) == sum(sizes)
    assert wire.lower.asked[0] == "fin"
    assert wire.got_before_the_alert() == b"x" * sum(sizes[:-1])
    wire.connection.connectionLost(Failure(ConnectionDone()))
    assert "bad record mac" in str(wire.application.reason.value)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("read", [1 << 20, 100_000, MOST + 1, 1000])
@pytest.mark.parametrize(
    "size", [RECORD - 1, RECORD, RECORD + 1, 4 * RECORD - 1, 4 * RECORD, 4 * RECORD + 1, 200_000]
)
def test_a_long_write_arrives_in_parts_of_at_most_four_records(
    certificate: Path, version: ssl.TLSVersion, size: int, read: int
) -> None:
    wire = Wire(certificate, client=client_context(version)).shake_hands()
    sent = (b"%07d\n" * (size // 8 + 1) % tuple(range(size // 8 + 1)))[:size]
    wire.client.write(sent)
    data = wire.written()
    for start in range(0, len(data), read):
        wire.connection.dataReceived(data[start : start + read])
        wire.clock.advance(0)
    assert b"".join(wire.application.got) == sent
    if read > len(data):
        whole, rest = divmod(size, 4 * RECORD)
        assert [len(part) for part in wire.application.got] == [4 * RECORD] * whole + [rest] * (
            rest > 0
        )


class Stopping(Application):
    """It answers, then pauses, or ends otherwise as it is told."""

    how = "pauseProducing"

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.transport.write(data)
        getattr(self.transport, self.how)()

    def readConnectionLost(self) -> None:
        super().readConnectionLost()
        self.transport.loseConnection()


@pytest.mark.parametrize("count", [1, 3, 4])
def test_close_notify_behind_full_records_waits_for_an_application_that_pauses(
    certificate: Path, count: int
) -> None:
    wire = Wire(certificate, Stopping()).shake_hands()
    wire.client.write(b"x" * count * RECORD)
    with pytest.raises(ssl.SSLWantReadError):
        wire.client.unwrap()
    wire.pass_on()
    assert wire.application.events == ["handshake"]
    assert wire.got() == b"x" * count * RECORD
    wire.application.transport.resumeProducing()
    wire.clock.advance(0)
    assert wire.application.events == ["handshake", "input over"]
    assert wire.lower.asked == ["close"]


@pytest.mark.parametrize("how", ["loseConnection", "abortConnection"])
@pytest.mark.parametrize("end", ["close_notify", "damage"])
def test_what_is_behind_full_records_does_not_matter_once_the_application_has_ended(
    certificate: Path, how: str, end: str
) -> None:
    wire = Wire(certificate, Stopping()).shake_hands()
    wire.application.how = how
    if end == "damage":
        wire.connection.dataReceived(cut_off(wire, RECORD))
        assert wire.lower.asked in (["fin", "close"], ["fin", "abort"])
    else:
        wire.client.write(b"x" * RECORD)
        with pytest.raises(ssl.SSLWantReadError):
            wire.client.unwrap()
        wire.pass_on()
        assert wire.application.events == ["handshake"]
        assert wire.got() == b"x" * RECORD
        assert wire.lower.asked == ["close" if how == "loseConnection" else "abort"]


def test_a_client_that_leaves_within_the_handshake_is_closed(certificate: Path) -> None:
    wire = Wire(certificate)
    wire.connect()
    wire.begin()
    wire.pass_on()
    wire.connection.readConnectionLost()
    assert wire.lower.asked == ["close"]
    wire.connection.connectionLost(Failure(ConnectionDone()))
    assert wire.application.reason.check(ConnectionDone)


@pytest.mark.parametrize("sizes", [(1,), (3,), (100,), (1, 60, 7), (RECORD,)])
@pytest.mark.parametrize("read", [1, 7, 1 << 20])
@pytest.mark.parametrize("host", ["shop.example", "other.example"])
def test_the_certificate_is_that_of_the_host_however_the_hello_comes(
    tmp_path: Path, certificate: Path, host: str, read: int, sizes: tuple[int, ...]
) -> None:
    pair = Authority("an authority").issue("shop", hosts=["shop.example"])
    (tmp_path / "shop.pem").write_bytes(pair)
    files = Files(str(certificate), others=(Pair(str(tmp_path / "shop.pem")),))
    connection = TLSConnection(Application(), ServerContext(files), Loop())
    lower = Lower()
    connection.makeConnection(lower)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context().wrap_bio(incoming, outgoing, server_hostname=host)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    stream = records(outgoing.read(), *sizes)
    for start in range(0, len(stream), read):
        assert not lower.sent
        assert connection.ssl_object is None
        connection.dataReceived(stream[start : start + read])
    incoming.write(b"".join(lower.sent))
    client.do_handshake()
    shown = client.getpeercert(binary_form=True)
    assert (shown == ssl.PEM_cert_to_DER_cert(pair.decode().partition("-----BEGIN PR")[0])) is (
        host == "shop.example"
    )
    connection.abortConnection()


class Useless:
    """A context that cannot make a connection."""

    server_side = True

    def __init__(self, error: Exception) -> None:
        self._error = error

    def wrap(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, server_name: str | None
    ) -> ssl.SSLObject:
        raise self._error


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (MemoryError(), "no memory"),
        (ssl.SSLError(1, "internal error"), "internal error"),
    ],
)
def test_an_openssl_that_cannot_be_had_ends_the_connection(
    certificate: Path, error: Exception, why: str
) -> None:
    application, lower, clock = Application(), Lower(), Clock()
    connection = TLSFactory(
        Factory.forProtocol(lambda: application), Useless(error), clock
    ).buildProtocol(THERE)
    connection.makeConnection(lower)
    assert application.transport.negotiatedProtocol is None
    assert application.transport.getPeerCertificate() is None
    connection.dataReceived(hello := hello_of("host"))
    assert lower.asked == ["fin"]
    connection.dataReceived(hello)
    connection.readConnectionLost()
    assert lower.asked == ["fin", "close"]
    connection.connectionLost(Failure(ConnectionDone()))
    assert why in str(application.reason.value)
    assert application.events == []
    assert not clock.getDelayedCalls()


def test_an_openssl_that_cannot_write_ends_the_connection(wire: Wire) -> None:
    # As where a client has sent half of a key update, and OpenSSL waits for the rest.
    def write(data: bytes) -> int:
        raise ssl.SSLWantReadError("the operation did not complete")

    wire.connection._write = write
    wire.application.transport.write(b"x")
    assert wire.lower.asked == ["fin"]
    wire.connection.connectionLost(Failure(ConnectionDone()))
    assert wire.application.reason.check(TLSError)


def test_what_was_encrypted_before_openssl_could_write_no_more_is_sent(
    certificate: Path,
) -> None:
    wire = Wire(certificate, Echo()).shake_hands()
    wire.got()
    plain = wire.connection._write

    def write(data: Any) -> int:
        if data == b"b":
            raise ssl.SSLWantReadError("the operation did not complete")
        return plain(data)

    wire.connection._write = write
    wire.send(b"a", b"b", b"c")
    assert wire.lower.asked == ["fin"]
    assert wire.got() == b"a"


def test_a_client_cannot_renegotiate(certificate: Path) -> None:
    wire = Wire(certificate, client=client_context(ssl.TLSVersion.TLSv1_2)).shake_hands()
    assert wire.connection._tls.context.options & ssl.OP_NO_RENEGOTIATION
    assert wire.connection._tls.context.options & ssl.OP_NO_COMPRESSION


def test_an_error_in_the_application_is_the_transports_to_handle(certificate: Path) -> None:
    class Broken(Application):
        def dataReceived(self, data: bytes) -> None:
            raise ssl.SSLError("the application's own")

    wire = Wire(certificate, Broken()).shake_hands()
    with pytest.raises(ssl.SSLError, match="the application's own"):
        wire.send(b"x")


def test_what_came_before_an_error_in_the_application_is_answered(certificate: Path) -> None:
    class Broken(Plain):
        def dataReceived(self, data: bytes) -> None:
            if data == b"break":
                raise RuntimeError("the application's own")
            self.transport.write(data)

    for filling in (b"", b"x" * 2 * MOST):  # a read in plain sailing, and a long one
        wire = Wire(certificate, Broken()).shake_hands()
        wire.got()
        with pytest.raises(RuntimeError, match="the application's own"):
            wire.send(b"happy", b"days", filling or b"!", b"break")
        assert wire.got() == b"happydays" + (filling or b"!")


def test_an_error_in_the_application_that_has_paused_meanwhile_ends_the_connection(
    certificate: Path, log: Log
) -> None:
    class Broken(Plain):
        def dataReceived(self, data: bytes) -> None:
            self.transport.write(data)
            if data == b"break":
                raise RuntimeError("the application's own")
            self.transport.pauseProducing()

    wire = Wire(certificate, Broken()).shake_hands()
    wire.got()
    wire.send(b"happy", b"break")
    wire.application.transport.resumeProducing()
    wire.clock.advance(0)
    assert "the application's own" in log.take_errors()[0]
    assert wire.got() == b"happybreak"
    assert wire.lower.asked == ["abort"]


@given(data=st.data())
def test_no_bytes_make_a_handshake_fail_otherwise(certificate: Path, data: st.DataObject) -> None:
    wire = Wire(certificate)
    wire.connect()
    wire.begin()
    hello = bytearray(wire.written())
    for place in data.draw(st.lists(st.integers(0, len(hello) - 1), min_size=1, max_size=8)):
        hello[place] = data.draw(st.integers(0, 255))
    kind = st.sampled_from([bytes(hello), b"\x16\x03\x01", b""])
    for piece in data.draw(st.lists(st.one_of(st.binary(max_size=400), kind), max_size=5)):
        wire.connection.dataReceived(piece)
    wire.connection.readConnectionLost()
    wire.connection.connectionLost(Failure(ConnectionDone()))
    assert wire.application.reason is not None
    assert not wire.clock.getDelayedCalls()


@given(data=st.data())
def test_no_bytes_make_an_open_connection_fail_otherwise(
    certificate: Path, data: st.DataObject
) -> None:
    wire = Wire(certificate).shake_hands()
    wire.client.write(b"happy days")
    record = bytearray(wire.written())
    for place in data.draw(st.lists(st.integers(0, len(record) - 1), max_size=3)):
        record[place] = data.draw(st.integers(0, 255))
    wire.connection.dataReceived(bytes(record))
    wire.connection.dataReceived(data.draw(st.binary(max_size=100)))
    wire.connection.readConnectionLost()
    wire.connection.connectionLost(Failure(ConnectionDone()))
    assert wire.application.got in ([], [b"happy days"])


def test_the_factory_passes_on_what_it_is_told(certificate: Path) -> None:
    class Told(Factory):
        told: list[str] = []  # noqa: RUF012

        def doStart(self) -> None:
            self.told.append("start")

        def doStop(self) -> None:
            self.told.append("stop")

        def buildProtocol(self, addr: Any) -> Any:
            return Plain() if addr == THERE else None

    wrapped = TLSFactory(Told(), ServerContext(Files(str(certificate))), Clock())
    wrapped.doStart()
    wrapped.doStop()
    assert Told.told == ["start", "stop"]
    assert wrapped.buildProtocol(HERE) is None
    assert isinstance(wrapped.buildProtocol(THERE), TLSConnection)
    assert wrapped.logPrefix() == "Told (TLS)"


# One read may hold thousands of records.


class Working(Application):
    """Takes a tenth of a millisecond for each record, or as many seconds, and answers it."""

    work: Work
    seconds = 1e-4

    def dataReceived(self, data: bytes) -> None:
        self.work.do(self, self.seconds)
        self.transport.write(data)


def at_work(certificate: Path, lower: Lower | None = None) -> Wire:
    application = Working()
    wire = Wire(certificate, application, lower=lower).shake_hands()
    application.work = wire.work
    wire.got()
    return wire


@pytest.mark.parametrize("count", [500, 3000])
def test_no_turn_of_the_loop_is_one_connections_however_many_records_a_read_holds(
    certificate: Path, count: int
) -> None:
    """Fault 69: Over TLS the daemon decrypts and answers the records of one read over as many
    turns of the event loop as needed, in order, and reads on after the last.
    """
    wire = at_work(certificate)
    wire.send(*[b"%04d" % number for number in range(count)])
    assert len(wire.work.order) < count
    assert not wire.lower.reading
    before = wire.clock.turns
    assert wire.connection.undelivered
    while not wire.clock.at_rest:
        wire.clock.turn()
    assert wire.clock.turns > before + 10
    assert wire.work.most <= BOUND
    assert wire.got() == b"".join(b"%04d" % number for number in range(count))
    assert wire.lower.reading
    wire.send(b"more")
    assert wire.got() == b"more"
    assert not wire.clock.getDelayedCalls()


@pytest.mark.parametrize("queued", [0, 1])
def test_a_producer_that_comes_when_data_waits_already_is_paused_by_the_transport(
    certificate: Path, queued: int
) -> None:
    wire = Wire(certificate, Plain())
    directly: list[bytes] = []
    writer = SimpleNamespace(write=directly.append)
    wire.connection.connect_directly(wire.lower, writer)  # type: ignore[arg-type]
    wire.connect()
    wire.begin()
    wire.pass_on()
    wire.take()
    wire.client.do_handshake()
    wire.pass_on()
    wire.got()
    wire.lower.queued = queued  # type: ignore[attr-defined]
    wire.connection.registerProducer(Producer(), True)  # type: ignore[arg-type]
    wire.connection.write(b"happy")
    assert bool(directly) is not bool(queued)
    assert bool(wire.lower.sent) is bool(queued)


class Waiting:
    """Another connection that waits for its turn."""

    def take_turn(self) -> None:
        pass


def test_a_message_of_full_records_is_answered_at_once_while_others_wait(
    certificate: Path,
) -> None:
    wire = at_work(certificate)
    wire.application.seconds = 7e-5  # of a slow machine, to decrypt and to encrypt
    for message in (b"x" * 4 * RECORD, b"y" * 4 * RECORD):
        wire.connection._turns.rest(Waiting())
        wire.work.do("others", 1e-3)  # so the turn is used up
        wire.send(message)
        assert len(wire.lower.sent) == 1
        assert wire.got() == message
        wire.clock.turn()


@given(
    st.sampled_from([Chunk(max_message=500), Line()]),
    st.lists(st.integers(1, 8), min_size=1, max_size=20),
    st.lists(st.sampled_from([0.0, 1e-6, 1e-5, 1e-4, 5e-4, 1e-3]), min_size=1, max_size=50),
    st.integers(0, 3),
    st.integers(1000, LONG - 1),
)
@example(Line(), [5], [1e-3, 0.0, 1e-3, 1e-3, 1e-3], 0, 10_000)  # each record could be 4 ms alone
def test_tls_and_its_application_have_one_share_of_a_turn(
    certificate: Path,
    framing: Framing,
    records: list[int],
    costs: list[float],
    full_reads: int,
    last_read: int,
) -> None:
    wire, times = Wire(certificate), iter(costs * 1600)

    class Slow(Handler):
        def received(self, message: bytes) -> None:
            wire.work.do(self, next(times))

    factory = EchoFactory(
        wire.clock,
        handler=Slow,
        framing=framing,
        banner=b"",
        turns=wire.connection._turns,
    )
    wire.connection.protocol = factory.buildProtocol(None)
    wire.shake_hands()
    message, count = b"x" * 499 + b"\n", 0
    for messages in itertools.islice(itertools.cycle(records), 200):
        wire.client.write(message * messages)
        count += messages
    left = memoryview(wire.written())
    while left:
        # In one turn, a reactor reads on from a connection after reads that fill its buffer.
        for length in (*[LONG] * full_reads, last_read):
            if left and wire.lower.reading:
                wire.connection.dataReceived(bytes(left[:length]))
                left = left[length:]
        wire.clock.turn()
    while not wire.clock.at_rest:
        wire.clock.turn()
    assert wire.work.most <= BOUND
    assert len(wire.work.order) == count
    wire.connection.connectionLost(Failure(ConnectionDone()))
    assert not wire.clock.getDelayedCalls()


def test_the_end_of_the_stream_comes_behind_what_waits_for_its_turn(certificate: Path) -> None:
    wire = at_work(certificate)
    wire.send(*[b"x"] * 500)
    wire.connection.readConnectionLost()
    assert "input over" not in wire.application.events
    while not wire.clock.at_rest:
        wire.clock.turn()
    assert "input over" in wire.application.events
    assert wire.got() == b"x" * 500


def test_an_application_that_pauses_while_records_wait_is_given_none(certificate: Path) -> None:
    wire = at_work(certificate)
    wire.send(*[b"x"] * 500)
    before = len(wire.work.order)
    wire.connection.pauseProducing()
    while not wire.clock.at_rest:
        wire.clock.turn()
    assert len(wire.work.order) == before
    wire.connection.resumeProducing()
    wire.connection.pauseProducing()
    wire.connection.resumeProducing()
    while not wire.clock.at_rest:
        wire.clock.turn()
    assert len(wire.work.order) == 500
    assert wire.got() == b"x" * 500


class InPlace(Lower):
    """A transport as the uvloop reactor's, with long reads and writes that are not copied."""

    def __init__(self) -> None:
        super().__init__()
        self.chunks: list[int] = []
        self.reads_in_place = False

    def readInPlace(self) -> None:
        self.reads_in_place = True

    def writeChunks(self, chunks: list[bytes]) -> None:
        self.chunks.append(len(chunks))
        self.write(b"".join(chunks))


def test_long_reads_and_writes_are_not_copied_if_the_transport_can(certificate: Path) -> None:
    lower = InPlace()
    wire = at_work(certificate, lower)
    wire.send(b"x" * 1000)
    assert wire.got() == b"x" * 1000
    assert not lower.reads_in_place
    wire.send(b"x" * 4 * RECORD)
    assert lower.reads_in_place
    assert wire.got() == b"x" * 4 * RECORD
    assert len(lower.chunks) == 1


def test_what_a_wrapper_only_passes_on_does_not_go_past_it(certificate: Path) -> None:
    lower = InPlace()

    class Wrapper(Lower):
        def __getattr__(self, name: str) -> Any:
            return getattr(lower, name)

    wire = at_work(certificate, Wrapper())
    wire.send(b"x" * 4 * RECORD)
    assert wire.got() == b"x" * 4 * RECORD
    assert not lower.reads_in_place
    assert not lower.chunks


@pytest.mark.parametrize("waits_for", ["its turn", "the application"])
def test_what_waits_of_a_read_in_place_is_not_overwritten(
    certificate: Path, waits_for: str
) -> None:
    wire, buffer = at_work(certificate), bytearray(LONG)
    for letter in (b"x", b"y"):
        for _ in range(400):
            wire.client.write(letter * 100)
        data = wire.written()
        if waits_for == "the application" and letter == b"y":
            wire.connection.pauseProducing()
        buffer[: len(data)] = data
        wire.connection.dataReceived(memoryview(buffer)[: len(data)])
        buffer[:] = bytes(LONG)
    wire.connection.resumeProducing()
    while not wire.clock.at_rest:
        wire.clock.turn()
    assert wire.got() == b"x" * 40_000 + b"y" * 40_000


@pytest.mark.parametrize("how", ["lost", "aborted", "damaged"])
def test_a_connection_that_ends_while_records_wait_leaves_nothing(
    certificate: Path, how: str
) -> None:
    wire = at_work(certificate)
    wire.send(*[b"x"] * 500)
    before = len(wire.work.order)
    if how == "damaged":
        wire.connection._fail(OSError("damaged"))
    elif how == "aborted":
        wire.connection.abortConnection()
    wire.connection.connectionLost(Failure(ConnectionDone()))
    assert not wire.clock.getDelayedCalls()
    assert len(wire.work.order) == before


@pytest.mark.parametrize("last", [b"", b"no record", b"\x17\x03\x03\x00\x20" + bytes(32)])
def test_nothing_of_a_connection_waits_for_the_garbage_collector(wire: Wire, last: bytes) -> None:
    wire.send(b"happy")
    application = weakref.ref(wire.application)
    gc.disable()
    try:
        wire.client.write(b"days")
        wire.connection.dataReceived(wire.written() + last)
        wire.connection.connectionLost(Failure(ConnectionDone()))
        del wire.application, wire.connection
        assert application() is None
    finally:
        gc.enable()
