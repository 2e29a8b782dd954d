"""Choose the class of a listener's connections, once for all of them.

Each class is imported when a factory first chooses it. That is at the start of a daemon, and not
at a client: by then the daemon may no longer be able to read its own modules.
"""

from __future__ import annotations

from echod.connections.lifecycle import ConnectionProtocol
from echod.connections.message_protocol import EchoProtocol
from echod.handlers.contract import ConcurrencyModel
from echod.handlers.kinds import Kind
from echod.messages.framing import Chunk, Fixed, Framing, Line


def protocol_for(
    kind: Kind, model: ConcurrencyModel, framing: type[Framing], *, may_start_tls: bool
) -> type[ConnectionProtocol]:
    """Return the class of protocols.

    Args:
        kind: of the handler.
        model: where the handler runs.
        framing: how input is cut into messages.
        may_start_tls: whether the handler may begin TLS within a conversation.
    """
    if (made := _of_its_own(kind)) is not None:
        return made
    if model is ConcurrencyModel.THREAD_PER_CONNECTION:
        from echod.connections.socket_protocol import SocketProtocol

        return SocketProtocol
    # The faster ones answer without a session, and it is the session that ends for TLS.
    return EchoProtocol if may_start_tls else _fastest(model, framing)


def _of_its_own(kind: Kind) -> type[ConnectionProtocol] | None:
    """Return the class for this kind of handler alone; None if the model decides."""
    match kind:
        case Kind.ASYNCIO_PROTOCOL:
            from echod.connections.asyncio_protocol import AsyncioProtocol

            return AsyncioProtocol
        case Kind.STREAMS:
            from echod.connections.streams_protocol import StreamsProtocol

            return StreamsProtocol
        case Kind.TWISTED_PROTOCOL:
            from echod.connections.twisted_protocol import TwistedProtocol

            return TwistedProtocol
        case Kind.PROGRAM:
            from echod.connections.program_protocol import ProgramProtocol

            return ProgramProtocol
        case _:
            return None


def _fastest(model: ConcurrencyModel, framing: type[Framing]) -> type[EchoProtocol]:
    """Return the fastest class; a subclass of a framing may cut differently."""
    if framing is Chunk and model is ConcurrencyModel.DEFER_TO_THREAD:
        from echod.connections.pooled_protocol import PooledProtocol

        return PooledProtocol
    if model is not ConcurrencyModel.REACTOR:
        return EchoProtocol
    from echod.connections.direct_protocol import DirectFramedProtocol, DirectProtocol

    if framing is Chunk:
        return DirectProtocol
    from echod.messages.prefixed import Length

    return DirectFramedProtocol if framing in (Fixed, Length, Line) else EchoProtocol
