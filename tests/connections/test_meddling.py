"""Faults of TLS on the wire, on each kind of listener, in every model."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from echod.errors import UserError
from echod.faults.tls import ALERTS, MISTAKES, PROVOCATIONS
from echod.testing import Server, serving
from echod.tls.mistakes import Mistake
from tests.support.clients import receive
from tests.support.daemon import CONCURRENT, MODELS
from tests.support.log import Log
from tests.support.proxy_headers import line
from tests.support.tls_peer import VERSIONS, Peer, client_context, hello_of
from tests.support.waiting import PATIENCE
from tests.testing.test_serving import Upgrading, blocking, shout

WAYS = ["tls", "proxy", "unix", "starttls"]
# The ways, each in the model that differs most, and every model over one of them.
CELLS = [
    *((way, "reactor") for way in WAYS),
    *((way, "thread-per-connection") for way in ("proxy", "unix")),
    *(("tls", model) for model in MODELS if model != "reactor"),
]
cells = pytest.mark.parametrize(("way", "model"), CELLS)
HELLO = hello_of("shop.localhost")


class Served:
    """A server whose TLS has faults, and its clients."""

    def __init__(self, server: Server, way: str) -> None:
        self.server = server
        self._way = way

    @contextlib.contextmanager
    def connected(self) -> Iterator[socket.socket]:
        """Connect, up to where TLS begins."""
        address: Any = self.server.address
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        with socket.socket(family) as client:
            client.settimeout(PATIENCE)
            client.connect(address)
            if self._way == "proxy":
                client.sendall(line())
            if self._way == "starttls":
                client.sendall(b"STARTTLS\n")
                assert receive(client, 9) == b"go ahead\n"
            yield client

    @contextlib.contextmanager
    def secure(
        self, context: ssl.SSLContext | None = None, host: str = "shop.localhost"
    ) -> Iterator[ssl.SSLSocket]:
        """Connect, and shake hands."""
        with self.connected() as plain:
            made = (context or client_context()).wrap_socket(
                plain, server_hostname=host, do_handshake_on_connect=False
            )
            with made:
                made.do_handshake()
                yield made

    def ended(self) -> list[tuple[str, tuple[str, ...]]]:
        """Return the reason of each connection's end, and its faults."""
        return [(one.reason, one.faults) for one in self.server.connections]


@contextlib.contextmanager
def served(
    way: str, model: str, *faults: str, folder: Path, certificate: Path, **settings: Any
) -> Iterator[Served]:
    listen = {
        "tls": f"tls:0:interface=127.0.0.1:certificate={certificate}",
        "proxy": f"proxy:tls:0:interface=127.0.0.1:certificate={certificate}",
        "unix": f"tls:unix:{folder / 'socket'}:certificate={certificate}",
        "starttls": f"starttls:0:interface=127.0.0.1:certificate={certificate}",
    }[way]
    handler: Any = Upgrading if way == "starttls" else shout
    if model == "thread-per-connection":
        handler = shouting
    else:
        settings = {"framing": "line"} | settings
    server = serving(handler, listen=listen, concurrency=model, no_banner=True, **settings)
    with server.fault(*faults):
        yield Served(server, way)


def shouting(conn: socket.socket) -> None:
    while data := conn.recv(1000):
        conn.sendall(data.upper())


@pytest.fixture
def serve(tmp_path: Path, certificate: Path) -> Any:
    def start(way: str, model: str, *faults: str, **settings: Any) -> Any:
        return served(way, model, *faults, folder=tmp_path, certificate=certificate, **settings)

    return start


def received(client: socket.socket) -> tuple[bytes, type[OSError] | None]:
    """Return all bytes up to the end, and the error if it is none."""
    came = b""
    try:
        while data := client.recv(65536):
            came += data
    except ConnectionError as error:
        return came, type(error)
    return came, None


def is_silent(client: socket.socket, seconds: float = 0.1) -> bool:
    """Return whether nothing comes for a time."""
    return not select.select([client], [], [], seconds)[0]


# The handshake.


@pytest.mark.parametrize("after", [0, 1, 90])
@cells
@blocking
def test_a_handshake_is_cut_after_exactly_so_many_bytes(
    serve: Any, way: str, model: str, after: int
) -> None:
    """Fault 143: `cut-handshake` ends the connection by FIN after exactly so many bytes of the
    server's handshake.
    """
    with serve(way, model, f"cut-handshake:after={after}") as here:
        with here.connected() as client:
            client.sendall(HELLO)
            came, error = received(client)
            assert (len(came), error) == (after, None)
            assert came[:3] == b"\x16\x03\x03"[:after]
        assert here.ended() == [("fault", ("cut-handshake",))]


@cells
@blocking
def test_a_handshake_is_cut_by_a_reset(serve: Any, way: str, model: str) -> None:
    """Fault 143: `cut-handshake:end=rst` ends it by a reset, once the client has the bytes."""
    with serve(way, model, "cut-handshake:after=90,end=rst") as here:
        with here.connected() as client:
            client.sendall(HELLO)
            came, error = received(client)
            assert len(came) == 90
            assert error is (None if way == "unix" else ConnectionResetError)
        assert here.ended() == [("fault", ("cut-handshake",))]


