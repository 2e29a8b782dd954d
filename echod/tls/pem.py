"""Read texts in PEM, and give them to OpenSSL."""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

from echod import named_files
from echod.errors import UserError

CERTIFICATE = "-----BEGIN CERTIFICATE-----"


class FilesError(UserError):
    """Files cannot be used for TLS; the text says which, why, and the remedy, in one line."""


def read(path: str) -> str:
    """Return the content of a file in PEM.

    Raises:
        FilesError: it cannot be read.
    """
    try:
        # Bytes beyond ASCII have no meaning in PEM, and are no reason to refuse a comment.
        return named_files.read_text(path, "ascii", errors="replace")
    except (OSError, ValueError) as error:  # a path cannot contain NUL
        raise FilesError(f"cannot read {path}: {why(error)}") from error


def certificates_in(text: str) -> list[str]:
    """Return the certificates in a text, each as PEM."""
    end = "-----END CERTIFICATE-----"
    return [
        CERTIFICATE + part.partition(end)[0] + end + "\n" for part in text.split(CERTIFICATE)[1:]
    ]


@contextlib.contextmanager
def as_file(text: str) -> Iterator[str]:
    """Give the path of a file with the content `text`, because Python lets OpenSSL read only
    files.

    It is in memory if the system has such files, so that no key is written to a disk.

    Raises:
        OSError: the file cannot be created.
    """
    with contextlib.ExitStack() as stack:
        if (path := _in_memory(text, stack)) is None:
            file = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".pem"))
            file.write(text.encode("ascii", errors="replace"))
            file.flush()
            path = file.name
        yield path


def _in_memory(text: str, stack: contextlib.ExitStack) -> str | None:
    try:
        descriptor = os.memfd_create("echod")
        stack.callback(os.close, descriptor)
        path = Path(f"/proc/self/fd/{descriptor}")
        path.write_text(text, "ascii", errors="replace")
    except (AttributeError, OSError):  # another system, or one without /proc
        return None
    return str(path)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Raise a FilesError that begins with `what` where OpenSSL refuses a text."""
    try:
        yield
    except (ssl.SSLError, ValueError) as error:
        raise FilesError(f"{what}{openssl_reason(error)}") from error


def openssl_reason(error: Exception) -> str:
    """Return the reason in an error of OpenSSL's, in brackets; "" if it has none."""
    reason = getattr(error, "reason", None)
    return f" ({reason.lower().replace('_', ' ')})" if reason else ""


def why(error: Exception) -> str:
    """Return why a file cannot be used."""
    return getattr(error, "strerror", None) or str(error)
