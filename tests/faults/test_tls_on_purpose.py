"""Real clients and the faults of TLS: the words of each are in docs/faults.md."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.daemon import TWISTD, Start
from tests.support.needs import tool
from tests.support.programs import run
from tests.support.waiting import PATIENCE

PAGE = Path(__file__).parent.parent.parent / "docs" / "faults.md"
AUTHORITY = Authority("an authority")

HELLO = """
from echod import Close

def hello(message):
    return Close(b"HTTP/1.0 200 OK\\r\\n\\r\\nhello\\n")
"""
REQUEST = b"GET / HTTP/1.0\r\n\r\n"


def table() -> dict[str, tuple[str, ...]]:
    """Return the words of curl, openssl and Python, by the text of the fault, from the page."""
    text = PAGE.read_text().partition("## Faults of TLS\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip().strip("`") for cell in row.strip("|").split("|")]
        for row in text.splitlines()
        if row.startswith("| `")
    ]
    return {fault: tuple(said) for fault, _, *said in rows}


FAULTS = table()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hello.py").write_text(HELLO)
    (tmp_path / "cert.pem").write_bytes(AUTHORITY.issue("shop", hosts=["shop.localhost"]))
    (tmp_path / "ca.pem").write_bytes(AUTHORITY.certificate)
    return tmp_path


def with_curl(folder: Path, port: int, patience: float = PATIENCE) -> str:
    url = f"https://shop.localhost:{port}"
    options = ("--silent", "--show-error", "--max-time", str(patience), "--cacert", "ca.pem")
    done = run(folder, tool("curl"), *options, url, timeout=2 * PATIENCE)
    if done.returncode == 0:
        assert done.stdout == "hello\n"
        return "no error"
    return done.stderr.splitlines()[0].removeprefix("curl: ")


def with_openssl(folder: Path, port: int) -> str:
    done = subprocess.run(
        [
            *(tool("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-quiet"),
            *("-servername", "shop.localhost", "-verify_hostname", "shop.localhost"),
            *("-CAfile", "ca.pem", "-verify_return_error"),
        ],
        cwd=folder,
        input=REQUEST,
        capture_output=True,
        timeout=PATIENCE,
    )
    said = done.stderr.decode()
    for pattern in (
        r"verify error:num=\d+:(.*)",
        r":error:\w+:[^:]*:[^:]*:(.*?):",
        r"(\w+:errno=.*)",
    ):
        if found := re.search(pattern, said):
            return found[1]
    return "no error"


def with_python(folder: Path, port: int, patience: float = PATIENCE) -> str:
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as plain:
        plain.settimeout(patience)
        try:
            with context.wrap_socket(plain, server_hostname="shop.localhost") as secure:
                secure.sendall(REQUEST)
                while secure.recv(100):
                    pass
        except OSError as error:
            return re.sub(r"(\[SSL: \w+\] | \(_ssl\.c:\d+\)|_ssl\.c:\d+: )", "", str(error))
    return "no error"


@pytest.mark.parametrize("fault", FAULTS)
def test_clients_say_what_the_page_says(daemon: Start, folder: Path, fault: str) -> None:
    """Fault 143: curl and Python say of each fault of TLS what docs/faults.md says."""
    listen = "tls:0:interface=127.0.0.1:certificate=cert.pem"
    running = daemon(
        "--listen", listen, "--handler", "hello:hello", "--no-banner", "--fault", fault
    )
    if fault.startswith("wrong"):  # curl and Python know the authority of the listener alone
        path = Path(running.wait_for(r"wrong-certificate: the authority is in (\S+)")[0])
        (folder / "ca.pem").write_bytes(path.read_bytes())
    stalls = fault == "stall-handshake"
    patience = 1 if stalls else PATIENCE
    said = [
        with_curl(folder, running.port, patience),
        "no end" if stalls else with_openssl(folder, running.port),
        with_python(folder, running.port, patience),
    ]
    for words, came in zip(FAULTS[fault], said, strict=True):
        assert re.fullmatch(re.escape(words).replace(r"\.\.\.", ".*"), came), (words, came)
    name = fault.partition(":")[0]
    running.wait_for(rf"faults: {name}\)", 2)


def test_the_page_has_every_fault_of_tls() -> None:
    names = {fault.partition(":")[0] for fault in FAULTS}
    assert names == {
        *("stall-handshake", "cut-handshake", "wrong-certificate", "no-close-notify", "alert")
    }


def test_the_authority_of_a_wrong_certificate_is_in_its_file(daemon: Start, folder: Path) -> None:
    """Fault 143: `ca=` names the file for the authority, by which a client finds one mistake; only
    the client that asks for the host of `sni=` gets the certificate, and SIGHUP changes nothing.
    """
    running = daemon(
        *("--listen", "tls:0:interface=127.0.0.1:certificate=cert.pem", "--no-banner"),
        *("--fault", "wrong-certificate:name=expired,sni=bad.localhost,ca=bad.pem"),
        *("--handler", "hello:hello"),
    )
    port = running.port
    for _ in range(2):
        url = f"https://bad.localhost:{port}"
        said = run(folder, tool("curl"), "-sS", "--cacert", "bad.pem", url).stderr
        assert said.startswith("curl: (60) SSL certificate problem: certificate has expired\n")
        assert with_curl(folder, port) == "no error"
        running.signal(signal.SIGHUP)
        running.wait_for("Reloaded; changed: nothing")
        running.lines.clear()
    assert "PRIVATE" not in (folder / "bad.pem").read_text()


def test_a_file_that_cannot_be_written_is_an_error_of_the_start(folder: Path) -> None:
    """Fault 143: A file for the authority that would overwrite another is refused in one line."""
    (folder / "key.pem").write_text("a key")
    for more in ((), ("--check-config",)):
        done = run(
            folder,
            *(*TWISTD, "echod", "--listen", "tls:0:certificate=cert.pem"),
            *("--fault", "wrong-certificate:ca=key.pem", *more),
        )
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert "--fault wrong-certificate: ca=" in done.stderr
        assert (folder / "key.pem").read_text() == "a key"


FIELDS = ("tcp.flags.fin", "tcp.flags.reset", "tls.record.content_type", "tls.alert_message.desc")


@pytest.mark.parametrize(
    ("fault", "alert", "ends_by"),
    [("alert:which=access_denied", "49", "fin"), ("cut-handshake:end=rst", "", "reset")],
)
def test_the_wire_shows_the_fault(
    daemon: Start, folder: Path, fault: str, alert: str, ends_by: str
) -> None:
    """Fault 143: tshark sees the alert, the FIN and the reset in the packets of the server."""
    listen = "tls:0:interface=127.0.0.1:certificate=cert.pem"
    running = daemon("--listen", listen, "--fault", fault)
    options = [option for field in FIELDS for option in ("-e", field)]
    over = threading.Event()

    def connect() -> None:
        while not over.wait(0.1):  # tshark takes a while to begin
            with_python(folder, running.port)

    connecting = threading.Thread(target=connect)
    with subprocess.Popen(
        [
            *(tool("tshark"), "-i", "lo", "-l", "-T", "fields", *options),
            *("-f", f"tcp src port {running.port}", "-E", "separator=;"),
            *("-d", f"tcp.port=={running.port},tls"),  # a port that it knows nothing of
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as tshark:
        assert tshark.stdout is not None
        assert tshark.stderr is not None
        connecting.start()
        try:
            packets: list[list[str]] = []
            for row in tshark.stdout:
                packets.append(row.strip("\n").split(";"))
                # From the packet that accepts a client on.
                if "1" in packets[-1][:2] and len(packets) > 2:
                    break
        finally:
            over.set()
            connecting.join()
            tshark.terminate()
            said = tshark.stderr.read()
    assert packets, said
    fin, reset, *_ = packets[-1]
    assert (fin == "1", reset == "1") == (ends_by == "fin", ends_by == "reset")
    assert any(one[3] == alert for one in packets)
