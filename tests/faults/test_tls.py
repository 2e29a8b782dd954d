"""TLS as clients see it: not one byte is lost, however either side ends the stream."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.scale import Scale
from tests.support.certificates import Authority, self_signed_pem
from tests.support.clients import PREFIX, connect, numbered, receive_all, unacknowledged
from tests.support.daemon import CONCURRENT, MODELS, Daemon, Start, nothing_kept, starting
from tests.support.needs import tool
from tests.support.tls_peer import ENDS, VERSIONS, End, Peer, client_context
from tests.support.waiting import PACE, PATIENCE, block_until

# Eight bytes a number: no two windows of it are alike, and none holds a prefix.
# The sizes of what a client sends, in turns.
SIZES = (10, 100, 1000, 1024, 5000, 20_000)
CLIENTS = 3

HOLDING = """
import time
from pathlib import Path

from twisted.internet import reactor


def hold(message: bytes) -> bytes:
    if message == b"hold":
        # With a call that is due, uvloop makes those of other threads before it reads.
        reactor.callLater(0, int)
        Path("held").touch()
        while not Path("go").exists():
            time.sleep(0.01)
    return message
"""


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
    """Return the error in the answer, or an empty string."""
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
    """Fault 3: In TLS 1.2 and 1.3, and in every model, every reply arrives, then close_notify,
    then FIN.
    """
    port, context = running.port, client_context(version)
    faults: list[str] = []
    rounds = scale(ci=24, soak=100_000 // 6)

    def talk() -> None:
        for number in rounds:
            sent = numbered(1_000_000)[8 * (number % 10_000) :][: SIZES[number % len(SIZES)]]
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
    sent = numbered(1_000_000)
    with Peer(running.port) as peer:
        assert not fault(model, sent, peer.exchange(sent, end))
        assert peer.notified


@pytest.mark.parametrize("size", [1, 1000, 20_000, 60_000])
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
@pytest.mark.parametrize("model", ["reactor", "serial"])  # the others' replies come later
def test_what_came_before_a_damaged_record_is_answered(
    daemons: dict[str, Daemon], model: str, version: ssl.TLSVersion, size: int
) -> None:
    """Fault 3: A damaged record destroys no reply that a handler in the event loop has given to
    earlier messages, in the same read or not. Only full records share the fate of the record that
    continues them.
    """
    running = daemons[model]
    for damage in (b"GET / ", b""):
        with nothing_kept(running), Peer(running.port, client_context(version)) as peer:
            intact, behind = (
                peer.encrypted(numbered(1_000_000)[:size]),
                bytearray(peer.encrypted(b"damaged")),
            )
            behind[-1] ^= 1
            peer.socket.sendall(intact + damage + behind)
            came = b""
            with contextlib.suppress(ssl.SSLError):  # the alert
                while data := peer.receive(1):
                    came += data
            assert not fault(model, numbered(1_000_000)[:size], came)
    assert "Traceback" not in running.log


def test_openssl_as_a_client_is_answered(running: Daemon, model: str) -> None:
    command = [tool("openssl"), "s_client", "-connect", f"127.0.0.1:{running.port}", "-quiet"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"happy\n")
        process.stdin.flush()
        assert process.stdout.read(11) == b"OK...happy\n"
        process.terminate()


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_openssl_as_a_client_resumes_by_the_one_ticket_that_it_gets(
    running: Daemon, model: str, tmp_path: Path, version: str
) -> None:
    def shake_hands(*options: str) -> str:
        command = [tool("openssl"), "s_client", "-connect", f"127.0.0.1:{running.port}", *options]
        command += [f"-tls{version.replace('.', '_')}", "-msg", "-ign_eof", "-servername", "host"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"happy\n")
            process.stdin.flush()
            said = b""
            while b"OK...happy" not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
            process.terminate()
        return said.decode(errors="replace")

    session = str(tmp_path / "session")
    first = shake_hands("-sess_out", session)
    again = shake_hands("-sess_in", session)
    assert f"New, TLSv{version}" in first
    assert f"Reused, TLSv{version}" in again
    assert first.count("NewSessionTicket") == 1


def test_socat_as_a_client_gets_the_reply_to_what_it_sent_last(
    running: Daemon, model: str
) -> None:
    command = [tool("socat"), "-t5", "-", f"OPENSSL:127.0.0.1:{running.port},verify=0"]
    done = subprocess.run(command, input=b"happy\n", capture_output=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == (b"OK...happy\n", b"")


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Start a daemon that serves TLS, in a folder of its own."""
    (tmp_path / "server.pem").write_bytes(self_signed_pem())
    with starting(tmp_path) as start:

        def start_secure(*arguments: str) -> Daemon:
            listen = "tls:0:interface=127.0.0.1:certificate=server.pem"
            return start("--listen", listen, "--no-banner", *arguments)

        yield start_secure


