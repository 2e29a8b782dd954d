"""Many conversations through `forward`, by real daemons: nothing is lost."""

from __future__ import annotations

import random
import socket
import threading

from tests.faults.scale import Scale
from tests.support.clients import connect, receive_all
from tests.support.daemon import Start


def test_many_half_closed_conversations_through_forward_lose_nothing(
    daemon: Start, scale: Scale
) -> None:
    """Fault 150: Of conversations of 10 B to 1 MB, each reply arrives whole."""
    served = daemon("--handler", "plain-echo")
    running = daemon("--handler", f"forward:to=127.0.0.1:{served.port}")
    numbers = random.Random(13)
    data = numbers.randbytes(1_000_000)
    for _ in scale(ci=300, soak=100_000):
        size = int(10 ** numbers.uniform(1, 6))
        with connect(running) as client:
            sending = threading.Thread(target=_send, args=(client, data[:size]))
            sending.start()
            came = receive_all(client)
            sending.join()
        assert came == data[:size]
    assert "Traceback" not in running.log + served.log
    assert "Cannot forward" not in running.log


def _send(client: socket.socket, data: bytes) -> None:
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)
