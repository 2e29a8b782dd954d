"""PROXY headers, honest and hostile, before the daemon; and the real haproxy."""

from __future__ import annotations

import ast
import contextlib
import random
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.faults.network import network
from tests.faults.scale import Scale
from tests.support.certificates import Authority
from tests.support.clients import BANNER, connect, receive, receive_all
from tests.support.daemon import Daemon, Start, starting
from tests.support.haproxy import DEFAULTS, haproxy
from tests.support.paths import ROOT
from tests.support.proxy_headers import DESTINATION, SIGNATURE, SOURCE, binary, line
from tests.support.waiting import PATIENCE, block_until

LISTEN = ("--listen", "proxy:tcp:0:interface=127.0.0.1")
HANDLERS = '''
from echod import Handler


class Who(Handler):
    """Greets its clients by all that is known of them."""

    def opened(self, client):
        said = client.proxy
        tls = said and said.tls
        facts = {
            "peer": client.peer,
            "local": client.local,
            "tls": client.tls and client.tls.version,
            "version": said and said.version,
            "command": said and said.command.value,
            "unique id": said and said.unique_id,
            "checksum": bool(said and said.field(3)),
            "client": tls and (tls.version, tls.common_name, tls.verified, bool(tls.cipher)),
        }
        return f"{facts}\\n".encode()

    def received(self, message):
        return b"OK..." + message
'''


def who(connection: socket.socket) -> dict[str, object]:
    """Return the knowledge of the handler `Who`."""
    line = b""
    while not line.endswith(b"\n"):
        piece = connection.recv(1)
        assert piece, line
        line += piece
    told = ast.literal_eval(line.decode())
    assert isinstance(told, dict)
    return told


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon for all tests that do not change it."""
    with starting(tmp_path_factory.mktemp("proxy")) as start:
        yield start(*LISTEN, "--proxy-timeout", "1")


@pytest.fixture
def knowing(daemon: Start, tmp_path: Path) -> Daemon:
    """A daemon that tells its clients its knowledge about them."""
    (tmp_path / "served.py").write_text(HANDLERS)
    return daemon(*LISTEN, "--handler", "served:Who")


@pytest.mark.parametrize(
    "header", [line(), line(("2001:db8::1", 1), ("::1", 2)), binary(), binary(None)]
)
def test_a_header_is_accepted_wherever_it_is_split(running: Daemon, header: bytes) -> None:
    """Fault 41: A header may arrive in any pieces, even byte by byte; nothing after it is lost."""
    for place in range(1, len(header)):
        with connect(running) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(header[:place])
            connection.sendall(header[place:] + b"happy\n")
            connection.shutdown(socket.SHUT_WR)
            assert receive_all(connection) == BANNER + b"OK...happy\n"
    with connect(running) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in header:
            connection.sendall(bytes([byte]))
        assert receive(connection, len(BANNER)) == BANNER


def test_the_greeting_follows_the_header_and_the_real_peer_is_seen(knowing: Daemon) -> None:
    """Fault 42: The daemon sends nothing before the header; after it, greeting, handler and log
    have the real client's address.
    """
    with connect(knowing) as connection:
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(PATIENCE)
        connection.sendall(line())
        told = who(connection)
        assert (told["peer"], told["local"]) == ("203.0.113.7:56324", "198.51.100.1:443")
    knowing.wait_for(r"Connected with 203\.0\.113\.7:56324")
    knowing.wait_for(r"Disconnected from 203\.0\.113\.7:56324")


def test_limits_by_address_are_for_the_real_clients(daemon: Start) -> None:
    """Fault 42: The limit by address applies to each client behind a proxy, not to the proxy."""
    running = daemon(*LISTEN, "--max-connections-per-address", "2")
    with connect(running) as first, connect(running) as second, connect(running) as third:
        for number, connection in enumerate((first, second, third)):
            connection.sendall(line((f"203.0.113.{number % 2}", 1), DESTINATION))
            assert receive(connection, len(BANNER)) == BANNER
        with connect(running) as fourth:
            fourth.sendall(line(("203.0.113.0", 1), DESTINATION))
            assert b"too many connections from your address" in receive_all(fourth)


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 203.0.113.7 198.51.100.1 -1 443\r\n",
        b"PROXY TCP4 203.0.113.7 198.51.100.1 99999999 443\r\n",
        b"PROXY TCP4 203.0.113 198.51.100.1 1 443\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 1 443\r\n",
        b"PROXY TCP6 203.0.113.7 198.51.100.1 1 443\r\n",
        b"PROXY TCP4 203.0.113.7\x1b[31m 198.51.100.1 1 443\r\n",
        b"PROXY TCP4 203.0.113.7 198.51.100.1 1 443\n",
        b"PROXY " + b"A" * 200,
        b"GET / HTTP/1.1\r\n\r\n",
        SIGNATURE + b"\x31\x11\x00\x00",
        SIGNATURE + b"\x21\x11\x00\x01x",
        SIGNATURE + b"\x21\x11\xff\xff",
        binary(SOURCE, DESTINATION, (3, b"1234")),
    ],
)
def test_a_broken_header_is_refused(running: Daemon, header: bytes) -> None:
    """Fault 43: An invalid header ends its connection, without a traceback; one line of the log
    says why, and shows none of the bytes.
    """
    before = running.log.count("Refused")
    with connect(running) as connection:
        connection.sendall(header)
        assert ended(connection)
    block_until(lambda: running.log.count("Refused") > before)
    assert "Traceback" not in running.log
    assert "\x1b" not in running.log


def ended(connection: socket.socket) -> bool:
    """Whether the connection ends, by an end or a reset, without a byte."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_junk_before_a_header_is_refused(running: Daemon, scale: Scale) -> None:
    """Fault 43: Any bytes in place of a header end only their own connection, and leave nothing
    behind.
    """
    chance = random.Random(43)
    starts = (b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11\x00\x0c")
    for _ in scale(ci=50, soak=100_000):
        junk = chance.choice(starts) + chance.randbytes(chance.randrange(1, 200))
        with connect(running) as connection, contextlib.suppress(OSError):  # it is a reset, mostly
            connection.sendall(junk)
            connection.shutdown(socket.SHUT_WR)
            receive_all(connection)
    with connect(running) as connection:
        connection.sendall(line())
        assert receive(connection, len(BANNER)) == BANNER
    assert "Traceback" not in running.log


@pytest.mark.parametrize("pieces", [[], [b"PROXY "], [line()[:10], line()[10:20]]])
def test_a_header_that_never_ends_is_not_waited_for(running: Daemon, pieces: list[bytes]) -> None:
    """Fault 44: A header has a deadline; one that arrives byte by byte does not get more time."""
    with connect(running) as connection:
        began = time.monotonic()
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.3)  # the pace of this client, not a wait
        assert ended(connection)
        assert time.monotonic() - began > 0.9
    running.wait_for("no PROXY header in time")