@pytest.mark.parametrize("spoken", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "little"])
def test_a_client_that_does_not_shake_hands_is_disconnected_in_time(
    secure: Callable[..., Daemon], spoken: bytes
) -> None:
    """Fault 25: The daemon disconnects it after `--handshake-timeout`; until then it occupies no
    thread and no turn.
    """
    running = secure("--handshake-timeout", "0.6", "--concurrency", "serial")
    with connect(running) as silent:
        silent.sendall(spoken)
        with Peer(running.port) as peer:
            assert peer.exchange(b"happy\n", "both") == b"OK...happy\n"
        assert receive_all(silent) == b""
    running.wait_for("handshake-timeout")


@pytest.mark.parametrize("model", CONCURRENT)
def test_a_client_that_ignores_close_notify_is_disconnected_in_time(
    secure: Callable[..., Daemon], model: str
) -> None:
    """Fault 26: It has two seconds to close after the daemon's close_notify; then it is
    disconnected.
    """
    running = secure("--concurrency", model, "--idle-timeout", "0.5")
    with Peer(running.port) as peer:
        assert peer.receive_all() == b""
        assert peer.notified
        assert peer.at_fin()
        running.wait_for("Disconnected from")


def test_nothing_older_than_tls_1_2_is_spoken_and_nothing_is_renegotiated(
    secure: Callable[..., Daemon],
) -> None:
    """Fault 47: sslscan finds TLS 1.2 and 1.3, and neither renegotiation nor compression; a client
    that renegotiates nevertheless is refused; the daemon accepts no early data.
    """
    running = secure()
    command = [tool("sslscan"), "--no-colour", f"127.0.0.1:{running.port}"]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert re.findall(r"^((?:SSL|TLS)v\S+) +(\w+)$", seen, re.MULTILINE) == [
        ("SSLv2", "disabled"),
        ("SSLv3", "disabled"),
        ("TLSv1.0", "disabled"),
        ("TLSv1.1", "disabled"),
        ("TLSv1.2", "enabled"),
        ("TLSv1.3", "enabled"),
    ]
    assert "Session renegotiation not supported" in seen
    assert "compression enabled" not in seen.lower()
    assert "RENEGOTIATING" in openssl(running, "-tls1_2", finally_say="R")
    running.wait_for("Disconnected from .*: connection lost")
    assert "Max Early Data: 0" in openssl(running, "-tls1_3", finally_say="Q")
    assert "Traceback" not in running.log


def openssl(running: Daemon, *options: str, finally_say: str) -> str:
    """Let `openssl s_client` send a message, then a command letter; return the whole output."""
    command = [tool("openssl"), "s_client", "-connect", f"127.0.0.1:{running.port}", *options]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        print("happy", file=process.stdin, flush=True)
        words = ""
        for line in process.stdout:
            words += line
            if line == "OK...happy\n":
                print(finally_say, file=process.stdin, flush=True)
        return words


