"""A client of the control, which needs neither Twisted nor the daemon."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from echod.errors import UserError
from echod.text import quoted

# Exit codes: see `echod.cli.ctl`.
REFUSED, USAGE, UNREACHABLE = 1, 2, 3

# The environment variables in place of options.
CONTROL, TOKEN = "ECHOD_CONTROL", "ECHOD_CONTROL_TOKEN"

# How long each wait for the daemon may take, in seconds.
TIMEOUT = 30.0

Values = dict[str, Any]


class ControlError(UserError):
    """The control cannot be used: the text is one line.

    Attributes:
        code: the exit code.
    """

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class _UNIXConnection(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(self._path)


class Client:
    """A client of one control."""

    def __init__(self, place: str, token: str, ca: str | None) -> None:
        """Set up, without connecting.

        Args:
            place: the endpoint.
            token: the token; "" for none.
            ca: a file with the certificates to trust; None for the system's.

        Raises:
            ControlError: the endpoint makes no sense.
        """
        self._place = place
        self._connection = connection_to(place, ca)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    @classmethod
    def of(cls, parsed: argparse.Namespace) -> Client:
        """Return the client that the command line and the environment ask for.

        Raises:
            ControlError: they name no control, or a token that cannot be read.
        """
        place = parsed.control or os.environ.get(CONTROL, "")
        if not place:
            raise ControlError(
                f"name the control, by --control ENDPOINT or {CONTROL} in the environment, as in "
                "unix:/run/echod/control.sock or tcp:9465",
                USAGE,
            )
        return cls(place, _token(parsed.control_token_file), parsed.ca)

    def ask(self, method: str, path: str, body: object = None) -> Values:
        """Send a request; return the value of the answer.

        Raises:
            ControlError: the daemon cannot be reached, or refuses.
        """
        data = None if body is None else json.dumps(body).encode()
        try:
            self._connection.request(method, path, data, self._headers)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            raise ControlError(f"{self._place}: {_reason(error)}", UNREACHABLE) from None
        finally:
            self._connection.close()
        try:
            value = json.loads(content)
            why = value.get("error", "")
        except (ValueError, AttributeError):
            raise ControlError(
                f"{self._place}: this is not the control of echod (status {response.status})",
                UNREACHABLE,
            ) from None
        if response.status == http.client.UNAUTHORIZED:
            raise ControlError(
                f"{self._place}: the token is missing or wrong: give --control-token-file, or "
                f"{TOKEN} in the environment",
                REFUSED,
            )
        if response.status != http.client.OK:
            raise ControlError(why or f"status {response.status}", REFUSED)
        answer: Values = value
        return answer


# A word of an endpoint: up to a colon that is neither escaped nor in brackets, or an empty one.
_WORD = r"(?:\\.|\[[^]]*]|[^\\:])+|(?<=:)(?=:)"


def connection_to(place: str, ca: str | None = None) -> http.client.HTTPConnection:
    r"""Return an HTTP connection, not connected, to an endpoint.

    Args:
        place: `unix:PATH`, `tcp:PORT` or `PORT`, `tcp:HOST:PORT`, `tls:HOST:PORT` or a URL, or the
            daemon's own endpoint string, of whose options `interface=` is used. An IPv6 address
            may stand in brackets.
        ca: a file with the certificates to trust; None for the system's.

    Raises:
        ControlError: it makes no sense.
    """
    if re.match("https?://", place):
        return _connection_by_url(place, ca)
    kind, *words = (re.sub(r"\\(.)", r"\1", word) for word in re.findall(_WORD, place) or [""])
    if kind.isdecimal():  # as for the daemon's --control
        kind, words = "tcp", [kind, *words]
    options = dict(word.partition("=")[::2] for word in words if "=" in word)
    words = [word for word in words if "=" not in word]
    if kind == "unix" and words:
        return _UNIXConnection(words[0])
    inner = words.pop(0) if kind == "tls" and words[:1] in (["tcp"], ["tcp6"]) else kind
    loopback = "::1" if inner == "tcp6" else "127.0.0.1"
    host = options.get("interface") or (words[0] if len(words) == 2 else loopback)
    host = host.removeprefix("[").removesuffix("]")
    if kind not in ("tcp", "tcp6", "tls") or len(words) not in (1, 2) or not words[-1].isdecimal():
        raise ControlError(
            f"{quoted(place)} is no endpoint of a control, as in unix:/run/echod/control.sock, "
            "tcp:9465, tcp:HOST:PORT, tls:HOST:PORT or http://HOST:PORT",
            USAGE,
        )
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound here
    return _connection(host, int(words[-1]), ca, secure=kind == "tls")


def _connection_by_url(url: str, ca: str | None) -> http.client.HTTPConnection:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host:
        raise ControlError(f"{quoted(url)} is no URL, as in http://HOST:PORT", USAGE)
    secure = parts.scheme == "https"
    return _connection(host, port or (443 if secure else 80), ca, secure=secure)


def _connection(
    host: str, port: int, ca: str | None, *, secure: bool
) -> http.client.HTTPConnection:
    if not secure:
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise ControlError(f"--ca {ca}: {_reason(error)}", USAGE) from None
    return http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=context)


def _token(path: str | None) -> str:
    if path is None:
        token = os.environ.get(TOKEN, "")
    else:
        try:
            token = Path(path).read_text("utf-8")
        except (OSError, ValueError) as error:
            raise ControlError(f"--control-token-file {path}: {_reason(error)}", USAGE) from None
    token = token.strip()
    if not token.isascii() or not token.isprintable():
        raise ControlError("the token has characters that no token has", USAGE)
    return token


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
