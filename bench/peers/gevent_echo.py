"""A greenlet for each connection: blocking code on gevent's event loop."""

from __future__ import annotations

from gevent.server import StreamServer
from gevent.socket import socket

from bench.peers.wire import BACKLOG, BANNER, HOST, PREFIX, arguments


def main() -> None:
    """Serve until the process is ended."""
    options = arguments()
    read_size = options.read_size

    def converse(conn: socket, _address: object) -> None:
        try:
            conn.sendall(BANNER)
            while data := conn.recv(read_size):
                conn.sendall(PREFIX + data)
        except OSError:  # the client is gone
            pass

    StreamServer((HOST, options.port), converse, backlog=BACKLOG).serve_forever()


if __name__ == "__main__":
    main()
