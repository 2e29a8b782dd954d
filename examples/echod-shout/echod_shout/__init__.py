"""Two handlers. They need nothing of echod: `bytes` says that they are called once a message."""

from __future__ import annotations


def shout(message: bytes, *, marks: int = 1) -> bytes:
    """Sends back what it gets in capital letters, with exclamation marks."""
    # A message may end its line, or not: in the default framing it is what one read gave.
    text = message.rstrip(b"\r\n")
    return text.upper() + b"!" * marks + message[len(text) :]


def whisper(message: bytes) -> bytes:
    """Sends back what it gets in small letters."""
    return message.lower()
