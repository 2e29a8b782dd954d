from __future__ import annotations

from echod.tls import Certificate


def test_a_certificate_has_a_common_name() -> None:
    subject = (("organizationName", "x"), ("commonName", "client"))
    assert Certificate(subject, b"").common_name == "client"
    assert Certificate((), b"").common_name == ""
