"""The values of the keys of a fault, and how they are written.

A parser converts the text of a value. It raises ValueError with a description of the accepted
values, which completes the sentence "VALUE is not ...".
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class After:
    """When a fault begins: after one of these.

    Attributes:
        size: so many bytes of its direction.
        messages: so many messages of the client.
        seconds: so many seconds of the connection; None: another one counts.
        handshake: the handshake of TLS.
    """

    size: int = 0
    messages: int = 0
    seconds: float | None = None
    handshake: bool = False


def parse_after_seconds(text: str) -> After:
    """Parse the time at which a fault of a listener begins."""
    try:
        return After(seconds=parse_seconds(text if text.endswith("s") else "none"))
    except ValueError:
        raise ValueError("a number of seconds with an s, as in 2s") from None


def parse_number(text: str) -> float:
    """Parse a number that is not negative."""
    if not re.fullmatch(r"(0|[1-9][0-9]{0,14})(\.[0-9]{1,9})?|\.[0-9]{1,9}", text):
        raise ValueError("a number, as in 10 or 0.5")
    return float(text)


def whole(least: int, most: int = 2**40) -> Callable[[str], int]:
    """Return a parser of whole numbers from `least` to `most`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"0|[1-9][0-9]{0,14}", text) or not least <= int(text) <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return int(text)

    return parse


def parse_seconds(text: str) -> float:
    """Parse a duration, with an `s` behind it or without."""
    try:
        value = parse_number(text.removesuffix("s"))
    except ValueError:
        value = math.inf
    if value > 10**7:
        raise ValueError("a number of seconds, up to 10000000, as in 0.2 or 2s")
    return value


def parse_pause(text: str) -> float:
    """Parse a duration that a timer can wait for."""
    value = parse_seconds(text)
    if value < 0.001:
        raise ValueError("a number of seconds from 0.001, as in 0.2")
    return value


def parse_share(text: str) -> float:
    """Parse a share of a whole."""
    try:
        value = parse_number(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ValueError("a share above 0, up to 1, as in 0.1")
    return value


def parse_after(text: str) -> After:
    """Parse where a fault begins."""
    number = text.removesuffix("msg")
    if re.fullmatch(r"0|[1-9][0-9]{0,14}", number):
        return After(int(number)) if number == text else After(messages=int(number))
    if text == "handshake":
        return After(handshake=True)
    if re.fullmatch(r"[0-9.]+s", text):
        return After(seconds=parse_seconds(text))
    raise ValueError("a number of bytes, as in 10, or 3msg, 2s or handshake")


def parse_pattern(text: str) -> re.Pattern[bytes]:
    """Parse a regular expression."""
    try:
        return re.compile(text.encode("utf-8", "surrogateescape"))
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"a regular expression ({error})") from None


def one_of(*words: str) -> Callable[[str], str]:
    """Return a parser that takes these words alone."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(" or ".join(words))
        return text

    return parse


def parse_network(text: str) -> Network:
    """Parse a network, or an address."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise ValueError("a network, as in 10.0.0.0/8 or fd00::/8, or an address") from None


def parse_host(text: str) -> str:
    """Parse the name of a host, or `*.` and a domain."""
    name = text.lower().removesuffix(".")
    if not re.fullmatch(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", name):
        raise ValueError("the name of a host, as in shop.localhost or *.localhost")
    return name


def key(default: T, parse: Callable[[str], object], meaning: str) -> T:
    """Return a dataclass field that is a key of a fault.

    Args:
        default: its value if it is not given.
        parse: converts its text; raises ValueError with a description of the accepted values.
        meaning: its meaning, for the documentation.
    """
    return field(default=default, metadata={"parse": parse, "meaning": meaning})


# A field's name, where it is not the key's.
_KEYS = {"source": "from", "mistake": "name", "lasts": "for"}


def key_of(name: str) -> str:
    """Return the key that a field is written as."""
    return _KEYS.get(name, name.replace("_", "-"))