def test_only_trusted_proxies_are_heard(daemon: Start) -> None:
    """Fault 45: A header from an address outside of `--proxy-trust` ends its connection, with one
    line.
    """
    running = daemon(*LISTEN, "--proxy-trust", "127.0.0.2", "--proxy-trust", "10.0.0.0/8")
    with connect(running) as connection:
        port = connection.getsockname()[1]
        connection.sendall(line())
        assert ended(connection)
    running.wait_for(rf"Refused 127\.0\.0\.1:{port}: proxy-trust \(PROXY headers are not taken")
    with connect(running, source_address=("127.0.0.2", 0)) as connection:
        connection.sendall(line())
        assert receive(connection, len(BANNER)) == BANNER
    running.wait_for("Connected with 203.0.113.7")


def test_a_drain_waits_for_no_header(daemon: Start) -> None:
    """Fault 44: At SIGTERM a client that has sent no header is disconnected at once."""
    running = daemon(*LISTEN, "--drain-timeout", "600")
    with connect(running) as silent, connect(running) as served:
        served.sendall(line())
        assert receive(served, len(BANNER)) == BANNER
        running.tell()
        assert ended(silent)
        served.close()
        running.wait()


# haproxy.


def backend(running: Daemon, options: str, more: str = "") -> str:
    return f"""{DEFAULTS}
listen echod
    bind {{bind}}
    {more}
    server one 127.0.0.1:{running.port} {options}
"""


@pytest.mark.parametrize(("options", "version"), [("send-proxy", 1), ("send-proxy-v2", 2)])
def test_haproxys_headers_are_understood(
    knowing: Daemon, tmp_path: Path, options: str, version: int
) -> None:
    """Fault 46: The daemon takes the client's address from haproxy's headers, version 1 and 2."""
    with haproxy(tmp_path, backend(knowing, options)) as proxy, proxy.connect() as connection:
        told = who(connection)
        assert told["peer"] == "{}:{}".format(*connection.getsockname())
        assert told["local"] == "{}:{}".format(*connection.getpeername())
        assert (told["version"], told["command"]) == (version, "PROXY")
        connection.sendall(b"x" * 1000)
        assert receive(connection, 1005) == b"OK..." + b"x" * 1000


