"""The real haproxy, in front of a daemon."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.namespaces import within
from tests.support.needs import tool
from tests.support.waiting import PATIENCE

DEFAULTS = """
global
    log stdout format raw local0
defaults
    mode tcp
    log global
    timeout connect 5s
    timeout client 30s
    timeout server 30s
"""


class HAProxy:
    """A running haproxy.

    Attributes:
        port: where it accepts clients.
    """

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self._log = log

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE)

    @property
    def log(self) -> str:
        """The lines that it has logged."""
        return self._log.read_text()


@contextlib.contextmanager
def haproxy(directory: Path, text: str, network: Path | None = None) -> Iterator[HAProxy]:
    """Run haproxy.

    Args:
        directory: where its configuration is kept.
        text: the configuration; {bind} is where it listens, on any port of 127.0.0.1.
        network: the file of the network namespace that it runs in, if not in that of the tests.
    """
    command = tool("haproxy")
    file = directory / "haproxy.cfg"
    with (
        within(network, lambda: socket.create_server(("127.0.0.1", 0))) as listener,
        (directory / "haproxy.log").open("w") as log,
    ):
        descriptor = listener.fileno()
        file.write_text(text.replace("{bind}", f"fd@{descriptor}"))
        process = within(
            network,
            lambda: subprocess.Popen(
                [command, "-db", "-f", file],
                pass_fds=[descriptor],
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            ),
        )
        try:
            yield HAProxy(listener.getsockname()[1], directory / "haproxy.log")
            assert process.poll() is None, (directory / "haproxy.log").read_text()
        finally:
            process.terminate()
            process.wait(PATIENCE)
