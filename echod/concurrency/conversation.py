"""The conversation of one connection in a thread of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from socket import socket
from types import GeneratorType
from typing import Any, cast

from echod.concurrency.thread_socket import ConnectionSocket
from echod.errors import refuse
from echod.handlers.calling import call_closed, call_opened, greeting_of
from echod.handlers.client import Client
from echod.handlers.contract import (
    BytesLike,
    Close,
    Handler,
    answer_of,
    piece_of,
)
from echod.handlers.kinds import is_request_handler
from echod.handlers.lookup import ResolvedHandler
from echod.handlers.standin import StandInServer
from echod.messages.framing import (
    MOST_WHOLE,
    Chunk,
    DirectFraming,
    Fixed,
    Framing,
    FramingError,
    Line,
)
from echod.messages.prefixed import Length
from echod.messages.session import Session
from echod.reasons import EndReason

# The framings of which a read that ends with a message needs no framer.
DIRECT = (Chunk, Fixed, Length, Line)


@dataclass(frozen=True)
class Conversation:
    """The data that a thread needs for the whole conversation of one connection.

    Attributes:
        handler: the handler, of either kind.
        framing: how messages are cut, for a message handler.
        client: the client.
        banner: sent as it is instead of the handler's greeting; None: the handler's own is sent.
        server: the `self.server` of `socketserver` handlers.
    """

    handler: ResolvedHandler
    framing: Framing
    client: Client
    banner: bytes | None
    server: StandInServer

    def own_socket(self, conn: ConnectionSocket) -> EndReason:
        """Pass `conn` to a connection handler, until it returns."""
        if self.banner:
            conn.sendall(self.banner)
        if is_request_handler(self.handler.target):
            self.server.meet(conn.getsockname())
            self.handler.converse(conn, conn.getpeername(), self.server)
        elif isinstance(self.handler.converse(conn), BytesLike | Close):
            refuse(
                TypeError(
                    "a connection handler sends by itself, and its return value is ignored; "
                    "mark it with @message_handler if it takes messages"
                )
            )
        return EndReason.DRAINED if conn.draining else EndReason.HANDLER

    def answer_messages(self, conn: ConnectionSocket) -> EndReason:
        """Read `conn`, and pass its messages to a message handler."""
        handler = self.handler.message_handler()
        greeting = call_opened(handler, self.client)
        reason = EndReason.HANDLER_ERROR
        try:
            if data := greeting_of(greeting, self.framing, self.banner):
                _send(conn, data)
            # Another socket's `recv` does more.
            if type(conn) is ConnectionSocket and type(self.framing) in DIRECT:
                reason = self._answer_reads(conn, handler)
            else:
                reason = self._answer_framed(conn, handler, Session(self.framing.framer()))
        except OSError as error:
            if conn.caused(error):
                reason = EndReason.LOST
            raise
        finally:
            call_closed(handler, reason)
        return reason

    def _answer_reads(  # noqa: C901 - calls would cost
        self, conn: ConnectionSocket, handler: Handler
    ) -> EndReason:
        """Answer reads that end with a message, without framer and session, and without holding
        any input; after another read, a session answers until nothing is held.

        `conn.recv` and `conn.sendall` are inlined here, because in a loop of two system calls a
        Python call around each costs noticeable time.
        """
        received, size = handler.received, self._read_size
        whole = encode = tail = None
        if not isinstance(self.framing, Chunk):
            framing = cast(DirectFraming, self.framing)
            whole, encode, tail, last = framing.whole, framing.encode, framing.tail, framing.last
        recv, sendall = socket.recv, socket.sendall
        messages: Sequence[bytes] | None
        try:
            while not conn.draining:
                conn.receiving = True
                data = recv(conn, size)
                conn.received_bytes += len(data)
                conn.receiving = False
                if not data:
                    break
                if whole is None:
                    messages = (data,)
                elif len(data) > MOST_WHOLE or (messages := whole(data)) is None:
                    session = Session(self.framing.framer())
                    session.receive(data)
                    reason = self._answer_framed(conn, handler, session)
                    if session.idle:
                        continue
                    return reason
                for message in messages:
                    conn.messages += 1
                    reply = received(message)
                    if type(reply) is bytes:
                        if encode is None:
                            pass
                        elif tail is None or last in reply:
                            reply = encode(reply)
                        else:
                            reply += tail
                        conn.sending = True
                        if conn.outbox is None:
                            sendall(conn, reply)
                            conn.sent_bytes += len(reply)
                        else:
                            conn.outbox.reply(reply)
                        conn.sending = False
                    elif reply is not None and self._is_last(conn, reply):
                        return EndReason.HANDLER
        except BaseException as error:
            if not conn.ended_by(error):
                conn.failed(error)
                raise
        if not conn.draining:
            return EndReason.CLIENT
        # At a drain the stream ends earlier than on the socket: `conn.recv` knows where.
        return self._answer_framed(conn, handler, Session(self.framing.framer()))

    @property
    def _read_size(self) -> int:
        size = self.framing.max_message
        return size if type(self.framing) is Chunk else min(max(size, 1024), 64 * 1024)

    def _answer_framed(
        self, conn: ConnectionSocket, handler: Handler, session: Session
    ) -> EndReason:
        """Answer until the conversation is over; or until nothing is held, if something was."""
        received, reason = handler.received, EndReason.CLIENT
        size, held = self._read_size, not session.idle
        while not session.finished:
            try:
                message = session.next_message()
            except FramingError as error:
                session.close()
                _send(conn, self.framing.encode_line(str(error).encode()))
                return EndReason.FRAMING_ERROR
            if message is not None:
                conn.messages += 1
                if self._is_last(conn, received(message)):
                    session.close()
                    reason = EndReason.HANDLER
                session.answered()
            elif not session.finished:
                conn.incomplete = session.incomplete
                if held and session.idle:
                    break
                data = conn.recv(size)
                if data:
                    session.receive(data)
                else:
                    session.end_input(cut_off=conn.draining)
                    reason = EndReason.DRAINED if conn.draining else EndReason.CLIENT
        return reason

    def _is_last(self, conn: ConnectionSocket, result: object) -> bool:
        """Send the reply that `result` means; return whether it is the last one."""
        if isinstance(result, GeneratorType):
            return self._is_last_of(conn, result)
        reply, is_last = answer_of(result)
        if reply is not None and (data := self.framing.encode(reply)):
            _send(conn, data)
        return is_last

    def _is_last_of(self, conn: ConnectionSocket, pieces: GeneratorType[Any, Any, Any]) -> bool:
        """Send the pieces of a stream; return whether the last one closes."""
        conn.cut_off, is_last, is_over = True, False, False
        with contextlib.closing(pieces):
            while not (is_last or is_over):
                piece, is_over = piece_of(pieces)
                reply, is_last = answer_of(piece)
                if reply is not None and (data := self.framing.encode(reply)):
                    _send(conn, data)
                if conn.outbox is not None and conn.outbox.ending:
                    return True  # another thread has closed
        conn.cut_off = False
        return is_last


def _send(conn: ConnectionSocket, data: bytes) -> None:
    """Send what the handler has returned, after what was pushed before."""
    conn.sending = True  # first: see `echod.concurrency.socket_outbox`
    if conn.outbox is None:
        conn.sendall(data)
    else:
        try:
            conn.outbox.reply(data)
        except BaseException as error:
            conn.failed(error)
            raise
        conn.sending = False
