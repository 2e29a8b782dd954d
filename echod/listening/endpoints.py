r"""Parse `--listen` into an endpoint, and the wrappers for the factory there.

    tcp:8888, tcp6:8888, ...                any Twisted server endpoint string
    8888                                    short for tcp:8888
    unix:/run/echod/echod.sock:mode=660     a UNIX socket
    systemd:name=echod                      sockets that systemd has passed
    tls:8443:certificate=F:key=F            TLS, on a TCP port
    tls:unix:/run/echod.sock:certificate=F  TLS, on any endpoint
    ssl:8443:privateKey=F:certKey=F         TLS, by the names of Twisted's `ssl:`
    starttls:8888:certificate=F:key=F       in clear, until the handler begins TLS
    badtls:8443                             TLS with mistakes on purpose, for tests of clients
    proxy:tcp:8888, proxy:tls:...           any of these, behind a PROXY header

After `tls:` and `starttls:` these options belong to TLS, and all others to the endpoint:
`certificate` (followed by its chain; a file, or a folder of files) and `key`, which may repeat,
`client-ca`, `client-certificates` (`required`, `optional`), `alpn`; after `badtls:` `ca`, `client`
and `alpn` do. As in every endpoint string, a colon within a value is written `\:`.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.interfaces import IStreamServerEndpoint

from echod import tls
from echod.addresses import Network
from echod.errors import UserError
from echod.listening.socket_activation import ActivatedEndpoint, InheritedSockets
from echod.listening.tcp import BACKLOG, IPv6Endpoint, PluginEndpoint, TCPEndpoint
from echod.listening.validity import tell_validity
from echod.text import did_you_mean, quoted

if TYPE_CHECKING:
    from echod.interfaces import Reactor
    from echod.listening.badtls import SharedMistakes
    from echod.listening.unix import UNIXEndpoint
    from echod.tls import ServerSide

EXAMPLE = "tcp:8888:interface=127.0.0.1"

TOO_MANY = r"{kind}: has too many words; a colon within one is written \:, as in interface=\:\:1"
INCOMPLETE = f"{{kind}}: is not complete; it is written as in {EXAMPLE}"

# The messages of Twisted's parsers of endpoint strings, and clearer ones for the operator.
PLAIN_WORDS = (
    (r"Unknown endpoint type: .*", "there is no kind of listener {quoted}; {meant}"),
    (r"invalid literal for int\(\) .*: (.*)", "{0} is not a number"),
    (r".* got an unexpected keyword argument (.*)", "{kind}: takes no option {0}"),
    (r".* (?:takes .* positional arguments but|got multiple values for argument) .*", TOO_MANY),
    (r".* missing \d+ required positional argument.*", INCOMPLETE),
)


# A host name has at least one letter; otherwise it would be an invalid address.
HOST_NAME = r"(?=.*[A-Za-z])[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?"

# The longest path of a UNIX socket, in bytes: the kernel has room for 108, including a final NUL.
LONGEST_PATH = 107

# Kinds of Twisted, and prefixes, that are not endpoints here, each with the reason.
NO_ENDPOINTS = {
    "proxy": "proxy: may occur only once, at the beginning",
    "tls": "tls: may occur only once, before the endpoint",
    "ssl": "ssl: may occur only once, before the endpoint",
    "badtls": "badtls: may occur only once, before the endpoint, and not beside tls:",
    "starttls": "starttls: may occur only once, before the endpoint, and not beside tls:",
    "haproxy": "haproxy: believes every client's PROXY header: use proxy: instead",
    "stdio": "standard input is a single stream, not a listener",
}


# Kinds that other servers have, and echod does not.
NOT_SERVED = ("udp", "udp6", "ws", "wss")

# The options of the kinds whose options are known, and of TLS before any kind.
OPTIONS = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "interface", "backlog"),
    "unix": ("address", "mode", "backlog", "lockfile"),
    "systemd": ("name", "index", "domain"),
}
# The order of their words that stand without a name, as Twisted has it.
POSITIONS = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "backlog", "interface"),
}
_TLS_OPTIONS = ("certificate", "key", "client-ca", "client-certificates", "alpn")
TLS_OPTIONS = {
    "tls": _TLS_OPTIONS,
    "starttls": _TLS_OPTIONS,
    "ssl": ("privateKey", "certKey", "extraCertChain", "dhParameters", "sslmethod"),
    "badtls": ("ca", "client", "alpn"),
}
# The address that `badtls:` listens on unless another one is asked for: this machine alone.
LOOPBACK = {"tcp": "interface=127.0.0.1", "tcp6": r"interface=\:\:1"}


class ListenError(UserError):
    """A listener cannot be made; the text says why, in one line."""


class Listening(NamedTuple):
    """The parsed value of a `--listen`.

    Attributes:
        endpoint: where to listen.
        tls: the certificates and the rules; None without TLS.
        proxied: whether a PROXY header comes first.
        starts_clear: whether connections begin in clear, and the handler begins TLS.
    """

    endpoint: IStreamServerEndpoint
    tls: ServerSide | None = None
    proxied: bool = False
    starts_clear: bool = False

    def wrap(self, factory: Any, reactor: Reactor, trusted: Sequence[Network] = ()) -> Any:
        """Wrap `factory` as TLS and PROXY headers need it.

        Args:
            factory: the `EchoFactory` of this listener.
            reactor: for the timers of TLS.
            trusted: the networks whose PROXY headers are accepted.
        """
        wrapped = factory
        if self.tls is not None and not self.starts_clear:
            turns = getattr(factory, "turns", None)  # the status has none
            wrapped = tls.TLSFactory(factory, self.tls, reactor, turns)
        if self.proxied:
            from echod.listening.proxy import ProxyFactory  # only with proxy:

            wrapped = ProxyFactory(wrapped, factory, trusted)
        if wrapped is not factory and hasattr(factory, "connection_turned_away"):
            wrapped.connection_turned_away = factory.connection_turned_away
        return wrapped


def parse_listen(
    reactor: Reactor,
    text: str,
    inherited: InheritedSockets | None = None,
    authority: SharedMistakes | None = None,
) -> Listening:
    """Return what `text` asks for.

    Args:
        reactor: what the endpoint is for.
        text: see the module.
        inherited: the sockets that were passed to this process; None for none.
        authority: makes the certificates of `badtls:`; None for a new one.

    Raises:
        UserError: it makes no sense, or something that it names cannot be used.
    """
    inherited = inherited or InheritedSockets({})
    proxied = text.startswith("proxy:")
    text = text.removeprefix("proxy:")
    kind, _, rest = text.partition(":")
    if kind not in TLS_OPTIONS:
        return Listening(_endpoint(reactor, text, inherited), None, proxied)
    words = Words.split(rest)
    within = "tcp" if words.words[0].isdigit() else words.words[0]
    if within in OPTIONS:
        _check_options(kind, words, (*TLS_OPTIONS[kind], *OPTIONS[within]))
    if kind == "badtls":
        listening = _bad_tls(reactor, words, within, inherited, authority)
        return listening._replace(proxied=proxied)
    files = _ssl_files(words) if kind == "ssl" else _tls_files(kind, words)
    if inherited.shared:
        # Each process has keys of its own: a ticket of one means nothing to the others.
        files = replace(files, tickets=False)
    context = tls.ServerContext(files, inherited.load)
    for certificate in context.served:
        tell_validity(certificate)
    endpoint = _endpoint(reactor, words.endpoint, inherited)
    return Listening(endpoint, context, proxied, starts_clear=kind == "starttls")


def _bad_tls(
    reactor: Reactor,
    words: Words,
    within: str,
    inherited: InheritedSockets,
    authority: SharedMistakes | None,
) -> Listening:
    """Return what the words after `badtls:` ask for."""
    from echod.listening.badtls import SharedMistakes, TrustedEndpoint  # rarely needed

    authority = authority or SharedMistakes()
    mistakes = authority.mistakes  # which needs a package that is not always there
    from echod.tls.mistakes import MistakesContext

    context = MistakesContext(mistakes, _protocols(words.pop("alpn")))
    ca, client = _path(words, "ca"), _path(words, "client")
    # Twisted takes the interface without its name, too: the second word after the kind.
    positional = [word for word in words.words if not _option(word)[0] and word != within]
    if within in LOOPBACK and "interface" not in words.names and len(positional) < 2:
        words.words.append(LOOPBACK[within])
    endpoint = _endpoint(reactor, words.endpoint, inherited)
    return Listening(TrustedEndpoint(endpoint, authority, ca or None, client or None), context)


def _endpoint(reactor: Reactor, text: str, inherited: InheritedSockets) -> IStreamServerEndpoint:
    if passed := inherited.endpoint(reactor):
        return passed
    kind, _, rest = text.partition(":")
    if kind.isdigit():
        kind, rest = "tcp", text
    words = Words.split(rest)
    if kind in OPTIONS:
        _check_options(kind, words, OPTIONS[kind])
    if kind == "unix":
        return _unix_endpoint(reactor, words)
    if kind == "systemd":
        return _activated_endpoint(reactor, words, inherited)
    if kind in NO_ENDPOINTS:
        raise ListenError(NO_ENDPOINTS[kind])
    if kind in POSITIONS:
        return _tcp_endpoint(reactor, kind, words)
    from twisted.internet.endpoints import serverFromString  # slow to import, and rarely needed

    if (len(text) - len(text.rstrip("\\"))) % 2:
        raise ListenError(r"\ at its end stands before no character; itself is written \\")
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, text)
    except Exception as error:  # each endpoint parser raises its own errors
        raise ListenError(_plainly(kind, error, _as_listener(text))) from error
    return endpoint if "backlog" in words.names else PluginEndpoint(endpoint)


def _check_options(kind: str, words: Words, known: Sequence[str]) -> None:
    """Refuse an option that this kind of listener does not take."""
    for name in words.names:
        if name not in known:
            meant = did_you_mean(name, known) or f"there are: {', '.join(known)}"
            raise ListenError(f"{kind}: takes no option {quoted(name)}; {meant}")


def _tcp_endpoint(reactor: Reactor, kind: str, words: Words) -> TCPEndpoint:
    given = {name: words.pop(name) for name in OPTIONS[kind]}
    for name in POSITIONS[kind]:
        if (word := words.pop()) is None:
            break
        if given[name] is not None:
            raise ListenError(TOO_MANY.format(kind=kind))
        given[name] = word or None
    if words.words:
        raise ListenError(TOO_MANY.format(kind=kind))
    if not given["port"]:
        raise ListenError(INCOMPLETE.format(kind=kind))
    second = POSITIONS[kind][1]
    port, backlog = _port_number(given["port"], given[second]), BACKLOG
    if given["backlog"] is not None:
        _check_backlog(given["backlog"])
        backlog = int(given["backlog"])
    interface = given["interface"]
    if interface is not None:
        _check_interface(interface)
    if kind == "tcp6":
        return IPv6Endpoint(reactor, port, interface or "::", backlog)
    return TCPEndpoint(reactor, port, interface or "", backlog)


def _port_number(text: str, behind: str | None) -> int:
    """Return the port; `behind` is the next word, which is the port if this one is an address."""
    if _is_port(text):
        return int(text)
    if re.fullmatch("-?[0-9]+", text):
        raise ListenError(f"{text[:20]} is not a port number from 0 to 65535")
    listener = _as_listener(text if behind is None else f"{text}:{behind}")
    raise ListenError(f"{quoted(text)} is not a number{listener and '; write '}{listener}")


def _check_interface(text: str) -> None:
    if not text:
        raise ListenError("interface= names no address: leave it out for every address")
    if not (_is_address(text) or re.fullmatch(HOST_NAME, text)):
        raise ListenError(f"interface={quoted(text)} is neither an address nor a name")


def _is_port(text: str) -> bool:
    # No pattern: each that is compiled at the start takes a thousandth of it.
    if not (text.isascii() and text.isdecimal() and len(text) <= 5):
        return False
    return int(text) <= 65535 and str(int(text)) == text


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _check_backlog(text: str) -> None:
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise ListenError(f"backlog={quoted(text)} is not a number of connections")


def _as_listener(text: str) -> str:
    """Return `127.0.0.1:8888`, or the path of a socket, as a listener; "" for anything else.

    Two slashes may come first, as in a URL.
    """
    text = text.removeprefix("//")
    first = text.partition(":")[0]
    if "/" in first or first.endswith(".sock"):
        return f"unix:{text}"
    address, _, port = text.rpartition(":")
    if not _is_port(port):
        return ""
    address = address.removeprefix("[").removesuffix("]")
    kind = "tcp6" if ":" in address else "tcp"
    if _is_address(address):
        is_every = ipaddress.ip_address(address).is_unspecified
    elif address == "localhost" or ("." in address and re.fullmatch(HOST_NAME, address)):
        is_every = False
    elif address in ("", "*"):
        is_every = True
    else:
        return ""
    escaped = address.replace(":", r"\:")
    return f"{kind}:{port}" if is_every else f"{kind}:{port}:interface={escaped}"


def _plainly(kind: str, error: Exception, listener: str = "") -> str:
    """Explain an error in an endpoint string in clearer words.

    Args:
        kind: its kind.
        error: what Twisted's parser has raised.
        listener: what the string may have meant; "" if nothing is known.
    """
    said = str(error) or type(error).__name__
    for pattern, words in PLAIN_WORDS:
        if found := re.fullmatch(pattern, said):
            if listener:
                meant = f"write {listener}"
            elif kind.lower() in NOT_SERVED:
                meant = "echod serves streams: TCP, TLS and UNIX sockets"
            else:
                meant = did_you_mean(kind, (*OPTIONS, *TLS_OPTIONS, "proxy"))
            meant = meant or f"one is written as in {EXAMPLE}"
            return words.format(*found.groups(), kind=kind, quoted=quoted(kind), meant=meant)
    return said


def _unix_endpoint(reactor: Reactor, words: Words) -> UNIXEndpoint:
    from echod.listening.unix import MODE, UNIXEndpoint  # only with unix:

    mode = words.pop("mode") or f"{MODE:o}"
    backlog = words.pop("backlog") or str(BACKLOG)
    words.pop("lockfile")  # Twisted's option; `echod.listening.unix` describes the replacement
    path = words.pop("address") or words.pop()
    if not path:
        raise ListenError("unix: needs a path, as in unix:/run/echod/echod.sock")
    if "\0" in path:
        raise ListenError("a path cannot contain NUL")
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ListenError(
            f"this path has {len(os.fsencode(path))} bytes, and a socket's has {LONGEST_PATH} at "
            "most: name it relative to the folder that the daemon is started in"
        )
    absolute = _absolute(path)
    # A path that is too long when absolute stays relative, and moves if the daemon changes its
    # folder.
    path = absolute if len(os.fsencode(absolute)) <= LONGEST_PATH else path
    if not re.fullmatch("0?[0-7]{3}", mode):
        raise ListenError(f"mode={mode} is not an octal mode such as 660")
    _check_backlog(backlog)
    words.expect_no_more()
    return UNIXEndpoint(reactor, path, int(mode, 8), int(backlog))


def _activated_endpoint(
    reactor: Reactor, words: Words, inherited: InheritedSockets
) -> ActivatedEndpoint:
    words.pop("domain")  # Twisted's option; the sockets themselves have their kind
    name, index = words.pop("name"), words.pop("index")
    words.expect_no_more()
    if (name is None) == (index is None):
        raise ListenError("systemd: needs name=NAME (or index=N, and not both)")
    if index is not None and not re.fullmatch("[0-9]{1,4}", index):
        raise ListenError(f"index={index} is not a number")
    found = inherited.take(name=name, index=None if index is None else int(index))
    return ActivatedEndpoint(reactor, found)


class Words:
    """The words of an endpoint string, as written, and the options among them."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    @classmethod
    def split(cls, text: str) -> Words:
        """Split `text` at its colons."""
        if "\\" not in text:
            return cls(text.split(":"))
        words = [""]
        for piece in re.findall(r"\\.|[^\\:]+|.", text, re.DOTALL):
            if piece == ":":
                words.append("")
            else:
                words[-1] += piece
        return cls(words)

    @property
    def names(self) -> list[str]:
        """The names of the options."""
        return [name for name, _ in map(_option, self.words) if name]

    def pop(self, name: str = "") -> str | None:
        """Remove an option, or the first word that is not an option; return its value, or None."""
        for word in self.words:
            key, value = _option(word)
            if key == name:
                self.words.remove(word)
                return re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
        return None

    def pop_each(self, *names: str) -> list[tuple[str, str]]:
        """Remove all options of these names; return each name and value, in their order."""
        found = [(name, word) for word in self.words if (name := _option(word)[0]) in names]
        return [(name, self.pop(name) or "") for name, _ in found]

    def expect_no_more(self) -> None:
        """Raise if an option was not recognised.

        Raises:
            ListenError: a word is left.
        """
        if any(self.words):
            raise ListenError(f"{':'.join(self.words)} is one word too many")

    @property
    def endpoint(self) -> str:
        """The remaining endpoint string."""
        return ":".join(self.words)


