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

Of echod it imports only `contexts`, `errors`, `interfaces`, `stacked`, `timers` and `turns`, which
import nothing else of it: it could be published on its own.

Each name is imported when it is first used (PEP 562): a daemon without TLS starts without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from echod.tls.base import TLSError as TLSError
    from echod.tls.connection import Meddler as Meddler
    from echod.tls.connection import TLSConnection as TLSConnection
    from echod.tls.connection import TLSFactory as TLSFactory
    from echod.tls.context import ClientContext as ClientContext
    from echod.tls.context import Context as Context
    from echod.tls.context import ServedCertificate as ServedCertificate
    from echod.tls.context import ServerSide as ServerSide
    from echod.tls.copies import Copies as Copies
    from echod.tls.facts import Certificate as Certificate
    from echod.tls.facts import TLSFacts as TLSFacts
    from echod.tls.files import Files as Files
    from echod.tls.files import Pair as Pair
    from echod.tls.files import ServerContext as ServerContext
    from echod.tls.pem import FilesError as FilesError

_MODULES = {
    "Certificate": "facts",
    "ClientContext": "context",
    "Context": "context",
    "Copies": "copies",
    "Files": "files",
    "FilesError": "pem",
    "Meddler": "connection",
    "Pair": "files",
    "ServedCertificate": "context",
    "ServerContext": "files",
    "ServerSide": "context",
    "TLSConnection": "connection",
    "TLSError": "base",
    "TLSFactory": "connection",
    "TLSFacts": "facts",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value
