"""Addresses: as logs show them, and as limits count them."""

from __future__ import annotations

import ipaddress
import sys
from functools import lru_cache
from typing import TYPE_CHECKING

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from echod.text import escape

if TYPE_CHECKING:
    from echod.proxy_header import Address

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def network_of(host: str) -> str:
    """Return the unit that limits count as one address: an IPv4 address, or an IPv6 /64 network.

    A site gets a /64 at least (RFC 6177), so a single machine may have 2**64 addresses.

    Args:
        host: an IPv4 or IPv6 address as text; a scope is ignored, as in `fe80::1%eth0`.
    """
    if ":" in host:
        host = _network_of_ipv6(host.partition("%")[0])
    # Interned: each connection keeps it, and many connections come from the same one.
    return sys.intern(host)


@lru_cache(maxsize=1024)  # most clients come again, and `ipaddress` is slow
def _network_of_ipv6(host: str) -> str:
    address = ipaddress.IPv6Address(host)
    mapped = address.ipv4_mapped
    return str(mapped) if mapped else f"{ipaddress.IPv6Address(int(address) >> 64 << 64)}/64"


def twisted_address(address: Address | None) -> IPv4Address | IPv6Address | UNIXAddress | None:
    """Return Twisted's form of an address that a PROXY header gives."""
    if address is None:
        return None
    if isinstance(address, bytes):
        return UNIXAddress(address or None)
    host, port = address
    return (IPv6Address if ":" in host else IPv4Address)("TCP", host, port)


def network_at(address: object) -> str:
    """Return the network that a client's Twisted address belongs to; "" if it has no host."""
    if isinstance(address, (IPv4Address, IPv6Address)):  # not a union: it costs more
        return network_of(address.host)
    return ""


def reachable_here(host: str) -> str:
    """Return by which address a client on this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound here


def host_and_port(host: str, port: int) -> str:
    """Return an IP address and a port as one text."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def shown_address(address: object) -> str:
    """Return a Twisted address as logs show it, escaped."""
    if isinstance(address, IPv4Address):
        return f"{address.host}:{address.port}"
    if isinstance(address, IPv6Address):
        return f"[{address.host}]:{address.port}"
    if isinstance(address, UNIXAddress):
        return escape(address.name or b"")
    return escape(str(address))
