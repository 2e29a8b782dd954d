from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, UNIXServerEndpoint

from echod.listen import ListenError, parse_listen
from echod.tls import Files, TLSFactory
from tests.certificates import Authority


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
        ("tcp:0", TCP4ServerEndpoint),
        ("tcp6:0:interface=\\:\\:1", TCP6ServerEndpoint),
        ("unix:/tmp/x", UNIXServerEndpoint),
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


def test_options_of_tls_are_told_from_the_endpoints(pem: str) -> None:
    path = written(pem)
    listening = parse_listen(
        reactor,
        f"tls:8443:key={path}:interface=127.0.0.1:certificate={path}:client-ca={path}"
        ":client-certificates=optional:backlog=7:alpn=h2,http/1.1",
    )
    endpoint: Any = listening.endpoint
    assert (endpoint._port, endpoint._interface, endpoint._backlog) == (8443, "127.0.0.1", 7)
    assert listening.tls is not None
    assert listening.tls.files == Files(
        pem,
        key=pem,
        client_ca=pem,
        client_certificates_optional=True,
        alpn=("h2", "http/1.1"),
    )


def test_the_names_of_twisteds_own_ssl_endpoint_will_do(pem: str) -> None:
    path = written(pem)
    listening = parse_listen(
        reactor, f"ssl:0:privateKey={path}:certKey={path}:extraCertChain={path}"
    )
    assert listening.tls is not None
    assert listening.tls.files == Files(pem, key=pem, chain=pem)
    alone = parse_listen(reactor, f"ssl:0:privateKey={path}")
    assert alone.tls is not None
    assert alone.tls.files == Files(pem, key=pem)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nosuch:1", "Unknown endpoint type: 'nosuch'"),
        ("tcp", "_parseTCP"),
        ("tls:0", "tls: needs certificate=FILE"),
        ("tls:", "tls: needs certificate=FILE"),
        ("tls:0:certificate=/none.pem", "cannot read /none.pem: No such file"),
        ("tls:nosuch:1:certificate=PEM", "Unknown endpoint type: 'nosuch'"),
        ("tls:0:certificate=PEM:client-certificates=some", "client-certificates=some is neither"),
        (
            "tls:0:certificate=PEM:client-certificates=optional",
            "needs client-ca",
        ),
        ("tls:0:certificate=PEM:alpn=a,,b", "alpn=a,,b is not a list of protocols"),
        ("tls:0:certificate=PEM:nosuch=1", "unexpected keyword argument 'nosuch'"),
        ("tls:0:certificate=PEM\\", ""),
        ("ssl:0", "cannot read server.pem: No such file"),
        ("ssl:0:privateKey=PEM:sslmethod=TLSv1_METHOD", "sslmethod cannot be chosen"),
    ],
)
def test_what_makes_no_sense_says_why(pem: str, text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ListenError) as raised:
        parse_listen(reactor, text.replace("PEM", written(pem)))
    assert why in str(raised.value)