@cells
@blocking
def test_a_handshake_stalls_for_a_time(serve: Any, way: str, model: str) -> None:
    """Fault 143: `stall-handshake` holds the handshake after so many bytes, for its time."""
    with serve(way, model, "stall-handshake:after=90,time=0.3", idle_timeout=0.0) as here:
        with here.connected() as client:
            begun = time.monotonic()
            client.sendall(HELLO)
            came = b""
            while len(came) < 90:
                came += client.recv(90 - len(came))
            assert client.recv(1)
            assert time.monotonic() - begun > 0.29
        with here.secure() as client:
            client.sendall(b"noop\n")
            assert client.recv(100).endswith(b"\n")
        assert {faults for _, faults in here.ended()} == {("stall-handshake",)}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("after", [0, 1000, 1300, 1400, 1500, 1600])
@blocking
def test_a_handshake_that_stalls_anywhere_ends_well(
    serve: Any, version: ssl.TLSVersion, after: int
) -> None:
    fault = f"stall-handshake:after={after},time=0.01"
    with serve("tls", "reactor", fault) as here, here.secure(client_context(version)) as client:
        client.sendall(b"happy\n")
        assert client.recv(100) == b"HAPPY\n"


@cells
@blocking
def test_deadlines_stand_still_while_a_handshake_stalls(serve: Any, way: str, model: str) -> None:
    """Fault 143: No deadline ends a handshake that a fault holds; a drain does."""
    faults = ("stall-handshake",)
    with serve(way, model, *faults, first_byte_timeout=0.3, drain_timeout=0.5) as here:
        with here.connected() as client:
            client.sendall(HELLO)
            assert is_silent(client, 1.0)
            here.server.drain()
            assert received(client)[0] == b""
        assert [faults for _, faults in here.ended()] == [("stall-handshake",)]


@blocking
def test_a_fault_that_is_taken_away_lets_the_handshake_go_on(serve: Any) -> None:
    """Fault 143: A fault that is taken away holds no handshake any more."""
    with serve("tls", "reactor", "stall-handshake") as here, here.connected() as client:
        client.sendall(HELLO)
        assert is_silent(client)
        here.server.unfault()
        assert client.recv(3) == b"\x16\x03\x03"


@blocking
def test_two_faults_of_a_handshake_combine(serve: Any) -> None:
    with serve(
        "tls", "reactor", "stall-handshake:after=9,time=0.01", "cut-handshake:after=99"
    ) as (here):
        with here.connected() as client:
            client.sendall(HELLO)
            assert len(received(client)[0]) == 99
        assert here.ended() == [("fault", ("stall-handshake", "cut-handshake"))]


# Alerts.


@pytest.mark.parametrize("which", ["", *ALERTS])
@blocking
def test_an_alert_stands_in_place_of_the_handshake(serve: Any, which: str) -> None:
    """Fault 143: `alert` answers the client's hello with this fatal alert, and FIN."""
    fault = f"alert:which={which}" if which else "alert"
    code = ALERTS[which or "handshake_failure"]
    with serve("tls", "reactor", fault) as here:
        with here.connected() as client:
            client.sendall(HELLO)
            assert received(client) == (b"\x15\x03\x03\0\x02\x02" + bytes([code]), None)
        assert here.ended() == [("fault", ("alert",))]


@cells
@blocking
def test_an_alert_is_understood_by_openssl(serve: Any, way: str, model: str) -> None:
    with serve(way, model, "alert:which=access-denied") as here:
        with pytest.raises(ssl.SSLError, match="ALERT_ACCESS_DENIED"), here.secure():
            pass
        assert here.ended() == [("fault", ("alert",))]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("which", ["", *PROVOCATIONS])
@blocking
def test_an_alert_stands_in_the_stream(serve: Any, which: str, version: ssl.TLSVersion) -> None:
    """Fault 143: With `after=` the client gets so many bytes, then the alert."""
    fault = f"alert:after=3{',which=' + which if which else ''}"
    words = (which or "bad_record_mac").upper()
    with serve("tls", "reactor", fault) as here:
        with here.secure(client_context(version)) as client:
            client.sendall(b"happy\n")
            assert client.recv(100) == b"HAP"
            with pytest.raises(ssl.SSLError, match=f"ALERT_{words}"):
                client.recv(100)
        assert here.ended() == [("fault", ("alert",))]


@cells
@blocking
def test_an_alert_follows_the_handshake(serve: Any, way: str, model: str) -> None:
    with serve(way, model, "alert:after=handshake") as here:
        with (
            pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"),
            here.secure() as client,
        ):
            client.recv(100)
        assert here.ended() == [("fault", ("alert",))]


# Certificates.


