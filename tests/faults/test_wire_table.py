"""Each fault on purpose is what docs/faults.md says, on the wire: a table of all cells.

A cell is a fault, a concurrency model, and a way to the daemon. One daemon for each model has all
faults: its clients choose one by their address, or on a UNIX socket by the socket. All talk at
once; then one tshark reads the packets of all, told apart by their ports, and one strace has
written the calls on UNIX sockets. Neither is the client's word.

No upper bound of a time is held here, because the machine may be busy: `bench.pauses` has medians.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509

from echod.faults import FAULTS
from tests.faults.scale import SOAK
from tests.faults.seen import CLIENT, SERVER, Address, Event, capturing, tracing
from tests.support.certificates import Authority
from tests.support.clients import BANNER
from tests.support.daemon import MODELS, Daemon, starting
from tests.support.needs import needs_root
from tests.support.proxy_headers import line
from tests.support.tls_peer import Peer, client_context
from tests.support.waiting import PATIENCE

AUTHORITY = Authority("an authority")
ISSUER = x509.load_pem_x509_certificate(AUTHORITY.certificate).subject
REQUEST = b"0123456789abcdefghij"
MORE = b"more"
# So long that the reply alone, which is all that `serial` sends, has the places of all faults.
PREFIX = b"reply " * 9
WAYS = ("clear", "TLS", "PROXY", "UNIX")

# No client waits for longer, where nothing is to come.
BRIEFLY = 0.15


@dataclass
class Talk:
    """One conversation.

    Attributes:
        fault: the text of its fault.
        model: the concurrency model of its daemon.
        way: how the client comes.
        received: the bytes that the client got, in clear.
        error: the error that the client got.
        certificate: the certificate that the client got.
        began: when the client has begun to connect, in seconds.
        key: by which its events are found.
        events: what was seen, by their times.
    """

    fault: str
    model: str
    way: str
    received: bytes = b""
    error: type[OSError] | None = None
    certificate: bytes = b""
    began: float = 0.0
    key: tuple[int, Address] | int = 0
    events: list[Event] = field(default_factory=list)

    def of(self, by: bool, *kinds: str) -> list[Event]:
        """Return the events of a side."""
        return [event for event in self.events if event.by is by and event.what in kinds]

    def has(self, by: bool, what: str) -> bool:
        return bool(self.of(by, what))

    @property
    def greeting(self) -> bytes:
        """The bytes that the handler sends before it is asked."""
        return b"" if self.model == "serial" else BANNER

    @property
    def answer(self) -> bytes:
        """All bytes that the handler sends."""
        return self.greeting + PREFIX + REQUEST

    @property
    def sizes(self) -> list[int]:
        """The sizes of the pieces from the server."""
        return [event.size for event in self.of(SERVER, "data")]

    @property
    def sent(self) -> bytes:
        """The bytes from the server; over TLS, as the client has decrypted them."""
        if self.way == "TLS":
            assert self.fault.startswith("endless") or sum(self.sizes) == len(self.received)
            return self.received
        return b"".join(event.data for event in self.of(SERVER, "data"))

    @property
    def asked(self) -> float:
        """When the client sent its request, in seconds."""
        return self.of(CLIENT, "data")[-1 if self.way in ("PROXY", "TLS") else 0].time

    def when(self, offset: int) -> float:
        """Return when the byte of that offset has left the server, in seconds."""
        for event in self.of(SERVER, "data"):
            offset -= event.size
            if offset < 0:
                return event.time
        raise AssertionError(self.events)

    def ends_first(self, by: bool) -> bool:
        """Return whether this side's end is the first: FIN, or over TLS close_notify."""
        ends = ("fin", "rst", "alert")
        return next(event.by for event in self.events if event.what in ends) is by

    @property
    def ends_well(self) -> bool:
        """Whether the server's end is FIN, without a reset."""
        return self.has(SERVER, "fin") and not self.has(SERVER, "rst")


# Clients.


class Stream:
    """A client's connection, in clear or over TLS."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        unix = talk.way == "UNIX"
        self.socket = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)

    def connect(self, folder: Path, place: str, address: str) -> None:
        """Connect, and shake hands.

        Args:
            folder: where the sockets are.
            place: the port, or the name of the socket.
            address: the client's address.
        """
        talk = self.talk
        talk.began = time.time()
        self.socket.settimeout(PATIENCE)
        if talk.way == "UNIX":
            talk.key = os.fstat(self.socket.fileno()).st_ino
            self.socket.connect(str(folder / place))
            return
        self.socket.bind(("127.0.0.1" if talk.way == "PROXY" else address, 0))
        talk.key = int(place), self.socket.getsockname()
        if talk.fault == "connect-timeout":
            self.socket.settimeout(BRIEFLY)
        self.socket.connect(("127.0.0.1", int(place)))
        if talk.way == "PROXY":
            self.socket.sendall(line((address, 1234)))
        if talk.way == "TLS":
            context = client_context(ssl.TLSVersion.TLSv1_2)  # 1.3 hides the kinds of its records
            context.set_ciphers("ECDHE+AESGCM")
            self.peer = Peer(int(place), context, over=self.socket)
            self.peer.shake_hands()
            talk.certificate = self.peer.tls.getpeercert(binary_form=True) or b""

    def send(self, data: bytes, *, end: bool = False) -> None:
        if self.talk.way == "TLS":
            self.peer.send(data, "both" if end else None)
            return
        self.socket.sendall(data)
        if end:
            self.socket.shutdown(socket.SHUT_WR)

    def receive(self, most: int = 1 << 30) -> None:
        """Receive to the end, or so many bytes."""
        while len(self.talk.received) < most:
            piece = self.peer.receive(1) if self.talk.way == "TLS" else self.socket.recv(4096)
            if not piece:
                break
            self.talk.received += piece


def ask_and_end(stream: Stream) -> None:
    stream.send(REQUEST, end=True)
    stream.receive()


def ask(stream: Stream) -> None:
    stream.send(REQUEST)
    stream.receive()


def hear_and_ask(stream: Stream) -> None:
    stream.receive(len(stream.talk.greeting))
    ask_and_end(stream)


def go_on_after_the_end(stream: Stream) -> None:
    ask(stream)
    stream.send(MORE, end=True)


def take_some(stream: Stream) -> None:
    stream.send(REQUEST)
    stream.receive(5000)


def wait_and_ask(stream: Stream) -> None:
    assert not select.select([stream.socket], [], [], BRIEFLY)[0]
    ask_and_end(stream)


def send_until_it_is_full(stream: Stream) -> None:
    select.select([stream.socket], [], [], PATIENCE)  # the daemon has the client, and greets it
    stream.socket.settimeout(BRIEFLY)
    with contextlib.suppress(TimeoutError):
        while True:
            stream.send(bytes(1 << 16))


# The checks of what was seen. Each is named for what the fault does.


def resets(talk: Talk) -> None:
    assert talk.sent == talk.answer[:60]
    if talk.way == "UNIX":  # it has no reset
        assert talk.of(SERVER, "fin")[0].detail == "close"
        return
    assert talk.of(SERVER, "rst")
    assert not talk.of(SERVER, "fin", "alert")
    assert talk.error is ConnectionResetError


def closes(talk: Talk) -> None:
    assert talk.sent == talk.answer[:60]
    assert talk.ends_well
    assert talk.ends_first(SERVER)
    assert talk.error is None


def half_closes(talk: Talk) -> None:
    assert talk.sent == talk.answer[:60]
    assert talk.ends_well
    assert talk.ends_first(SERVER)
    last = talk.of(CLIENT, "data")[-1]
    assert last.time > talk.of(SERVER, "fin", "alert")[0].time  # and is read


def ends_late(talk: Talk) -> None:
    assert talk.sent == talk.answer
    assert talk.ends_first(CLIENT)
    # `serial` ends by itself, after its answer.
    ended = talk.asked if talk.model == "serial" else talk.of(CLIENT, "fin")[0].time
    assert talk.of(SERVER, "fin")[0].time >= ended + 0.1


def answers_late(talk: Talk) -> None:
    assert talk.sent == talk.answer
    assert talk.when(len(talk.greeting)) >= talk.asked + 0.05
    assert talk.when(0) >= talk.began + 0.05


def stalls(talk: Talk) -> None:
    assert talk.sent == talk.answer
    assert talk.when(60) >= talk.asked + 0.1


def sends_slowly(talk: Talk) -> None:
    assert talk.sent == talk.answer
    assert max(talk.sizes) <= 1000 / 20
    # A piece comes when its last byte may.
    assert all(talk.when(n) >= talk.began + n / 1000 for n in range(len(talk.answer)))


def comes_in_pieces(size: int, pause: float) -> Callable[[Talk], None]:
    def check(talk: Talk) -> None:
        assert talk.sent == talk.answer
        assert max(talk.sizes) <= size
        # No piece is earlier than so many pauses after what it answers. Two pieces alone may be
        # nearer: the machine may have held up the first of them behind its time.
        times = [event.time for event in talk.of(SERVER, "data")]
        first = next(n for n in range(len(times)) if sum(talk.sizes[: n + 1]) > len(talk.greeting))
        assert all(at >= talk.asked + number * pause for number, at in enumerate(times[first:]))

    return check


def changes_bytes(talk: Talk) -> None:
    assert len(talk.sent) == len(talk.answer)
    assert 5 < sum(one != other for one, other in zip(talk.sent, talk.answer, strict=True)) < 60
    assert talk.ends_well


def leaves_out_bytes(talk: Talk) -> None:
    assert 10 < len(talk.sent) < len(talk.answer) - 5
    rest = iter(talk.answer)
    assert all(byte in rest for byte in talk.sent)
    assert talk.ends_well


def doubles_bytes(talk: Talk) -> None:
    assert len(talk.sent) > len(talk.answer) + 5
    rest = iter(talk.sent)
    assert all(byte in rest for byte in talk.answer)
    assert talk.ends_well


def cuts_off(talk: Talk) -> None:
    assert talk.sent == talk.answer[:60]
    assert talk.ends_first(CLIENT) or talk.model == "serial"
    assert talk.ends_well


def puts_bytes_between(talk: Talk) -> None:
    assert (talk.sent[:60], talk.sent[68:]) == (talk.answer[:60], talk.answer[60:])
    assert talk.ends_well


def goes_on(talk: Talk) -> None:
    assert talk.received[:60] == talk.answer[:60]
    assert len(talk.received) >= 5000
    assert b"\n" not in talk.received[60:]
    ends = [event for event in talk.events if event.what in ("fin", "rst")]
    assert talk.way == "UNIX" or ends[0].by is CLIENT


def does_not_read(talk: Talk) -> None:
    assert sum(talk.sizes) == len(talk.greeting)
    if talk.way != "UNIX":
        windows = [event.size for event in talk.of(SERVER, "window")]
        assert min(windows) <= max(windows) / 2  # the client waits rather than fill up the rest
    # The layer of the fault reads some, and PROXY's or TLS's.
    assert sum(event.size for event in talk.of(CLIENT, "data")) < 1 << 20


def only_greets(talk: Talk) -> None:
    assert talk.sent == talk.greeting
    assert talk.ends_well


def does_not_greet(talk: Talk) -> None:
    assert talk.sent == PREFIX + REQUEST
    assert talk.when(0) >= talk.asked
    assert talk.ends_well


# The faults of a listener.


def refuses(talk: Talk) -> None:
    assert talk.error is ConnectionRefusedError
    if talk.way != "UNIX":
        assert [event.what for event in talk.events] == ["syn", "rst"]


def does_not_answer(talk: Talk) -> None:
    assert talk.error is (BlockingIOError if talk.way == "UNIX" else TimeoutError)
    assert {event.by for event in talk.events} <= {CLIENT}
    assert {event.what for event in talk.events} <= {"syn"}


def accepts_late(talk: Talk) -> None:
    assert talk.sent == talk.answer
    if talk.way != "UNIX":
        shaken = talk.of(SERVER, "syn")[0].time
        first = next(one for one in talk.of(SERVER, "data", "handshake"))
        assert first.time >= shaken + 0.1
    assert talk.ends_well


# The faults of TLS.


def stalls_the_handshake(talk: Talk) -> None:
    hello = talk.of(CLIENT, "handshake")[0]
    assert talk.of(SERVER, "handshake")[0].time >= hello.time + 0.1
    assert talk.sent == talk.answer


def cuts_the_handshake(talk: Talk) -> None:
    assert not talk.of(SERVER, "handshake", "data", "alert", "rst")
    assert talk.of(SERVER, "fin")


def resets_the_handshake(talk: Talk) -> None:
    assert talk.of(SERVER, "rst")
    assert not talk.of(SERVER, "fin", "data", "alert")


def shows_another_certificate(talk: Talk) -> None:
    assert talk.sent == talk.answer
    assert x509.load_der_x509_certificate(talk.certificate).issuer != ISSUER
    assert talk.of(SERVER, "alert")


def does_not_notify(talk: Talk) -> None:
    assert talk.sent == talk.answer
    assert talk.of(SERVER, "fin")
    assert not talk.of(SERVER, "alert")


def alerts(talk: Talk) -> None:
    assert [event.detail for event in talk.of(SERVER, "alert")] == ["49"]
    assert not talk.of(SERVER, "handshake", "data")


def is_served(talk: Talk) -> None:
    assert talk.sent == talk.answer
    assert talk.ends_well
    # `serial` answers once, and ends.
    assert talk.ends_first(CLIENT) or talk.model == "serial"
    assert talk.way != "TLS" or talk.of(SERVER, "alert")  # close_notify


Client = Callable[[Stream], None]
Check = Callable[[Talk], None]

CONTROL = "none"

# The text of each fault, how its client talks, and the check.
TABLE: dict[str, tuple[Client, Check]] = {
    CONTROL: (ask_and_end, is_served),
    "reset:after=60": (ask, resets),
    "close:after=60": (ask, closes),
    "half-close:after=60": (go_on_after_the_end, half_closes),
    "never-close:time=0.1": (ask_and_end, ends_late),
    "delay:time=0.05": (ask_and_end, answers_late),
    "stall:after=60,time=0.1": (ask_and_end, stalls),
    "bandwidth:rate=1000": (ask_and_end, sends_slowly),
    "slice:size=16,pause=0.02": (ask_and_end, comes_in_pieces(16, 0.02)),
    "drip:pause=0.002": (ask_and_end, comes_in_pieces(1, 0.002)),
    "corrupt:rate=0.4": (ask_and_end, changes_bytes),
    "drop:rate=0.4": (ask_and_end, leaves_out_bytes),
    "duplicate:rate=0.4": (ask_and_end, doubles_bytes),
    "truncate:after=60": (ask_and_end, cuts_off),
    "garbage:after=60,size=8": (ask_and_end, puts_bytes_between),
    "endless:after=60": (take_some, goes_on),
    "never-answer": (hear_and_ask, only_greets),
    "no-banner": (wait_and_ask, does_not_greet),
    "refuse": (ask_and_end, refuses),
    "connect-timeout": (ask_and_end, does_not_answer),
    "slow-accept:time=0.1": (ask_and_end, accepts_late),
    "stall-handshake:time=0.1": (ask_and_end, stalls_the_handshake),
    "cut-handshake": (ask_and_end, cuts_the_handshake),
    "cut-handshake:after=100,end=rst": (ask_and_end, resets_the_handshake),
    "wrong-certificate": (ask_and_end, shows_another_certificate),
    "no-close-notify": (ask_and_end, does_not_notify),
    "alert:which=access_denied": (ask_and_end, alerts),
    "never-read": (send_until_it_is_full, does_not_read),
}
ARRIVALS = ("refuse", "connect-timeout", "slow-accept")
OF_TLS = ("stall-handshake", "cut-handshake", "wrong-certificate", "no-close-notify", "alert")


def name_of(fault: str) -> str:
    return fault.partition(":")[0]


def why_not(fault: str, way: str) -> str:
    """Return why there is no such cell; "" if there is."""
    if name_of(fault) in OF_TLS and way != "TLS":
        return "there is no TLS"
    return ""


Cell = tuple[str, str, str]
EVERY: list[Cell] = [
    (fault, model, way)
    for fault in TABLE
    for model in MODELS
    for way in WAYS
    if not why_not(fault, way)
]


def chosen() -> list[Cell]:
    """Return all cells for `make soak`; for `make test` each fault in each way, and each model."""
    if SOAK:
        return EVERY
    faults = list(TABLE)
    return [
        (fault, model, way)
        for fault, model, way in EVERY
        if (faults.index(fault) + WAYS.index(way)) % len(MODELS) == MODELS.index(model)
    ]


CELLS = chosen()


class Server:
    """A daemon with all faults, in one model."""

    def __init__(self, running: Daemon, listeners: list[str]) -> None:
        self.running = running
        running.wait_for("Faults on purpose, seed")
        starts = running.wait_for(r"(?:Factory|\(TLS\)) starting on '?([^'\s]+)", len(listeners))
        self.places = dict(zip(listeners, starts, strict=True))

    def place(self, fault: str, way: str) -> str:
        """Return the port, or the quoted path, that leads to a fault."""
        return self.places.get(f"{fault} {way}") or self.places[way]


# In `serial` a client that is never read keeps its turn, until this daemon gives up.
IMPATIENT = "serial, impatient"


def start(begin: Callable[..., Daemon], name: str, certificate: Path) -> Server:
    """Start a daemon with every fault."""
    model = name.partition(",")[0]
    tcp = "tcp:0:interface=127.0.0.1"
    plain = {
        "clear": tcp,
        "TLS": f"tls:0:interface=127.0.0.1:certificate={certificate}",
        "PROXY": f"proxy:{tcp}",
    }
    listeners, flags = dict(plain), []
    for number, fault in enumerate(TABLE):
        comma = "," if ":" in fault else ":"
        arrives = name_of(fault) in ARRIVALS
        ways = WAYS if arrives else () if name_of(fault) in OF_TLS else ("UNIX",)
        for way in ways:
            listeners[f"{fault} {way}"] = plain.get(way) or f"unix:{name}-{number}"
            if fault != CONTROL:
                flags += ["--fault", f"{fault}{comma}listener={len(listeners)}"]
        if fault != CONTROL and not arrives:
            flags += ["--fault", f"{fault}{comma}from={address_of(fault)}"]
    flags += [word for listen in listeners.values() for word in ("--listen", listen)]
    flags += ["--prefix", PREFIX.decode(), "--fault-seed", "7", "--drain-timeout", "0.1"]
    if name == IMPATIENT:
        flags += ["--serial-timeout", "0.5"]
    running = begin("--concurrency", model, *flags)
    return Server(running, list(listeners))


def address_of(fault: str) -> str:
    """Return the address of the clients that get a fault."""
    return f"127.0.1.{1 + list(TABLE).index(fault)}"


def talk_to(server: Server, fault: str, model: str, way: str) -> Talk:
    """Hold the conversation of one cell."""
    talk = Talk(fault, model, way)
    stream = Stream(talk)
    try:
        stream.connect(server.running.directory, server.place(fault, way), address_of(fault))
        TABLE[fault][0](stream)
    except OSError as error:
        talk.error = type(error)
    except AssertionError:
        assert name_of(fault) == "cut-handshake"  # the server has closed instead
    finally:
        stream.socket.close()
    return talk


def server_of(cell: Cell) -> str:
    """Return the name of the daemon of a cell."""
    fault, model, _ = cell
    return IMPATIENT if (fault, model) == ("never-read", "serial") else model


def talk_to_all(servers: dict[str, Server], cells: list[Cell]) -> dict[Cell, Talk]:
    """Hold the conversations of cells: those of one model in turn, as `serial` needs it."""
    found: dict[Cell, Talk] = {}

    def each_of(name: str) -> None:
        for cell in cells:
            if server_of(cell) == name:
                found[cell] = talk_to(servers[name], *cell)

    threads = [threading.Thread(target=each_of, args=[name]) for name in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> dict[Cell, Talk]:
    """The conversations of all cells, with what was seen of them."""
    needs_root("to see packets and calls")
    folder = tmp_path_factory.mktemp("wire")
    certificate = folder / "cert.pem"
    certificate.write_bytes(AUTHORITY.issue("localhost", hosts=["localhost"]))
    unix = [cell for cell in CELLS if cell[2] == "UNIX"]
    with starting(folder) as begin:
        servers = {name: start(begin, name, certificate) for name in (*MODELS, IMPATIENT)}
        places = [each for server in servers.values() for each in server.places.items()]
        ports = [int(place) for _, place in places if place.isdigit()]
        tls = [int(place) for name, place in places if name.endswith("TLS")]
        with capturing(folder / "packets", ports, tls) as capture:
            found = talk_to_all(servers, [cell for cell in CELLS if cell[2] != "UNIX"])
        with tracing(folder / "calls", [each.running for each in servers.values()]) as calls:
            found |= talk_to_all(servers, unix)
    seen = {**capture.read(), **calls.read()}
    for talk in found.values():
        talk.events = seen.get(talk.key, [])
    return found


def test_each_fault_is_on_the_wire_what_the_page_says(talks: dict[Cell, Talk]) -> None:
    """Fault 180: tshark, and on UNIX sockets strace, see each fault in each concurrency model, in
    clear, over TLS, behind a proxy and on UNIX sockets: the reset and after how many bytes, which
    end comes first, no pause shorter than asked for, the bytes, the alerts, and no answer to SYN.
    """
    failures = []
    for cell, talk in talks.items():
        try:
            TABLE[cell[0]][1](talk)
        except (AssertionError, StopIteration, IndexError) as error:
            failures.append(f"{' '.join(cell)}: {error!r}"[:600])
    assert not failures, "\n".join(failures)
    assert talks.keys() == set(CELLS)


def test_the_table_has_every_fault_in_each_way_or_says_why_not() -> None:
    assert {name_of(fault) for fault in TABLE} == {*FAULTS, CONTROL}
    for fault in TABLE:
        for way in WAYS:
            cells = {cell for cell in CELLS if (cell[0], cell[2]) == (fault, way)}
            assert cells or why_not(fault, way) == "there is no TLS"
    assert {model for _, model, _ in CELLS} == set(MODELS)