@pytest.mark.parametrize("behind", ["nothing", "a handshake"])
@pytest.mark.parametrize(
    "plain",
    [b"happy\n", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\0" * 99, b"\x16" * 9],
    ids=["words", "http", "zeros", "handshakes"],
)
def test_plain_bytes_are_never_taken_for_encrypted_ones(
    guarded: Daemon, plain: bytes, behind: str
) -> None:
    """Fault 48: Plain bytes on a TLS port reach no handler, with a handshake after them or
    without; the connection is closed, and one line of the log says so.
    """
    before = len(guarded.lines)
    peer = Peer(guarded.port)
    with peer.socket:
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.tls.do_handshake()
        peer.socket.sendall(plain + (peer.written() if behind != "nothing" else b""))
        peer.socket.shutdown(socket.SHUT_WR)
        came = receive_all(peer.socket)
    assert came[:1] in (b"", b"\x15")  # nothing, or an alert
    block_until(lambda: len(guarded.lines) >= before + 2)
    connected, disconnected = guarded.lines[before:]
    assert "Connected with" in connected
    assert re.search(r"handshake error: [a-z ]+ \(.*messages: 0", disconnected), disconnected


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[Daemon]:
    """A daemon that hostile clients share."""
    with starting(folder) as start:
        listen = "tls:0:interface=127.0.0.1:certificate=server.pem"
        running = start("--listen", listen)
        assert running.port
        if os.geteuid() == 0:
            running.wait_for("Handlers run as root")  # the last line of the start
        yield running


def certificate_of(port: int) -> bytes:
    """Return the certificate that a new client sees."""
    with Peer(port) as peer:
        shown = peer.tls.getpeercert(binary_form=True)
        assert shown
        return shown


def test_certificates_are_exchanged_under_load_and_nobody_notices(
    secure: Callable[..., Daemon], tmp_path: Path, scale: Scale
) -> None:
    """Fault 66: After SIGHUP new clients see the new certificate; no connection is dropped, and
    none is refused. A key that cannot be used changes nothing, and the log says why.
    """
    running = secure("--max-connections-per-address", "0")
    port, over, faults = running.port, threading.Event(), []

    def talk(stay: bool) -> None:
        try:
            while not over.is_set():
                with Peer(port) as peer:
                    for number in range(1_000_000 if stay else 3):
                        message = b"%d\n" % number
                        peer.send(message)
                        answer = peer.receive(len(PREFIX + message))
                        assert answer == PREFIX + message, answer
                        if over.wait(PACE):
                            break
        except Exception as error:
            faults.append(repr(error))

    threads = [threading.Thread(target=talk, args=(stay,)) for stay in (True, True, False)]
    for thread in threads:
        thread.start()
    try:
        seen = {certificate_of(port)}
        for number in scale(ci=6, soak=2000):
            (tmp_path / "new.pem").write_bytes(self_signed_pem())
            (tmp_path / "new.pem").replace(tmp_path / "server.pem")
            running.lines.clear()  # or thousands of them are looked through each time
            running.signal(signal.SIGHUP)
            running.wait_for("Reloaded; changed")
            seen.add(certificate_of(port))
            assert len(seen) == number + 2
        good = (tmp_path / "server.pem").read_bytes()
        certificate, _, _ = good.partition(b"-----BEGIN PRIVATE")
        (tmp_path / "server.pem").write_bytes(certificate)
        running.signal(signal.SIGHUP)
        running.wait_for("Reload refused, nothing has changed: .*server.pem holds no private key")
        assert certificate_of(port) in seen
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert not faults


def test_a_certificate_may_be_rewritten_while_it_is_read(
    secure: Callable[..., Daemon], tmp_path: Path, scale: Scale
) -> None:
    """Fault 80: At each SIGHUP the daemon takes the content that a file had at one moment, or
    changes nothing and says why in one line; clients are served meanwhile.
    """
    running = secure("--max-connections-per-address", "0")
    port, over, path = running.port, threading.Event(), tmp_path / "server.pem"
    pairs = [path.read_bytes(), *(self_signed_pem() for _ in range(3))]

    def rewrite() -> None:
        for pair in itertools.cycle(pairs):  # as `cat >` would, and not by renaming
            with path.open("wb", buffering=0) as file:
                for start in range(0, len(pair), 100):
                    file.write(pair[start : start + 100])
            if over.is_set():
                return

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in scale(ci=60, soak=20_000):
            running.lines.clear()
            running.signal(signal.SIGHUP)
            running.wait_for("Reloaded; changed|Reload refused, nothing has changed: .*server.pem")
            assert certificate_of(port) in map(der_of, pairs)
            assert "Traceback" not in running.log
            assert "Error:" not in running.log  # an unexpected error of Python's
    finally:
        over.set()
        writer.join(PATIENCE)
    running.lines.clear()
    running.signal(signal.SIGHUP)
    running.wait_for("Reloaded; changed")
    assert certificate_of(port) == der_of(path.read_bytes())


def der_of(pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.decode().partition("-----BEGIN PRIVATE")[0])


@pytest.mark.parametrize("what", ["none", "unreadable", "another's"])
def test_a_daemon_without_a_usable_key_does_not_start(
    daemon: Start, tmp_path: Path, what: str
) -> None:
    """Fault 66: At the start a key that cannot be used gives one line, and exit code 1."""
    (tmp_path / "server.pem").write_bytes(self_signed_pem())
    key = tmp_path / "key.pem"
    if what == "unreadable":
        key.mkdir()  # the tests may run as root, who reads every file
    elif what == "another's":
        key.write_bytes(Authority().key)
    running = daemon("--listen", f"tls:0:certificate=server.pem:key={key}")
    running.wait()
    assert running.process.returncode == 1
    expected = {
        "none": "cannot read {}: No such file or directory",
        "unreadable": "cannot read {}: Is a directory",
        "another's": f"{{}} is not the key of the certificate in {tmp_path}/server.pem: name the "
        "two that were made together",
    }[what].format(key)
    assert [line for line in running.lines if line.endswith(expected)], running.log
    assert "Traceback" not in running.log


@pytest.mark.parametrize("model", CONCURRENT)
def test_at_sigterm_what_had_come_is_answered(secure: Callable[..., Daemon], model: str) -> None:
    """Fault 4: Over TLS, too, every message that arrived before SIGTERM is answered."""
    running = secure("--concurrency", model, "--drain-timeout", "600")
    sent = numbered(60_000)
    with Peer(running.port) as peer, Peer(running.port) as halfway:
        # Half a record is no message: the drain does not wait for the rest.
        halfway.socket.sendall(halfway.encrypted(b"happy\n")[:-1])
        for _ in range(20):  # as fast as it goes, so that much is under way
            peer.send(sent[:3000])
        peer.send(sent)
        block_until(lambda: not unacknowledged(peer.socket))
        running.signal(signal.SIGTERM)
        assert peer.receive_all().replace(PREFIX, b"") == sent[:3000] * 20 + sent
        assert peer.notified
        assert halfway.receive_all() == b""
        assert halfway.notified
    running.wait()


@pytest.mark.parametrize("model", ["reactor", "serial"])
def test_at_sigterm_what_had_come_with_the_end_of_a_handshake_is_answered(
    secure: Callable[..., Daemon], tmp_path: Path, model: str
) -> None:
    """Fault 4: This holds over TLS 1.3, too, if the first message arrives with the end of the
    handshake, and the daemon has read neither.
    """
    (tmp_path / "holding.py").write_text(HOLDING)
    options = ("--listen", "tcp:0", "--handler", "holding:hold", "--stall-threshold", "0")
    running = secure("--concurrency", model, *options, "--drain-timeout", "600")
    ports = [int(port) for port in running.wait_for(r"starting on (\d+)", 2)]
    peer, mute = Peer(ports[0], client_context(ssl.TLSVersion.TLSv1_3)), Peer(ports[0])
    with peer.socket, mute.socket:
        finished = peer.finished()
        mute.socket.sendall(mute.hello()[:-1])
        holder = connect(ports[1])
        holder.sendall(b"hold")
        block_until((tmp_path / "held").exists)
        # From here on the daemon reads nothing, until it drains.
        peer.socket.sendall(finished + peer.encrypted(b"happy"))
        block_until(lambda: not unacknowledged(peer.socket))
        running.signal(signal.SIGTERM)
        running.wait_for("Received SIGTERM")
        (tmp_path / "go").touch()
        holder.close()
        assert peer.receive_all() == b"happy"
        assert peer.notified
    running.wait()


def _fill(peers: list[Peer]) -> None:
    """Send more than the kernels hold, either way, and read nothing."""
    left = {peer: memoryview(peer.encrypted(b"x" * 12_000_000)) for peer in peers}
    while writable := select.select([], [peer.socket for peer in peers], [], 0.5)[1]:
        for peer in peers:
            if peer.socket in writable:
                left[peer] = left[peer][peer.socket.send(left[peer][: 1 << 16]) :]
    assert all(left.values())


@pytest.mark.parametrize("model", CONCURRENT)
def test_a_client_that_never_reads_costs_little(secure: Callable[..., Daemon], model: str) -> None:
    """Fault 13: Over TLS, too, the daemon stops reading from it."""
    running = secure("--concurrency", model)
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(Peer(running.port, narrow=True)) for _ in range(10)]
        reader, first, second, *peers = opened
        _fill([first, second])  # memory that the daemon takes once is not theirs
        before = running.resident
        _fill(peers)
        # Each costs 100 to 320 KiB, by the model and the reactor; it has sent 12 MB.
        assert running.resident - before < len(peers) * 512 * 1024
        assert reader.exchange(b"happy\n", "both") == b"OK...happy\n"