def test_haproxys_checks_leave_no_line(daemon: Start, tmp_path: Path) -> None:
    """Fault 198: No line of the log tells of a check, by a bare connection, by LOCAL or by
    `/readyz`; it counts as a check, and not as a client. A check by LOCAL is served.
    """
    running = daemon(*LISTEN, "--status", "tcp:0:interface=127.0.0.1")
    status = running.wait_for(r"StatusSite starting on (\d+)")[0]
    port = running.wait_for(r"ProxyFactory starting on (\d+)")[0]
    kinds = {
        "connect": ("", "check"),
        "local": ("", "send-proxy-v2 check"),
        "looks": ("option tcp-check; tcp-check expect string Welcome", "send-proxy-v2 check"),
        "readyz": ("option httpchk GET /readyz", f"send-proxy-v2 check port {status}"),
    }
    config = f"{DEFAULTS}    timeout check 20s\nfrontend clients\n    bind {{bind}}\n"
    config += "    default_backend readyz\n"
    for name, (asks, check) in kinds.items():
        options = f"{check} inter 50ms fall 3 rise 1"
        config += f"backend {name}\n    {asks.replace('; ', chr(10) + '    ')}\n"
        config += f"    server one 127.0.0.1:{port} {options}\n"

    def count() -> dict[tuple[str, str], float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{status}/metrics") as answer:
            text = answer.read().decode()
        return {
            (sample.name, sample.labels.get("check", "")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name in ("echod_checks_total", "echod_connections_accepted_total")
        }

    # haproxy resets a bare connection before the kernel has completed it: the daemon sees none.
    least = {"connect": 0, "local": 12, "readyz": 6}
    with haproxy(tmp_path, config):
        block_until(
            lambda: all(count()["echod_checks_total", kind] >= n for kind, n in least.items())
        )
        assert "DOWN" not in (tmp_path / "haproxy.log").read_text()
    assert count()["echod_connections_accepted_total", ""] == 0
    assert not re.search("onnected|Refused", running.log)


def test_haproxy_tells_of_the_clients_tls(knowing: Daemon, tmp_path: Path) -> None:
    """Fault 46: Handlers find haproxy's fields about a client's TLS session: version, cipher, the
    common name of its certificate; and the connection's unique ID.
    """
    authority = Authority()
    (tmp_path / "server.pem").write_bytes(authority.pem)
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    (tmp_path / "client.pem").write_bytes(authority.issue("Ada\x1b"))
    fields = "proxy-v2-options ssl,cert-cn,ssl-cipher,crc32c,unique-id"
    config = backend(knowing, f"send-proxy-v2 {fields}", "unique-id-format %ci:%cp")
    tls = f"ssl crt {tmp_path}/server.pem ca-file {tmp_path}/ca.pem verify optional"
    with (
        haproxy(tmp_path, config.replace("{bind}", f"{{bind}} {tls}")) as proxy,
        proxy.connect() as plain,
    ):
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        context.load_cert_chain(tmp_path / "client.pem")
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
            told = who(connection)  # type: ignore[arg-type]
            assert told["client"] == (connection.version(), "Ada\x1b", True, True)
            assert told["unique id"] == "{}:{}".format(*connection.getsockname()).encode()
            assert told["checksum"]
            assert told["tls"] is None


def test_haproxys_header_comes_before_the_clients_tls(daemon: Start, tmp_path: Path) -> None:
    """Fault 46: If haproxy leaves TLS to the daemon, its header comes first, unencrypted."""
    (tmp_path / "served.py").write_text(HANDLERS)
    authority = Authority()
    (tmp_path / "server.pem").write_bytes(authority.pem)
    running = daemon("--handler", "served:Who", "--listen", "proxy:tls:0:certificate=server.pem")
    with haproxy(tmp_path, backend(running, "send-proxy-v2")) as proxy, proxy.connect() as plain:
        context = ssl.create_default_context(cadata=authority.certificate.decode())
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
            told = who(connection)  # type: ignore[arg-type]
            assert told["tls"] == connection.version()
            assert told["peer"] == "{}:{}".format(*connection.getsockname())


def test_the_example_configuration_works_on_one_machine(daemon: Start, tmp_path: Path) -> None:
    """Fault 46: etc/haproxy.cfg is valid, and works as its comments say."""
    text = (ROOT / "etc/haproxy.cfg").read_text()
    asked = re.findall(r"^# +twistd -n --pidfile= echod (.*127\.0\.0\.1)$", text, re.MULTILINE)
    [(before, after)] = re.findall(r"sed 's/(.*)/(.*)/'", text)
    # In a network of its own, no packet leaves for the other hosts.
    with network() as here:
        running = daemon(*asked[0].split(), steps=[here.step])
        running.wait_for("StatusSite starting")
        text = text.replace(before, after).replace("bind :9999", "bind {bind}")
        with haproxy(tmp_path, text, here.namespace) as proxy, here.socket() as connection:
            connection.connect(("127.0.0.1", proxy.port))
            name = connection.getsockname()
            connection.sendall(b"happy\n")
            connection.shutdown(socket.SHUT_WR)
            assert receive_all(connection) == BANNER + b"OK...happy\n"
            running.wait_for(r"Connected with {}:{}".format(*name))


def test_many_clients_of_haproxy_lose_nothing(daemon: Start, tmp_path: Path, scale: Scale) -> None:
    """Fault 46: Behind haproxy half-close works as without it: every reply arrives."""
    running = daemon(*LISTEN, "--no-banner")
    with haproxy(tmp_path, backend(running, "send-proxy-v2")) as proxy:
        for number in scale(ci=100, soak=100_000):
            with proxy.connect() as connection:
                connection.sendall(b"%d" % number)
                connection.shutdown(socket.SHUT_WR)
                assert receive_all(connection) == b"OK...%d" % number
