from __future__ import annotations

import datetime
import os
import ssl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod import EchoFactory
from echod.errors import UserError
from echod.listening.endpoints import Words, parse_listen
from echod.listening.proxy import ProxyFactory
from echod.listening.socket_activation import InheritedSockets
from echod.listening.tcp import BACKLOG, IPv6Endpoint, TCPEndpoint
from echod.listening.unix import UNIXEndpoint
from echod.tls import Files, Pair, ServerContext, TLSFactory
from echod.tls.files import Loaded
from tests.support.certificates import DAY, Authority
from tests.support.log import Log
from tests.support.reactor import reactor


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("listen") / "a:b.pem"
    path.write_bytes(Authority().pem)
    return str(path)


def written(path: str) -> str:
    return path.replace(":", "\\:")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("tcp:0", TCPEndpoint),
        ("0", TCPEndpoint),
        ("tcp6:0:interface=\\:\\:1", IPv6Endpoint),
        ("tcp6:0:interface=fe80\\:\\:1%eth0", IPv6Endpoint),
        ("tcp:interface=localhost:port=0", TCPEndpoint),
        ("unix:/tmp/x", UNIXEndpoint),
    ],
)
def test_any_endpoint_string_will_do_with_tls_or_without(pem: str, text: str, kind: Any) -> None:
    plain = parse_listen(reactor, text)
    assert isinstance(plain.endpoint, kind)
    assert plain.tls is None
    factory = object()
    assert plain.wrap(factory, reactor) is factory
    secure = parse_listen(reactor, f"tls:{text}:certificate={written(pem)}")
    assert isinstance(secure.endpoint, kind)
    assert vars(secure.endpoint) == vars(plain.endpoint)
    assert isinstance(secure.wrap(factory, reactor), TLSFactory)
    begins_clear = parse_listen(reactor, f"starttls:{text}:certificate={written(pem)}")
    assert vars(begins_clear.endpoint) == vars(plain.endpoint)
    assert begins_clear.tls is not None
    assert begins_clear.starts_clear
    assert begins_clear.wrap(factory, reactor) is factory


def test_options_of_tls_are_told_from_the_endpoints(pem: str) -> None:
    path = written(pem)
    listening = parse_listen(
        reactor,
        f"tls:8443:key={path}:interface=127.0.0.1:certificate={path}:client-ca={path}"
        ":client-certificates=optional:backlog=7:alpn=h2,http/1.1",
    )
    endpoint: Any = listening.endpoint
    assert (endpoint.port, endpoint.interface, endpoint.backlog) == (8443, "127.0.0.1", 7)
    assert isinstance(listening.tls, ServerContext)
    assert listening.tls.files == Files(
        pem,
        key=pem,
        client_ca=pem,
        client_certificates_optional=True,
        alpn=("h2", "http/1.1"),
    )


@pytest.mark.parametrize(
    ("options", "pairs"),
    [
        ("certificate=A", [("A", None)]),
        ("certificate=A:certificate=B", [("A", None), ("B", None)]),
        ("certificate=A:key=K:certificate=B", [("A", "K"), ("B", None)]),
        ("certificate=A:certificate=B:key=K", [("A", None), ("B", "K")]),
        ("key=K:certificate=A", [("A", "K")]),
    ],
)
def test_each_key_belongs_to_the_certificate_before_it(
    monkeypatch: pytest.MonkeyPatch, options: str, pairs: list[tuple[str, str | None]]
) -> None:
    taken = []

    def load(files: Files) -> Loaded:
        taken.append(files)
        return Loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), {}, ())

    monkeypatch.setattr(Files, "load", load)
    parse_listen(reactor, f"tls:0:{options}")
    here = Path.cwd()
    first, *others = (Pair(str(here / file), key and str(here / key)) for file, key in pairs)
    assert taken == [Files(first.certificate, first.key, others=tuple(others))]


