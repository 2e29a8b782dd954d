"""A choice of connections, by the query of a request; pure."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl

from echod.addresses import Network
from echod.faults import FAULTS
from echod.journal import Record
from echod.reasons import EndReason

# The most connections in one answer, and how many there are by default.
MOST, DEFAULT = 10_000, 1000

# The highest number of a connection: each reader of JSON takes it exactly.
HIGHEST = 2**53

# The most faults on purpose at once.
MOST_FAULTS = 100

REASONS = tuple(reason.value for reason in EndReason)

_ADDRESS = re.compile(r"(?:\[([^\]]+)\]|([0-9.]+)):[0-9]{1,5}")

# How the address of a client's own UNIX socket begins: a path, or a name without one, escaped.
_PATHS = ("/", "\\x00")


class QueryError(ValueError):
    """A query makes no sense; the text says why."""


@dataclass(frozen=True)
class Selection:
    """The connections that a request means: all conditions hold.

    Attributes:
        address: a network, an address, an address with its port, or the whole path of the
            client's UNIX socket.
        listener: a listener's number, from 1, or its endpoint string.
        state: "open" or "ended".
        reason: why it ended.
        fault: the name of a fault that has happened.
        after: only connections with a higher number.
        limit: how many there are in an answer.
    """

    address: str | None = None
    listener: str | None = None
    state: str | None = None
    reason: str | None = None
    fault: str | None = None
    after: int = 0
    limit: int = DEFAULT

    def fits_client(self, peer: str, listener: str, listeners: Mapping[str, str]) -> bool:
        """Return whether a client is meant, as far as its address and listener tell.

        Args:
            peer: the client's address.
            listener: the endpoint string of its listener.
            listeners: the endpoint strings by their numbers.
        """
        if self.listener is not None and listener != listeners.get(self.listener, self.listener):
            return False
        return self.address is None or is_at(peer, self.address)

    def fits(self, record: Record, listeners: Mapping[str, str]) -> bool:
        """Return whether a connection is meant."""
        return (
            self.fits_client(record.peer, record.listener, listeners)
            and self.state in (None, "open" if record.is_open else "ended")
            and self.reason in (None, record.reason)
            and (self.fault is None or self.fault in record.faults)
            and record.number > self.after
        )


def is_at(peer: str, wanted: str) -> bool:
    """Return whether a client's address is the one that is wanted, or in that network."""
    if peer == wanted:
        return True
    network, address = _network(wanted), _host(peer)
    if network is None or address is None:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped in network or address in network
    return address in network


@lru_cache(maxsize=64)  # one request asks for each connection
def _network(text: str) -> Network | None:
    """Return the network, or the address as one; None if the text is neither."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _host(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the host of an address with its port, without its scope; None if it is none."""
    if found := _ADDRESS.fullmatch(text):
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address((found[1] or found[2]).partition("%")[0])
    return None


def arguments(query: bytes, known: tuple[str, ...]) -> dict[str, str]:
    """Return the arguments of a query by name.

    Raises:
        QueryError: it has an argument that is not known, or twice, or one that is not UTF-8.
    """
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(query),
            errors="strict",
            max_num_fields=20,
        )
    except ValueError:
        raise QueryError("the query is not of the form name=value&name=value, in UTF-8") from None
    given: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            raise QueryError(f"there is no argument of that name; there are: {', '.join(known)}")
        if name in given:
            raise QueryError(f"{name} is given twice")
        given[name] = value
    return given


def selection(given: Mapping[str, str]) -> Selection:
    """Return the selection that the arguments of a query describe.

    Raises:
        QueryError: a value is not valid. Whether there is such a listener is not looked at.
    """
    state = given.get("state")
    if state not in (None, "open", "ended"):
        raise QueryError("state is open or ended")
    return Selection(
        address=_address(given),
        listener=given.get("listener"),
        state=state,
        reason=_one_of(given, "reason", REASONS),
        fault=_one_of(given, "fault", FAULTS),
        after=_number(given, "after", 0, HIGHEST),
        limit=_number(given, "limit", 1, MOST, DEFAULT),
    )


def _address(given: Mapping[str, str]) -> str | None:
    text = given.get("address")
    if text is None or text.startswith(_PATHS) or _network(text) or _host(text):
        return text
    raise QueryError(
        "address is an address, an address with its port, a network, or the whole path of a "
        "client's UNIX socket"
    )


def _one_of(given: Mapping[str, str], name: str, known: Collection[str]) -> str | None:
    text = given.get(name)
    if text is None or text in known:
        return text
    raise QueryError(f"{name} is one of: {', '.join(known)}")


def _number(given: Mapping[str, str], name: str, least: int, most: int, default: int = 0) -> int:
    text = given.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"0|[1-9][0-9]{0,15}", text) or not least <= int(text) <= most:
        raise QueryError(f"{name} is a whole number from {least} to {most}")
    return int(text)
