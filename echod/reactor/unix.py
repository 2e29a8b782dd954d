"""Send open descriptors to the peer, which only UNIX streams can do.

A descriptor travels with a byte, so it is sent with the first byte written after
``sendFileDescriptor``. Receiving them is left to Twisted's own transport, which takes over the
connection when its protocol is an ``IFileDescriptorReceiver``.
"""

from __future__ import annotations

import os
import socket

from twisted.internet import main
from twisted.internet.error import FileDescriptorOverrun
from twisted.internet.interfaces import IUNIXTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.reactor.transport import StreamTransport

#: Descriptors waiting to be sent before a streaming producer is paused.
MAX_QUEUED = 64


@implementer(IUNIXTransport)
class DescriptorSender(StreamTransport):
    """A stream that can send descriptors: for a moment it collects the written data."""

    _descriptors: tuple[int, ...] = ()
    _held = b""

    def sendFileDescriptor(self, fileno: int) -> None:
        """Send a duplicate of ``fileno`` with the next byte written, in this turn of the loop.

        Keep it open until the peer has it.
        """
        if not self.connected or self._write_ended:
            return
        self._descriptors += (fileno,)
        self._watch_writes()
        if len(self._descriptors) > MAX_QUEUED:
            self._pause_streaming()
        self._await_drain()

    def _writes_are_watched(self) -> bool:
        return bool(self._descriptors) or super()._writes_are_watched()

    def _pause_streaming(self) -> None:
        if self.producer is not None and self.streamingProducer and not self.producerPaused:
            self._pause_producer()

    def _send(self, data: bytes) -> None:
        if self._descriptors:
            self._held += data
        else:
            super()._send(data)

    def _drained(self) -> None:
        if self._descriptors:
            self._send_descriptors()
        else:
            super()._drained()

    def _send_descriptors(self) -> None:
        if len(self._descriptors) > len(self._held):
            self._reason = Failure(FileDescriptorOverrun())
            self._uv.abort()
            return
        try:
            while self._descriptors:
                self._send_one(self._held[:1], self._descriptors[0])
                self._descriptors = self._descriptors[1:]
                self._held = self._held[1:]
        except BlockingIOError:
            # The kernel's buffer is full, and there is no event to wait for: try again soon.
            self._drain_scheduled = True
            self.reactor.loop.call_later(0.01, self._drained_later, context=self.context)
            self._pause_streaming()
            return
        except OSError:
            self._reason = Failure(main.CONNECTION_LOST)
            self._uv.abort()
            return
        held, self._held = self._held, b""
        self._send(held)
        self._watch_writes()
        super()._drained()

    def _send_one(self, byte: bytes, descriptor: int) -> None:
        socket.send_fds(self.socket, [byte], [descriptor])

    def _surrender(self) -> socket.socket:
        """End this transport without any callback, and return its connected socket."""
        descriptor = os.dup(self.socket.fileno())
        self._release()
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)

    def getTcpNoDelay(self) -> bool:
        """UNIX streams have no such delay, nor an option for it."""
        return False

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass
