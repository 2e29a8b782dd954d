"""An accept loop, and a thread for each connection, which answers one message after the other."""

from __future__ import annotations

import socket
import threading

from bench.peers.framed import Cut, Frame, framing
from bench.peers.wire import BACKLOG, HOST, PREFIX, arguments

READ_SIZE = 64 * 1024


def converse(conn: socket.socket, cut: Cut, frame: Frame, banner: bytes) -> None:
    """Hold one connection's conversation."""
    rest = b""
    with conn:
        try:
            conn.sendall(banner)
            while data := conn.recv(READ_SIZE):
                messages, rest = cut(rest + data)
                for message in messages:
                    # At once: the next message may take long.
                    conn.sendall(frame(PREFIX + message))
        except (OSError, ValueError):  # the client is gone, or sends nonsense
            pass


def main() -> None:
    """Serve until the process is ended."""
    how = framing()
    with socket.create_server((HOST, arguments().port), backlog=BACKLOG) as listener:
        while True:
            conn, _ = listener.accept()
            # Else the kernel keeps the second reply of a read back until the client has
            # acknowledged the first one: for 40 ms, which saves CPU.
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=converse, args=(conn, *how), daemon=True).start()


if __name__ == "__main__":
    main()