def test_the_names_of_twisteds_own_ssl_endpoint_will_do(pem: str) -> None:
    path = written(pem)
    listening = parse_listen(
        reactor, f"ssl:0:privateKey={path}:certKey={path}:extraCertChain={path}"
    )
    assert isinstance(listening.tls, ServerContext)
    assert listening.tls.files == Files(pem, key=pem, chain=pem)
    alone = parse_listen(reactor, f"ssl:0:privateKey={path}")
    assert isinstance(alone.tls, ServerContext)
    assert alone.tls.files == Files(pem, key=pem)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nosuch:1", "there is no kind of listener 'nosuch'; one is written as in tcp:8888:int"),
        ("[::1]:8888", r"there is no kind of listener '['; write tcp6:8888:interface=\:\:1"),
        ("[::]:8888", "there is no kind of listener '['; write tcp6:8888"),
        ("[::1]", "there is no kind of listener '['; one is written as in"),
        ("127.0.0.1:8888", "listener '127.0.0.1'; write tcp:8888:interface=127.0.0.1"),
        ("localhost:8888", "listener 'localhost'; write tcp:8888:interface=localhost"),
        ("www.example.org:8888", "'www.example.org'; write tcp:8888:interface=www.example.org"),
        ("tls:127.0.0.1:8888:certificate=PEM", "'127.0.0.1'; write tcp:8888:interface=127.0.0.1"),
        ("tcp:127.0.0.1:8888", "'127.0.0.1' is not a number; write tcp:8888:interface=127.0.0.1"),
        ("tcp:localhost:8888", "'localhost' is not a number; write tcp:8888:interface=localhost"),
        ("tcp://localhost:8888", "'//localhost' is not a number; write tcp:8888:interface=local"),
        ("tcp://:8888", "'//' is not a number; write tcp:8888"),
        ("tls://0.0.0.0:8888:certificate=PEM", "listener '//0.0.0.0'; write tcp:8888"),
        ("tcp:/run/echod.sock", "'/run/echod.sock' is not a number; write unix:/run/echod.sock"),
        ("tcp:0.0.0.0:8888", "'0.0.0.0' is not a number; write tcp:8888"),
        ("tls:tcp:127.0.0.1:8888:certificate=PEM", "write tcp:8888:interface=127.0.0.1"),
        ("TCP:8888", "there is no kind of listener 'TCP'; did you mean tcp?"),
        ("/run/echod.sock", "there is no kind of listener '/run/echod.sock'; write unix:/run/"),
        ("./echod.sock", "listener './echod.sock'; write unix:./echod.sock"),
        ("tls:/run/echod.sock:certificate=PEM", "write unix:/run/echod.sock"),
        ("udp:8888", "there is no kind of listener 'udp'; echod serves streams: TCP, TLS and"),
        ("wss:8888", "there is no kind of listener 'wss'; echod serves streams: TCP, TLS and"),
        ("127.0.0.1:http", "listener '127.0.0.1'; one is written as in"),
        ("0.0.0.0:8888", "listener '0.0.0.0'; write tcp:8888"),
        (":8888", "listener ''; write tcp:8888"),
        ("*:8888", "listener '*'; write tcp:8888"),
        ("tcp", "tcp: is not complete; it is written as in tcp:8888:interface=127.0.0.1"),
        ("tcp:1:2:3:4:5", "tcp: has too many words"),
        ("tcp6:0:interface=::1", r"tcp6: has too many words; a colon within one is written \:"),
        ("\\", r"\ at its end stands before no character; itself is written \\"),
        ("nosuch:a\\", r"\ at its end stands before no character"),
        ("tcp:99999", "99999 is not a port number from 0 to 65535"),
        ("99999", "99999 is not a port"),
        ("tcp6:-1", "-1 is not a port"),
        ("tcp:interface=127.0.0.1:port=65536", "65536 is not a port"),
        ("tcp:\u0968", "'\u0968' is not a number"),
        ("\u0968", "'\u0968' is not a number"),
        ("tcp:1_0", "'1_0' is not a number"),
        ("tcp:+5", "'+5' is not a number"),
        ("tcp: 5", "' 5' is not a number"),
        ("tcp:00080", "00080 is not a port"),
        ("00080", "00080 is not a port"),
        ("tcp:" + "9" * 5000, "9" * 20 + " is not a port"),
        ("tcp:0:backlog=0", "backlog='0' is not a number of connections"),
        ("tcp:0:backlog=99999999999", "backlog='99999999999' is not a number"),
        ("tcp6:0:backlog=1_0", "backlog='1_0' is not a number"),
        ("tcp:0:interface=a\0b", r"interface='a\x00b' is neither an address nor a name"),
        ("tcp:0:interface=\udc80", "is neither an address nor a name"),
        ("tcp:0:interface=", "interface= names no address: leave it out for every address"),
        ("tcp:0:interface=999.1.1.1", "interface='999.1.1.1' is neither an address nor a"),
        ("tcp:0:interface=" + "a" * 300, "is neither an address nor a name"),
        ("tls:0:certificate=PEM:alpn=" + "a" * 300, "is not a list of protocols"),
        ("tls:0:certificate=PEM:alpn=" + ",".join(["a" * 255] * 256), "is not a list of"),
        ("unix:a\0b", "a path cannot contain NUL"),
        ("unix:" + "a" * 108, "this path has 108 bytes, and a socket's has 107 at most"),
        ("tls:99999:certificate=PEM", "99999 is not a port"),
        ("stdio:", "standard input is a single stream"),
        ("tcp:http", "'http' is not a number"),
        ("tcp:8888:colour=red", "tcp: takes no option 'colour'"),
        ("proxy:proxy:tcp:0", "proxy: may occur only once, at the beginning"),
        ("tls:proxy:tcp:0:certificate=PEM", "proxy: may occur only once, at the beginning"),
        ("haproxy:tcp:0", "haproxy: believes every client's PROXY header: use proxy:"),
        ("tls:tls:0:certificate=PEM", "tls: may occur only once, before the endpoint"),
        ("tls:0", "tls: needs certificate=FILE"),
        ("tls:0:certificate=:key=", "tls: needs certificate=FILE"),
        ("tls:0:certificate=PEM:key=PEM:key=k", "key=k belongs to no certificate: write each ke"),
        ("tls:0:key=k:certificate=PEM:certificate=PEM", "key=k belongs to no certificate"),
        ("tls:0:certificate=PEM:certificate=PEM", "are both for 127.0.0.1: leave out one of"),
        ("starttls:0", "starttls: needs certificate=FILE"),
        ("starttls:0:cert=PEM", "starttls: takes no option 'cert'; did you mean certificate or"),
        ("starttls:tls:0:certificate=PEM", "tls: may occur only once, before the endpoint"),
        ("tls:starttls:0:certificate=PEM", "starttls: may occur only once, before the endpoint"),
        ("tls:badtls:0:certificate=PEM", "badtls: may occur only once, before the endpoint"),
        ("startls:0:certificate=PEM", "no kind of listener 'startls'; did you mean starttls?"),
        ("tls:", "tls: needs certificate=FILE"),
        ("tls:0:certificate=/none.pem", "cannot read /none.pem: No such file"),
        ("tls:nosuch:1:certificate=PEM", "there is no kind of listener 'nosuch'"),
        ("tls:0:certificate=PEM:client-certificates=some", "client-certificates=some is neither"),
        (
            "tls:0:certificate=PEM:client-certificates=optional",
            "needs client-ca",
        ),
        ("tls:0:certificate=PEM:alpn=a,,b", "alpn='a,,b' is not a list of protocols"),
        (
            "tls:0:certificate=PEM:nosuch=1",
            "tls: takes no option 'nosuch'; there are: certificate, key, client-ca, ",
        ),
        ("tls:0:cert=PEM", "tls: takes no option 'cert'; did you mean certificate or client-"),
        ("tls:unix:/run/s:certificate=PEM:moed=6", "'moed'; did you mean mode?"),
        ("proxy:tls:0:clientca=PEM", "'clientca'; did you mean client-ca?"),
        ("ssl:0:privatekey=PEM", "ssl: takes no option 'privatekey'; did you mean privateKey?"),
        ("tcp6:0:interfaces=a", "tcp6: takes no option 'interfaces'; did you mean interface?"),
        ("tcpp:0", "there is no kind of listener 'tcpp'; did you mean tcp?"),
        ("tls:0:certificate=PEM\\", ""),
        ("ssl:0", f"cannot read {Path.cwd()}/server.pem: No such file"),
        ("ssl:0:privateKey=PEM:sslmethod=TLSv1_METHOD", "sslmethod cannot be chosen"),
    ],
)
def test_what_makes_no_sense_says_why(pem: str, text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        parse_listen(reactor, text.replace("PEM", written(pem)))
    assert why in str(raised.value)


@pytest.mark.parametrize(
    ("text", "kind", "proxied"),
    [
        ("tcp:0", TCPEndpoint, False),
        ("tcp6:0", IPv6Endpoint, False),
        ("tcp:0:interface=127.0.0.1", TCPEndpoint, False),
        ("proxy:tcp:0", TCPEndpoint, True),
        ("unix:/run/s", UNIXEndpoint, False),
        ("unix:address=/run/s", UNIXEndpoint, False),
        ("proxy:unix:/run/s", UNIXEndpoint, True),
    ],
)
def test_a_listener_is_an_endpoint_and_what_comes_before(
    text: str, kind: type, proxied: bool
) -> None:
    listening = parse_listen(reactor, text)
    assert isinstance(listening.endpoint, kind)
    assert listening.proxied is proxied
    factory = EchoFactory(reactor)
    assert isinstance(listening.wrap(factory, ()), ProxyFactory) is proxied


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("unix:/run/s", ("/run/s", 0o660, BACKLOG)),
        ("unix:/run/s:mode=600", ("/run/s", 0o600, BACKLOG)),
        ("unix:/run/s:mode=0777:backlog=7:lockfile=1", ("/run/s", 0o777, 7)),
        (r"unix:/run/a\:b\\", ("/run/a:b\\", 0o660, BACKLOG)),
        (r"unix:/run/a\=b", ("/run/a=b", 0o660, BACKLOG)),
    ],
)
def test_a_unix_socket_has_options(
    monkeypatch: pytest.MonkeyPatch, text: str, options: Any
) -> None:
    made: list[Any] = []
    monkeypatch.setattr("echod.listening.unix.UNIXEndpoint", lambda _, *given: made.append(given))
    parse_listen(reactor, text)
    assert made == [options]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("unix:", "unix: needs a path, as in unix:/run/echod/echod.sock"),
        ("unix:mode=660", "unix: needs a path"),
        ("unix:/run/s:mode=rw", "mode=rw is not an octal mode such as 660"),
        ("unix:/run/s:mode=1777", "mode=1777 is not an octal mode"),
        ("unix:/run/s:backlog=many", "backlog='many' is not a number of connections"),
        ("unix:/run/s:backlog=0", "backlog='0' is not a number"),
        ("unix:/run/s:modus=660", "unix: takes no option 'modus'; did you mean mode?"),
        ("unix:/run/s:/run/t", "/run/t is one word too many"),
        ("systemd:", "systemd: needs name=NAME (or index=N, and not both)"),
        ("systemd:name=a:index=0", "systemd: needs name=NAME (or index=N, and not both)"),
        ("systemd:index=x", "index=x is not a number"),
        ("systemd:name=a:colour=red", "systemd: takes no option 'colour'; there are: name"),
        ("systemd:name=a", "no socket was passed"),
        ("proxy:systemd:domain=INET:name=a", "no socket was passed"),
        ("proxy:", "there is no kind of listener ''"),
    ],
)
def test_what_makes_no_sense_is_said_to_make_none(text: str, why: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_listen(reactor, text)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_socket_that_was_passed_is_found() -> None:
    environment = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "a"}
    with pytest.raises(UserError, match="there is: a; use one of these"):
        parse_listen(reactor, "systemd:name=b", InheritedSockets(environment))


@given(st.lists(st.text()))
def test_words_are_split_where_no_backslash_is_before_the_colon(values: list[str]) -> None:
    written = [value.replace("\\", r"\\").replace(":", r"\:") for value in values]
    assert Words.split(":".join(written)).words == (written or [""])


@pytest.mark.parametrize(
    ("days", "said"),
    [(90, "is valid until "), (10, "expires in 9 days, on "), (-1, "has expired on ")],
    ids=["valid", "nearly", "expired"],
)
def test_until_when_a_certificate_is_valid_is_told(
    tmp_path: Path, log: Log, days: int, said: str
) -> None:
    path = tmp_path / "server.pem"
    path.write_bytes(Authority().issue("server", days * DAY))
    parse_listen(reactor, f"tls:0:certificate={path}")
    date = datetime.datetime.now(datetime.UTC) + days * DAY
    assert f"{path} {said}{date:%Y-%m-%d}" in log.text
