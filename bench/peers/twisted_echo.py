"""Stock Twisted: a `Protocol` that writes its reply in `dataReceived`, on the epoll reactor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import endpoints, epollreactor
from twisted.internet.protocol import Factory, Protocol

from bench.peers.wire import BACKLOG, BANNER, HOST, PREFIX, Arguments, arguments, cut


class Echo(Protocol):
    """Greets and echoes."""

    transport: Any  # which is more than an ITransport, as Twisted types it
    read_size: int

    def connectionMade(self) -> None:  # noqa: N802
        self.transport.write(BANNER)

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        if len(data) <= self.read_size:
            self.transport.write(PREFIX + data)
        else:
            self.transport.write(cut(data, self.read_size))


def endpoint_string(options: Arguments) -> str:
    """Return where to listen."""
    where = f"{options.port}:interface={HOST}:backlog={BACKLOG}"
    if options.certificate is None:
        return f"tcp:{where}"
    return f"ssl:{where}:certKey={options.certificate}:privateKey={options.key}"


def make(*, read_size: int = 1024) -> Factory:
    """Return a factory of this protocol; echod serves this one."""
    Echo.read_size = read_size
    factory = Factory.forProtocol(Echo)
    factory.noisy = False
    return factory


def serve(protocol: type[Echo], install: Callable[[], object] = epollreactor.install) -> None:
    """Serve `protocol` until the process is ended, on the reactor that is installed."""
    install()
    from twisted.internet import reactor

    options = arguments()
    protocol.read_size = options.read_size
    factory = Factory.forProtocol(protocol)
    factory.noisy = False
    endpoints.serverFromString(reactor, endpoint_string(options)).listen(factory)
    reactor.run()


if __name__ == "__main__":
    serve(Echo)
