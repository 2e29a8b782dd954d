r"""The grammar of `--listen`, and what it makes: an endpoint, and what wraps the factory there.

    tcp:8888, unix:/run/echod.sock, systemd:name=echo      any Twisted server endpoint string
    tls:8443:certificate=F:key=F                           TLS, on a TCP port
    tls:unix:/run/echod.sock:certificate=F                 TLS, on any endpoint
    ssl:8443:privateKey=F:certKey=F                        TLS, by the names of Twisted's `ssl:`

Behind `tls:` these options are TLS's, and all others the endpoint's: `certificate` (with the
chain behind it), `key`, `client-ca`, `client-certificates` (`required`, `optional`), `alpn`.  As
in every endpoint string, a colon within a value is written `\:`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IStreamServerEndpoint

from echod.tls import Files, FilesError, ServerContext, TLSFactory


class ListenError(ValueError):
    """A listener cannot be had; the text says why, in one line."""


@dataclass(frozen=True)
class Listening:
    """What a `--listen` asks for.

    Attributes:
        endpoint: where to listen.
        tls: the certificate and the rules; None in clear.
    """

    endpoint: IStreamServerEndpoint
    tls: ServerContext | None = None

    def wrap(self, factory: Any, reactor: Any) -> Any:
        """Return the factory to listen with, for connections that `factory` shall have."""
        return factory if self.tls is None else TLSFactory(factory, self.tls, reactor)


def parse_listen(reactor: Any, text: str) -> Listening:
    """Return what `text` asks for.

    Args:
        reactor: what the endpoint is for.
        text: see the module.

    Raises:
        ListenError: it makes no sense, or what it names cannot be used.
    """
    kind, _, rest = text.partition(":")
    if kind not in ("tls", "ssl"):
        return Listening(_endpoint(reactor, text))
    words = Words.split(rest)
    files = _tls_files(words) if kind == "tls" else _ssl_files(words)
    try:
        context = ServerContext(files)
    except FilesError as error:
        raise ListenError(str(error)) from error
    return Listening(_endpoint(reactor, words.endpoint), context)


def _endpoint(reactor: Any, text: str) -> IStreamServerEndpoint:
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, text)
    except Exception as error:  # each endpoint parser has its own ways to refuse
        raise ListenError(str(error) or type(error).__name__) from error
    return endpoint


@dataclass
class Words:
    """The words of an endpoint string, as they were written, and the options among them."""

    words: list[str] = field(default_factory=list)

    @classmethod
    def split(cls, text: str) -> Words:
        """Return what stands between the colons of `text`."""
        words = [""]
        for piece in re.findall(r"\\.|[^\\:]+|.", text):
            if piece == ":":
                words.append("")
            else:
                words[-1] += piece
        return cls(words)

    def pop(self, name: str) -> str | None:
        """Remove an option, and return its value; None where it is not given."""
        for word in self.words:
            if word.startswith(f"{name}="):
                self.words.remove(word)
                return re.sub(r"\\(.)", r"\1", word.removeprefix(f"{name}="))
        return None

    @property
    def endpoint(self) -> str:
        """The endpoint string that is left; a port alone is one of TCP."""
        first = self.words[0] if self.words else ""
        return ":".join(["tcp", *self.words] if first.isdigit() else self.words)


def _tls_files(words: Words) -> Files:
    certificate = words.pop("certificate")
    if certificate is None:
        raise ListenError("tls: needs certificate=FILE, a certificate in PEM")
    client_ca, asked = words.pop("client-ca"), words.pop("client-certificates")
    if asked not in (None, "required", "optional"):
        raise ListenError(f"client-certificates={asked} is neither required nor optional")
    if asked is not None and client_ca is None:
        raise ListenError("client-certificates needs client-ca=FILE, to verify them by")
    return Files(
        certificate=certificate,
        key=words.pop("key"),
        client_ca=client_ca,
        client_certificates_optional=asked == "optional",
        alpn=_protocols(words.pop("alpn")),
    )


def _protocols(text: str | None) -> tuple[str, ...]:
    names = tuple(text.split(",")) if text is not None else ()
    if not all(name.isascii() and 0 < len(name) < 256 for name in names):
        raise ListenError(f"alpn={text} is not a list of protocols, as in h2,http/1.1")
    return names


def _ssl_files(words: Words) -> Files:
    if words.pop("sslmethod") is not None:
        raise ListenError("sslmethod cannot be chosen: TLS 1.2 and 1.3 are spoken")
    key = words.pop("privateKey") or "server.pem"
    return Files(
        certificate=words.pop("certKey") or key,
        key=key,
        chain=words.pop("extraCertChain"),
        dh_parameters=words.pop("dhParameters"),
    )
