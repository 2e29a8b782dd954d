from __future__ import annotations

import json
import socket
import ssl
from pathlib import Path

import pytest

from echod.handlers.client import Client
from echod.handlers.inspecting import Inspect
from echod.proxy_header import ProxyHeader
from echod.tls import TLSFacts
from tests.support.certificates import Authority
from tests.support.clients import connect
from tests.support.daemon import MODELS, Daemon, Start
from tests.support.haproxy import DEFAULTS, haproxy

# The public keys, of each object: they are never renamed or removed. docs/test-target.md has them.
KEYS = {
    *("peer", "local", "listener", "proxy", "tls"),
    *("message", "messages", "bytes", "connected", "seconds"),
    *("hostname", "namespace", "pod", "service", "ingress"),
}
TLS_KEYS = {
    *("version", "cipherSuite", "serverName", "negotiatedProtocol", "peerCertificates"),
    *("subject", "resumed"),
}
PROXY_KEYS = {"version", "command", "source", "destination", "tlvs", "authority", "tls"}
PROXIED_TLS_KEYS = {"encrypted", "verified", "version", "commonName", "cipherSuite"}


def told(connection: socket.socket) -> dict:
    """Return the next object that a daemon sends."""
    line = b""
    while not line.endswith(b"\n"):
        piece = connection.recv(1)
        assert piece, line
        line += piece
    facts = json.loads(line)
    assert set(facts) == KEYS
    return facts


def at(pair: tuple[str, int]) -> str:
    return f"{pair[0]}:{pair[1]}"


def test_the_keys_are_documented() -> None:
    page = Path(__file__).parents[2].joinpath("docs/test-target.md").read_text()
    section = page.partition("## The view of the server: inspect")[2].partition("\n## ")[0]
    for key in KEYS | TLS_KEYS | PROXY_KEYS | PROXIED_TLS_KEYS:
        assert f"`{key}`" in section, key


def test_every_kind_of_fact_has_its_keys() -> None:
    client = Client("1.2.3.4:5", "", "", TLSFacts("TLSv1.3", "odd"), ProxyHeader(2))
    facts = json.loads(Inspect().opened(client))
    assert set(facts["tls"]) == TLS_KEYS
    assert set(facts["proxy"]) == PROXY_KEYS
    assert facts["proxy"]["source"] is None


@pytest.mark.parametrize("model", MODELS)
def test_a_client_is_told_on_connect_and_for_each_line(daemon: Start, model: str) -> None:
    running = daemon("--handler", "inspect", "--concurrency", model)
    with connect(running) as connection:
        greeted = model != "serial"  # which sends no greeting
        if greeted:
            facts = told(connection)
            assert facts["peer"] == at(connection.getsockname())
            assert facts["local"] == at(connection.getpeername())
            assert facts["hostname"] == socket.gethostname()
            assert (facts["tls"], facts["proxy"]) == (None, None)
            assert (facts["messages"], facts["bytes"], facts["message"]) == (0, 0, "")
        connection.sendall(b"WHO\n")
        if model == "serial":
            return
        facts = told(connection)
        assert (facts["messages"], facts["bytes"], facts["message"]) == (1, 3, "WHO")
        connection.sendall(b"\xff\x1b\n")
        facts = told(connection)
        assert (facts["messages"], facts["bytes"]) == (2, 5)
        assert facts["seconds"] >= 0


def test_without_a_banner_the_client_speaks_first(daemon: Start) -> None:
    running = daemon("--handler", "inspect", "--no-banner")
    with connect(running) as connection:
        connection.sendall(b"hello\n")
        assert told(connection)["messages"] == 1


def test_the_place_in_kubernetes_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NAMESPACE", "shop")
    monkeypatch.setenv("POD_NAME", "echo-1")
    monkeypatch.setenv("SERVICE_NAME", "echo")
    monkeypatch.setenv("INGRESS_NAME", "front")
    facts = json.loads(Inspect().opened(Client("127.0.0.1:1")))
    place = [facts[key] for key in ("namespace", "pod", "service", "ingress")]
    assert place == ["shop", "echo-1", "echo", "front"]


