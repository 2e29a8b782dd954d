"""TLS for Twisted protocols, on Python's own `ssl` and not on pyOpenSSL.

`TLSFactory` wraps any Twisted factory, on any Twisted stream transport::

    context = ServerContext(Files("server.pem"))
    endpoint.listen(TLSFactory(factory, context, reactor))

Unlike `twisted.protocols.tls`, it has:

* Half-close. The peer's close_notify ends only the input (RFC 8446, 6.1): every reply is still
  sent, then our close_notify, then FIN. This holds for TLS 1.2, too, where RFC 5246, 7.2.1,
  demands to discard pending data: getting the rest of its replies harms no peer.
* A close that never waits for the peer's close_notify.
* Certificates that are chosen by the host that a client asks for.
* Certificates that can be read again while connections are open (`ServerContext.reread`).
* A low cost: see `echod.tls.connection`.

Of echod it imports only `contexts`, `errors`, `interfaces` and `turns`, which import nothing else
of it: it could be published on its own.
"""

from echod.tls.connection import Meddler, TLSConnection, TLSError, TLSFactory
from echod.tls.context import (
    ClientContext,
    Context,
    Files,
    FilesError,
    Pair,
    ServedCertificate,
    ServerContext,
    ServerSide,
)
from echod.tls.copies import Copies
from echod.tls.facts import Certificate, TLSFacts

__all__ = [
    "Certificate",
    "ClientContext",
    "Context",
    "Copies",
    "Files",
    "FilesError",
    "Meddler",
    "Pair",
    "ServedCertificate",
    "ServerContext",
    "ServerSide",
    "TLSConnection",
    "TLSError",
    "TLSFactory",
    "TLSFacts",
]
