"""Stock Twisted with `deferToThread`: each read is answered in the reactor's thread pool."""

from __future__ import annotations

from twisted.internet.threads import deferToThread

from bench.peers.twisted_echo import Echo, serve
from bench.peers.wire import cut


class DeferredEcho(Echo):
    """Makes its replies in pool threads."""

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        deferToThread(cut, data, self.read_size).addCallback(self.transport.write)


if __name__ == "__main__":
    serve(DeferredEcho)