@pytest.mark.parametrize("mistake", MISTAKES)
@blocking
def test_a_client_gets_the_certificate_with_the_mistake(serve: Any, mistake: str) -> None:
    """Fault 143: `wrong-certificate` serves the certificate with this mistake, for the host that
    the client asks for.
    """
    with serve("tls", "reactor", f"wrong-certificate:name={mistake}") as here:
        mistakes = here.server.service.listeners[0].factory.mistakes()
        context = ssl.create_default_context(cadata=mistakes.certificate.decode())
        context.hostname_checks_common_name = False
        with (
            pytest.raises(ssl.SSLError),
            here.secure(context) as client,
        ):
            client.recv(100)
        (reason, faults), *_ = here.ended()
        assert faults == ("wrong-certificate",)
        assert reason in ("handshake error", "client closed", "lost")


def test_the_mistakes_are_those_of_badtls() -> None:
    assert list(MISTAKES) == [one.value for one in Mistake if one is not Mistake.GOOD]


@cells
@blocking
def test_only_clients_that_ask_for_a_host_get_its_fault(serve: Any, way: str, model: str) -> None:
    """Fault 143: `sni=` selects the clients that ask for this host, on each kind of listener; the
    others get the listener's certificate.
    """
    faults = ("wrong-certificate:name=expired,sni=shop.localhost", "alert:sni=*.other.localhost")
    with serve(way, model, *faults) as here:
        shown = {}
        for host in ("good.localhost", "shop.localhost", "SHOP.localhost"):
            with here.secure(host=host) as client:
                shown[host] = client.getpeercert(binary_form=True)
        with (
            pytest.raises(ssl.SSLError, match="ALERT_HANDSHAKE"),
            here.secure(host="a.other.localhost"),
        ):
            pass
        assert shown["good.localhost"] != shown["shop.localhost"]
        assert [faults for _, faults in here.ended()] == [
            (),
            ("wrong-certificate",),
            ("wrong-certificate",),
            ("alert",),
        ]


@pytest.mark.parametrize("way", ["tls", "starttls"])
@blocking
def test_a_fault_of_the_stream_depends_on_the_host_too(serve: Any, way: str) -> None:
    """Fault 143: `sni=` holds for a fault of the stream, and `at-most` counts only its hits."""
    with serve(way, "reactor", "reset:sni=shop.localhost,at-most=2") as here:
        for host, is_reset in (
            ("good.localhost", False),
            ("shop.localhost", True),
            ("good.localhost", False),
            ("shop.localhost", True),
            ("shop.localhost", False),
        ):
            answer = b""
            with contextlib.suppress(ConnectionError), here.secure(host=host) as client:
                client.sendall(b"noop\n")
                answer = client.recv(100)
            assert answer.endswith(b"\n") is not is_reset
        assert [one == ("reset",) for _, one in here.ended()] == [False, True, False, True, False]


@blocking
def test_a_fault_that_is_added_later_has_the_authority_in_a_file(serve: Any, log: Log) -> None:
    """Fault 143: For a wrong certificate that is added while the daemon runs, the log names the
    file of the authority; a fault that can hit no connection is refused.
    """
    with serve("tls", "reactor") as here:
        here.server.fault("wrong-certificate:name=not-yet")
        path = Path(log.text.rpartition("the authority is in ")[2].split()[0])
        context = ssl.create_default_context(cafile=str(path))
        with (
            pytest.raises(ssl.SSLError, match="certificate is not yet valid"),
            here.secure(context),
        ):
            pass
        with pytest.raises(UserError, match="ca= is for the start; leave it out"):
            here.server.fault("wrong-certificate:ca=x.pem")
    assert not path.exists()
    with serving(shout, listen="tcp:0:interface=127.0.0.1") as server:
        with pytest.raises(UserError, match="alert needs a listener with TLS"):
            server.fault("alert")
        assert server.faults == []


# The end.


@pytest.mark.parametrize("version", VERSIONS)
@cells
@blocking
def test_a_stream_ends_without_close_notify(
    serve: Any, way: str, model: str, version: ssl.TLSVersion
) -> None:
    """Fault 143: With `no-close-notify` the bytes come whole, then FIN, without close_notify."""
    for faults, notified in ((("no-close-notify",), False), ((), True)):
        with serve(way, model, *faults) as here:
            with (
                here.connected() as plain,
                Peer(over=plain, context=client_context(version)) as client,
            ):
                client.send(b"noop\n", "fin")
                assert client.receive_all().endswith(b"\n")
                assert client.notified is notified
                assert client.at_fin()
            assert [one for _, one in here.ended()] == [faults]


@pytest.mark.parametrize("model", CONCURRENT)
@blocking
def test_nothing_of_a_fault_is_left_after_a_client_goes(serve: Any, model: str) -> None:
    """Fault 143: A client that leaves in the middle of a fault leaves nothing behind."""
    with serve("tls", model, "stall-handshake:time=60", first_byte_timeout=0.5) as here:
        for _ in range(3):
            with here.connected() as client:
                client.sendall(HELLO)
                assert is_silent(client, 0.01)
        here.server.wait_until(lambda: not here.server.open, PATIENCE)
        assert here.ended() == [("client closed", ("stall-handshake",))] * 3