def _option(word: str) -> tuple[str, str]:
    """Split a word into name and value; the name is "" if it is no option."""
    if "=" not in word:
        return "", word
    option = re.fullmatch(r"((?:\\.|[^\\=])*)=(.*)", word, re.DOTALL)
    return (option[1], option[2]) if option else ("", word)


def _tls_files(kind: str, words: Words) -> tls.Files:
    first, *others = _pairs(kind, words.pop_each("certificate", "key"))
    client_ca, asked = _path(words, "client-ca"), words.pop("client-certificates")
    if asked not in (None, "required", "optional"):
        raise ListenError(f"client-certificates={asked} is neither required nor optional")
    if asked is not None and client_ca is None:
        raise ListenError("client-certificates needs client-ca=FILE, to verify them by")
    return tls.Files(
        certificate=first.certificate,
        key=first.key,
        others=tuple(others),
        client_ca=client_ca,
        client_certificates_optional=asked == "optional",
        alpn=_protocols(words.pop("alpn")),
    )


def _pairs(kind: str, named: Sequence[tuple[str, str]]) -> list[tls.Pair]:
    """Return the certificates, each with the key behind it; the key of a single one may lead."""
    if [name for name, _ in named] == ["key", "certificate"]:
        named = named[::-1]
    pairs: list[tls.Pair] = []
    for name, path in named:
        if not path:
            continue
        if name == "certificate":
            pairs.append(tls.Pair(_absolute(path)))
        elif pairs and pairs[-1].key is None:
            pairs[-1] = replace(pairs[-1], key=_absolute(path))
        else:
            raise ListenError(
                f"key={path} belongs to no certificate: write each key= behind its certificate="
            )
    if not pairs:
        raise ListenError(f"{kind}: needs certificate=FILE, a certificate in PEM")
    return pairs


def _protocols(text: str | None) -> tuple[str, ...]:
    names = tuple(text.split(",")) if text is not None else ()
    # RFC 7301, 3.1: of 255 bytes each, and 65,535 together, with a byte for the length of each.
    if not all(name.isascii() and 0 < len(name) < 256 for name in names) or (
        sum(map(len, names)) + len(names) > 65_535
    ):
        raise ListenError(f"alpn={quoted(text)} is not a list of protocols, as in h2,http/1.1")
    return names


def _ssl_files(words: Words) -> tls.Files:
    if words.pop("sslmethod") is not None:
        raise ListenError("sslmethod cannot be chosen: TLS 1.2 and 1.3 are spoken")
    key = _path(words, "privateKey") or _absolute("server.pem")
    return tls.Files(
        certificate=_path(words, "certKey") or key,
        key=key,
        chain=_path(words, "extraCertChain"),
        dh_parameters=_path(words, "dhParameters"),
    )


def _path(words: Words, name: str) -> str | None:
    """Remove an option that is a path; return the absolute path, or None."""
    path = words.pop(name)
    return _absolute(path) if path else path


def _absolute(path: str) -> str:
    # It is used again at SIGHUP, and after twistd has changed to --rundir.
    return str(Path.cwd() / path)
