"""The token by which clients of the control, over TCP, prove that they may use it.

It comes from a file or the environment, never from a flag: every user sees the flags of a process.
"""

from __future__ import annotations

import hmac
import re
import stat
from pathlib import Path

from twisted.logger import Logger

from echod.errors import UserError
from echod.named_files import read_text
from echod.text import escape

log = Logger("echod")

VARIABLE = "ECHOD_CONTROL_TOKEN"

# The shortest token, in characters: 16 random ones cannot be guessed.
SHORTEST = 16
LONGEST = 1024

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, 2.1
_BEARER = re.compile(rb"Bearer +(\S+)", re.IGNORECASE)


class TokenError(UserError):
    """There is no usable token; the text says why, in one line."""


def check(text: str) -> bytes:
    """Return a token as it is compared.

    Raises:
        TokenError: it is too short, or has characters that a token cannot have.
    """
    token = text.strip()
    if not SHORTEST <= len(token) <= LONGEST:
        raise TokenError(
            f"the token has {len(token)} characters, and needs at least {SHORTEST}, and "
            f"{LONGEST} at most: openssl rand -hex 32 makes a good one"
        )
    if not _TOKEN.fullmatch(token):
        raise TokenError("a token consists of letters, digits and -._~+/, and = at its end")
    return token.encode()


def read_token(path: str) -> bytes:
    """Return the token in a file.

    Raises:
        TokenError: the file cannot be read, or has no usable token.
    """
    try:
        text = read_text(path, "utf-8")
        mode = Path(path).stat().st_mode
    except OSError as error:
        raise TokenError(f"{path}: {error.strerror}") from None
    except ValueError:  # it is not UTF-8, or the path has a NUL
        raise TokenError(f"{path}: this is no text") from None
    try:
        token = check(text)
    except TokenError as error:
        raise TokenError(f"{path}: {error}") from None
    if mode & stat.S_IROTH:
        log.warn(
            "Every user can read the token in {path}: chmod o-r {path}", path=escape(str(path))
        )
    return token


def is_right(authorization: str | None, token: bytes | None) -> bool:
    """Return whether the header `Authorization` has the token, in a time that tells nothing.

    Args:
        authorization: the header, decoded as Latin-1; None: it is missing.
        token: the token; None: there is none, and every header is wrong.
    """
    given = _BEARER.fullmatch((authorization or "").encode("latin-1"))
    return hmac.compare_digest(given[1] if given else b"", token or b"\0") and token is not None
