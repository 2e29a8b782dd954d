"""`inspect`: the handler that tells each client what the server sees of it, as JSON.

The first object is sent on connect, as the greeting (`--no-banner` leaves it out, for a proxy that
waits for the client to speak); another one answers each message. Each is one line.

Its keys are part of the public interface: docs/test-target.md lists them, and so does a test. They
are never renamed or removed; new ones may be added. `namespace`, `pod`, `service` and `ingress`,
and the keys of `tls`, are those of the Gateway API's echo-basic, so that a suite can read both.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import ssl
import time
from typing import TYPE_CHECKING

from echod.addresses import host_and_port
from echod.handlers.contract import Handler
from echod.proxy_header import FieldType, ProxyHeader

if TYPE_CHECKING:
    from echod.handlers.client import Client
    from echod.proxy_header import Address
    from echod.tls import TLSFacts

Facts = dict[str, object]

# The environment variables that a pod of Kubernetes gets by its manifest, by their keys.
_PLACE = {
    "namespace": "NAMESPACE",
    "pod": "POD_NAME",
    "service": "SERVICE_NAME",
    "ingress": "INGRESS_NAME",
}


class Inspect(Handler):
    """Tells each client, as JSON, what the server sees of it: on connect, and for each message."""

    framing = "line"

    def opened(self, client: Client) -> bytes:
        self._client = client
        self._began = time.monotonic()
        self._connected = datetime.datetime.now(datetime.UTC)
        self._messages = self._received = 0
        return self._report(b"")

    def received(self, message: bytes) -> bytes:
        self._messages += 1
        self._received += len(message)
        return self._report(message)

    def _report(self, message: bytes) -> bytes:
        client = self._client
        seconds = time.monotonic() - self._began
        facts = {
            "peer": client.peer,
            "local": client.local,
            "listener": client.listener,
            "proxy": None if client.proxy is None else _proxy(client.proxy),
            "tls": None if client.tls is None else _tls(client.tls),
            "message": message.decode("utf-8", "backslashreplace"),
            "messages": self._messages,
            "bytes": self._received,
            "connected": self._connected.isoformat(timespec="microseconds"),
            "seconds": round(seconds, 6),
            "hostname": socket.gethostname(),
            **{key: os.environ.get(name, "") for key, name in _PLACE.items()},
        }
        return json.dumps(facts).encode() + b"\n"


def _tls(facts: TLSFacts) -> Facts:
    certificate = facts.certificate
    chain = [] if certificate is None else [ssl.DER_cert_to_PEM_cert(certificate.der)]
    return {
        "version": facts.version,
        "cipherSuite": facts.cipher,
        "serverName": facts.server_name or "",
        "negotiatedProtocol": facts.alpn or "",
        "peerCertificates": chain,
        "subject": [] if certificate is None else [list(pair) for pair in certificate.subject],
        "resumed": facts.resumed,
    }


def _proxy(header: ProxyHeader) -> Facts:
    tls = header.tls
    return {
        "version": header.version,
        "command": header.command.value,
        "source": _place(header.source),
        "destination": _place(header.destination),
        "tlvs": [
            {"type": kind, "name": _name(kind), "value": value.hex()}
            for kind, value in header.fields
        ],
        "authority": header.authority,
        "tls": None
        if tls is None
        else {
            "encrypted": tls.encrypted,
            "verified": tls.verified,
            "version": tls.version,
            "commonName": tls.common_name,
            "cipherSuite": tls.cipher,
        },
    }


def _name(kind: int) -> str:
    """Return the registered name of a field's type; "" if it has none."""
    return next((one.name for one in FieldType if one == kind), "")


def _place(address: Address | None) -> str | None:
    if address is None:
        return None
    if isinstance(address, bytes):
        return address.decode("utf-8", "backslashreplace")
    return host_and_port(*address)
