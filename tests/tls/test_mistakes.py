from __future__ import annotations

import contextlib
import ssl
import subprocess
from pathlib import Path

import pytest

from echod.tls.mistakes import KEPT, Mistake, Mistakes, MistakesContext
from echod.tls.pem import certificates_in
from tests.support.certificates import Authority
from tests.support.needs import tool
from tests.support.tls_peer import client_context

MISTAKES = Mistakes()


def verifying(authority: bytes = MISTAKES.certificate) -> ssl.SSLContext:
    """Return a client's context that verifies by this authority, as strictly as Python 3.13."""
    context = ssl.create_default_context(cadata=authority.decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def shake_hands(
    server: ssl.SSLContext, client: ssl.SSLContext, host: str
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Let both sides shake hands in memory."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        server.wrap_bio(up, down, server_side=True),
        client.wrap_bio(down, up, server_hostname=host),
    ]
    for side in (sides[1], *sides, *sides):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return sides[0], sides[1]


# OpenSSL's numbers of what is wrong (openssl-verification-options(1)).
CODES = {
    Mistake.EXPIRED: 10,
    Mistake.NOT_YET: 9,
    Mistake.SELF_SIGNED: 18,
    Mistake.WRONG_HOST: 62,
    Mistake.UNTRUSTED_ROOT: 19,
    Mistake.INCOMPLETE_CHAIN: 20,
    Mistake.WEAK_KEY: 66,
}


@pytest.mark.parametrize("mistake", CODES)
def test_a_client_finds_the_one_mistake_in_each_certificate(mistake: Mistake) -> None:
    host = f"{mistake}.localhost"
    with pytest.raises(ssl.SSLCertVerificationError) as raised:
        shake_hands(MISTAKES.context_for(mistake, host), verifying(), host)
    assert raised.value.verify_code == CODES[mistake]


@pytest.mark.parametrize("host", ["good.localhost", "localhost", "127.0.0.1", "::1"])
def test_the_good_certificate_is_for_this_machine(host: str) -> None:
    context = MISTAKES.context_for(Mistake.GOOD, "good.localhost")
    _, client = shake_hands(context, verifying(), host)
    assert client.version() == "TLSv1.3"


def test_a_name_that_is_none_of_the_alternative_names_is_found_by_clients_that_look_there() -> (
    None
):
    context, client = MISTAKES.context_for(Mistake.NO_SAN, "no-san.localhost"), verifying()
    client.hostname_checks_common_name = False
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(context, client, "no-san.localhost")


def test_a_weak_key_will_do_for_a_client_that_allows_it() -> None:
    context, client = MISTAKES.context_for(Mistake.WEAK_KEY, "weak-key.localhost"), verifying()
    client.set_ciphers("DEFAULT:@SECLEVEL=0")
    shake_hands(context, client, "weak-key.localhost")


def test_a_client_needs_a_certificate_where_it_is_wanted(tmp_path: Path) -> None:
    host = "wants-client-certificate.localhost"
    context = MISTAKES.context_for(Mistake.WANTS_CLIENT_CERTIFICATE, host)
    with pytest.raises(ssl.SSLError, match="did not return a certificate"):
        shake_hands(context, verifying(), host)
    client = verifying()
    (tmp_path / "client.pem").write_bytes(MISTAKES.issue_for_client())
    client.load_cert_chain(tmp_path / "client.pem")
    server, _ = shake_hands(context, client, host)
    assert server.getpeercert()
    (tmp_path / "client.pem").write_bytes(Mistakes().issue_for_client())
    client.load_cert_chain(tmp_path / "client.pem")
    with pytest.raises(ssl.SSLError, match="certificate verify failed"):
        shake_hands(context, client, host)


@pytest.mark.parametrize(
    "host", ["example.com", "localhost.example.com", "mylocalhost", "10.0.0.1"]
)
def test_the_authority_is_good_for_no_host_elsewhere(host: str) -> None:
    context = MISTAKES.context_for(Mistake.GOOD, host)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        shake_hands(context, verifying(), host)


@pytest.mark.parametrize(
    ("host", "mistake"),
    [
        *((f"{one}.localhost", one) for one in Mistake),
        ("Expired.LocalHost.", Mistake.EXPIRED),
        ("localhost", Mistake.GOOD),
        ("other.localhost", Mistake.GOOD),
        ("expired.example", Mistake.GOOD),
        ("expired", Mistake.GOOD),
        (None, Mistake.GOOD),
    ],
)
def test_each_host_is_served_with_its_mistake(host: str | None, mistake: Mistake) -> None:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    served = MistakesContext(MISTAKES, ("h2",)).wrap(up, down, host)
    assert served.server_side
    assert served.context is MISTAKES.context_for(mistake, f"{mistake}.localhost", ("h2",))


def test_contexts_are_made_once_and_only_so_many_are_kept() -> None:
    made = Mistakes()
    first = made.context_for(Mistake.EXPIRED, "shop.localhost")
    assert made.context_for(Mistake.EXPIRED, "shop.localhost") is first
    for number in range(KEPT):
        made.context_for(Mistake.EXPIRED, f"{number}.localhost")
    assert made.context_for(Mistake.EXPIRED, "shop.localhost") is not first


def test_a_name_of_any_length_can_be_asked_for() -> None:
    host = ".".join(["a" * 60] * 4)
    context = MISTAKES.context_for(Mistake.EXPIRED, f"{host}.localhost")
    with pytest.raises(ssl.SSLCertVerificationError, match="has expired"):
        shake_hands(context, verifying(), f"{host}.localhost")


def test_openssl_finds_the_authority_good_and_bounded(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(MISTAKES.certificate)
    said = subprocess.run(
        [tool("openssl"), "x509", "-in", tmp_path / "ca.pem", "-noout", "-text"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "X509v3 Name Constraints: critical" in said
    assert "DNS:localhost" in said
    assert len(certificates_in(MISTAKES.certificate.decode())) == 1


def test_another_authority_is_not_taken_for_it() -> None:
    host = "good.localhost"
    context = MISTAKES.context_for(Mistake.GOOD, host)
    for authority in (Authority("another").certificate, Mistakes().certificate):
        with pytest.raises(ssl.SSLCertVerificationError) as raised:
            shake_hands(context, verifying(authority), host)
        assert raised.value.verify_code == 20
    shake_hands(context, client_context(), host)
