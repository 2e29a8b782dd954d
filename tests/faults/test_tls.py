"""TLS as clients see it: not one byte lost, whoever ends the stream and how."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import self_signed_pem
from tests.daemon import (
    MODELS,
    PATIENCE,
    Daemon,
    nothing_kept,
    starting,
    tool,
)
from tests.faults.scale import Scale
from tests.tls_peer import ENDS, VERSIONS, End, Peer, client_context

PREFIX = b"OK..."
# Eight bytes a number: no two windows of it are alike, and none holds a prefix.
STREAM = b"".join(b"%07d\n" % number for number in range(125_001))
# The sizes of what a client sends, in turns.
SIZES = (10, 100, 1000, 1024, 5000, 20_000)
CLIENTS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the daemons run, with a certificate."""
    path = tmp_path_factory.mktemp("tls")
    (path / "server.pem").write_bytes(self_signed_pem())
    return path


@pytest.fixture(scope="module")
def daemons(folder: Path) -> Iterator[dict[str, Daemon]]:
    with starting(folder) as start:
        started = {
            model: start(
                *("--listen", "tls:0:interface=127.0.0.1:certificate=server.pem"),
                *("--concurrency", model, "--no-banner"),
            )
            for model in MODELS
        }
        for running in started.values():  # let each open what it opens once
            for _ in range(2):
                with Peer(running.port) as peer:
                    peer.exchange(b"x", "both")
        yield started


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def running(daemons: dict[str, Daemon], model: str) -> Iterator[Daemon]:
    """A daemon in each model that serves TLS."""
    with nothing_kept(daemons[model]):
        yield daemons[model]
    assert "Traceback" not in daemons[model].log


def fault(model: str, sent: bytes, came: bytes) -> str:
    """Return what is wrong with the answer, or an empty string."""
    if model == "serial":
        sent = sent[:1024]  # one message
    plain = came.replace(PREFIX, b"")
    if plain == sent and came.startswith(PREFIX):
        return ""
    return f"{len(sent)} bytes sent, {len(plain)} came back: {came[:40]!r}"


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_no_reply_is_lost_however_the_client_ends_its_stream(
    running: Daemon, model: str, version: ssl.TLSVersion, end: End, scale: Scale
) -> None:
    """Fault 3: in TLS 1.2 and 1.3, and in every model, every reply arrives, then close_notify,
    then FIN.
    """
    port, context = running.port, client_context(version)
    faults: list[str] = []
    rounds = scale(ci=24, soak=100_000 // 6)

    def talk() -> None:
        for number in rounds:
            sent = STREAM[8 * (number % 10_000) :][: SIZES[number % len(SIZES)]]
            with Peer(port, context) as peer:
                if wrong := fault(model, sent, peer.exchange(sent, end)):
                    faults.append(wrong)
                if not (peer.notified and peer.at_fin()):
                    faults.append("the answer ends without close_notify and FIN")

    threads = [threading.Thread(target=talk) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


@pytest.mark.parametrize("end", ENDS)
def test_a_megabyte_is_answered_in_full(running: Daemon, model: str, end: End) -> None:
    sent = STREAM[:1_000_000]
    with Peer(running.port) as peer:
        assert not fault(model, sent, peer.exchange(sent, end))
        assert peer.notified


def test_openssl_as_a_client_is_answered(running: Daemon, model: str) -> None:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{running.port}", "-quiet"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"happy\n")
        process.stdin.flush()
        assert process.stdout.read(11) == b"OK...happy\n"
        process.terminate()


def test_socat_as_a_client_gets_the_reply_to_what_it_sent_last(
    running: Daemon, model: str
) -> None:
    command = [tool("socat"), "-t5", "-", f"OPENSSL:127.0.0.1:{running.port},verify=0"]
    done = subprocess.run(command, input=b"happy\n", capture_output=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == (b"OK...happy\n", b"")
