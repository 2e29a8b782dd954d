"""A daemon and a command import only the modules that they use: others would slow the start."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.waiting import PATIENCE

SPY = """
import sys

def spy(message):
    return " ".join(sys.modules).encode()
"""
FAULTS = {"echod.faults", "echod.faults.grammar", "echod.connections.faulty"}


def modules_of(daemon: Any, tmp_path: Path, *arguments: str) -> set[str]:
    """Return the modules that a real daemon has imported once it has served a client."""
    (tmp_path / "spying.py").write_text(SPY)
    here = daemon("--port", "0", "--handler", "spying:spy", *arguments, executed=True)
    with socket.create_connection(("127.0.0.1", here.port), PATIENCE) as client:
        client.sendall(b"?")
        client.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    here.stop()
    return set(received.decode().split())


def test_a_daemon_imports_its_faults_only_if_it_is_given_some(daemon: Any, tmp_path: Path) -> None:
    """Fault 136: Without `--fault`, no module of the faults is even imported."""
    without = modules_of(daemon, tmp_path)
    assert "echod.connections.factory" in without
    assert not {name for name in without if name.startswith("echod.faults")}
    assert not without & FAULTS
    assert not without & {"echod.dialling", "echod.journal", "echod.connections.recording"}
    assert modules_of(daemon, tmp_path, "--fault", "delay:time=0.001") >= FAULTS


def test_the_list_of_handlers_needs_no_endpoints_and_no_tls() -> None:
    program = (
        "import sys; from echod.cli import main; main(['handlers']); "
        "print(' '.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "forward" in done.stdout
    modules = set(done.stderr.split())
    assert "echod.handlers.forward" in modules
    unused = {"echod.dialling", "echod.tls", "twisted.internet.endpoints", "OpenSSL"}
    assert not modules & unused
