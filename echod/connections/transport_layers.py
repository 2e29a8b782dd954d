"""The layers between a connection's protocol and its socket: TLS, and faults on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

from twisted.protocols.policies import ProtocolWrapper

from echod.tls.base import TLSLayer

if TYPE_CHECKING:
    from echod.tls import TLSConnection


class Layer:
    """A transport that holds bytes back, above another transport.

    Attributes:
        transport: the one below.
        ended: whether a fault ends the connection.
    """

    transport: Any = None
    ended = False

    @property
    def held_in(self) -> int:
        """How many bytes from the client wait here."""
        raise NotImplementedError

    @property
    def held_out(self) -> int:
        """How many bytes for the client wait here."""
        raise NotImplementedError

    @property
    def faults(self) -> tuple[str, ...]:
        """The names of the faults that have happened, in the order of the flags."""
        raise NotImplementedError

    @property
    def holds(self) -> bool:
        """Whether bytes, or an end, wait here."""
        raise NotImplementedError

    def handshaken(self) -> None:
        """Note the end of the handshake of TLS: below, or above after STARTTLS."""

    def held_for(self) -> float:
        """Return for how many seconds, since the last call, the client has waited for this
        layer.
        """
        raise NotImplementedError


def is_tls(transport: object) -> TypeGuard[TLSConnection]:
    """Return whether `transport` is echod's own TLS."""
    return isinstance(transport, TLSLayer)


def layer_of(transport: Any) -> Layer | None:
    """Return the layer at or below `transport`; None if there is none."""
    if is_tls(transport):  # TLS that began within the conversation
        transport = transport.transport
    return transport if isinstance(transport, Layer) else None


def holds(transport: Any) -> bool:
    """Return whether a fault on purpose holds something of a connection."""
    layer = layer_of(transport)
    return layer is not None and layer.holds


def tls_of(transport: Any) -> TLSConnection | None:
    """Return echod's TLS at or below `transport`; None if there is none."""
    if isinstance(transport, Layer):
        transport = transport.transport
    return transport if is_tls(transport) else None


def below(transport: Any) -> Any:
    """Return the transport at the socket."""
    while isinstance(transport, ProtocolWrapper | TLSLayer | Layer):
        transport = transport.transport
    return transport


def hand_over(transport: Any, protocol: Any) -> None:
    """Let another protocol take the place of the one that a transport at the socket has."""
    own_way = getattr(transport, "handOver", None)
    if own_way is not None:
        own_way(protocol)
    else:
        transport.protocol = protocol
        protocol.makeConnection(transport)


def note_before(transport: Any, fault: str) -> None:
    """Note that a fault on purpose has hit a connection before its protocol was made."""
    below(transport).faults_before = (fault,)


def faults_before(transport: Any) -> tuple[str, ...]:
    """Return the names of such faults."""
    names: tuple[str, ...] = getattr(below(transport), "faults_before", ())
    return names