def backend(running: Daemon, options: str) -> str:
    port = int(running.wait_for(r"Factory.* starting on (\d+)")[0])
    return f"""{DEFAULTS}
listen tcp
    bind {{bind}}
    server echo 127.0.0.1:{port} {options}
"""


@pytest.mark.parametrize(("options", "version"), [("send-proxy", 1), ("send-proxy-v2", 2)])
def test_behind_haproxy_the_client_is_the_real_one(
    daemon: Start, tmp_path: Path, options: str, version: int
) -> None:
    running = daemon("--listen", "proxy:tcp:0:interface=127.0.0.1", "--handler", "inspect")
    with haproxy(tmp_path, backend(running, options)) as proxy, proxy.connect() as connection:
        facts = told(connection)
        assert facts["peer"] == at(connection.getsockname())
        header = facts["proxy"]
        assert set(header) == PROXY_KEYS
        assert (header["version"], header["command"]) == (version, "PROXY")
        assert header["source"] == at(connection.getsockname())
        assert header["destination"] == at(connection.getpeername())


def test_behind_haproxy_that_ends_tls_its_fields_are_told(daemon: Start, tmp_path: Path) -> None:
    running = daemon("--listen", "proxy:tcp:0:interface=127.0.0.1", "--handler", "inspect")
    authority = Authority()
    (tmp_path / "server.pem").write_bytes(authority.pem)
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    (tmp_path / "client.pem").write_bytes(authority.issue("Ada"))
    options = "send-proxy-v2 proxy-v2-options ssl,cert-cn,ssl-cipher,crc32c,authority"
    tls = f"ssl crt {tmp_path}/server.pem ca-file {tmp_path}/ca.pem verify optional"
    config = backend(running, options).replace("{bind}", f"{{bind}} {tls}")
    with haproxy(tmp_path, config) as proxy, proxy.connect() as plain:
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        context.check_hostname = False
        context.load_cert_chain(tmp_path / "client.pem")
        with context.wrap_socket(plain, server_hostname="shop.localhost") as connection:
            header = told(connection)["proxy"]
            assert set(header["tls"]) == PROXIED_TLS_KEYS
            assert header["tls"]["commonName"] == "Ada"
            assert header["tls"]["verified"] is True
            assert header["tls"]["version"] == connection.version()
            assert header["authority"] == "shop.localhost"
            names = {tlv["name"]: tlv for tlv in header["tlvs"]}
            assert {"SSL", "CRC32C", "AUTHORITY"} <= set(names)
            assert bytes.fromhex(names["AUTHORITY"]["value"]) == b"shop.localhost"


def test_behind_haproxy_that_passes_tls_on_the_session_is_told(
    daemon: Start, tmp_path: Path
) -> None:
    authority = Authority()
    (tmp_path / "server.pem").write_bytes(authority.pem)
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    (tmp_path / "client.pem").write_bytes(authority.issue("Ada"))
    running = daemon(
        *("--handler", "inspect", "--listen"),
        "proxy:tls:0:interface=127.0.0.1:certificate=server.pem:client-ca=ca.pem:alpn=echo",
    )
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    context.check_hostname = False
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # its ticket comes with the handshake
    context.load_cert_chain(tmp_path / "client.pem")
    context.set_alpn_protocols(["echo"])
    session = None
    with haproxy(tmp_path, backend(running, "send-proxy-v2")) as proxy:
        for resumed in (False, True):
            with (
                proxy.connect() as plain,
                context.wrap_socket(
                    plain, server_hostname="shop.localhost", session=session
                ) as connection,
            ):
                facts = told(connection)
                session = connection.session
                assert facts["peer"] == at(connection.getsockname())
                tls = facts["tls"]
                assert set(tls) == TLS_KEYS
                assert tls["version"] == "TLSv1.2"
                assert tls["cipherSuite"] == (connection.cipher() or ("",))[0]
                assert tls["serverName"] == "shop.localhost"
                assert tls["negotiatedProtocol"] == "echo"
                assert tls["subject"] == [["commonName", "Ada"]]
                assert tls["resumed"] is resumed
                shown = tls["peerCertificates"][0]
                assert shown.strip() in (tmp_path / "client.pem").read_text()
