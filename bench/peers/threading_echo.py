"""The server that every course ends with: an accept loop, and a thread for each connection."""

from __future__ import annotations

import socket
import threading

from bench.peers.wire import BACKLOG, BANNER, HOST, PREFIX, arguments


def converse(conn: socket.socket, read_size: int) -> None:
    """Hold one connection's conversation."""
    with conn:
        try:
            conn.sendall(BANNER)
            while data := conn.recv(read_size):
                conn.sendall(PREFIX + data)
        except OSError:  # the client is gone
            pass


def main() -> None:
    """Serve until the process is ended."""
    options = arguments()
    with socket.create_server((HOST, options.port), backlog=BACKLOG) as listener:
        while True:
            conn, _ = listener.accept()
            threading.Thread(target=converse, args=(conn, options.read_size), daemon=True).start()


if __name__ == "__main__":
    main()
