"""A connection and a reactor in memory."""

from __future__ import annotations

import pytest
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.testing.in_memory import HOST, PEER, MemoryTransport, VirtualReactor


@implementer(IHalfCloseableProtocol)
class Recorder(Protocol):
    """Keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def dataReceived(self, data: bytes) -> None:
        self.calls.append(data)

    def readConnectionLost(self) -> None:
        self.calls.append("end")

    def writeConnectionLost(self) -> None:
        self.calls.append("our end")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.calls.append(reason.type)


@pytest.fixture
def clock() -> VirtualReactor:
    return VirtualReactor()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def transport(clock: VirtualReactor, recorder: Recorder) -> MemoryTransport:
    transport = MemoryTransport(clock, recorder)
    transport.connect()
    return transport


def test_each_call_runs_at_its_own_time(clock: VirtualReactor) -> None:
    times: list[float] = []

    def note() -> None:
        times.append(clock.seconds())
        if len(times) < 3:
            clock.callLater(2, note)

    clock.callLater(1, note)
    clock.callFromThread(times.append, -1.0)
    clock.run_for(10)
    assert times == [-1, 1, 3, 5][: len(times)]
    assert clock.seconds() == 10


def test_calls_that_never_end_are_an_error(clock: VirtualReactor) -> None:
    def again() -> None:
        clock.callLater(0, again)

    again()
    with pytest.raises(RuntimeError, match="again and again"):
        clock.run_due()


def test_a_transport_that_is_paused_holds_the_input_and_its_end(
    clock: VirtualReactor, recorder: Recorder, transport: MemoryTransport
) -> None:
    transport.pauseProducing()
    transport.deliver(b"one")
    transport.finish()
    assert recorder.calls == []
    transport.resumeProducing()
    transport.resumeProducing()
    clock.run_due()
    assert recorder.calls == [b"one", "end"]


def test_the_client_ends_its_stream_after_ours(
    clock: VirtualReactor, recorder: Recorder, transport: MemoryTransport
) -> None:
    transport.writeSequence([b"a", b"b"])
    transport.loseWriteConnection()
    transport.loseWriteConnection()
    transport.write(b"too late")
    clock.run_due()
    assert bytes(transport.written) == b"ab"
    assert recorder.calls == ["our end", "end"]
    transport.stopProducing()
    clock.run_due()
    assert recorder.calls[-1] is ConnectionDone
    transport.vanish()  # once only
    assert len(recorder.calls) == 3


def test_an_abort_is_no_orderly_end(
    clock: VirtualReactor, recorder: Recorder, transport: MemoryTransport
) -> None:
    transport.loseWriteConnection()
    transport.abortConnection()
    transport.vanish()
    transport.write(b"x")
    clock.run_due()
    assert transport.aborted
    assert ConnectionAborted not in recorder.calls  # the client was gone before
    assert (transport.getPeer(), transport.getHost()) == (PEER, HOST)
