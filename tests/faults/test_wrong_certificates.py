"""Real clients and the certificates of `badtls:`: the words of each are in docs/badtls.md."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from echod.tls.mistakes import Mistake
from tests.support.daemon import REACTOR, TWISTD, Daemon, Start, starting
from tests.support.needs import needs_root, not_here, tool
from tests.support.programs import run
from tests.support.waiting import PATIENCE, block_until

PAGE = Path(__file__).parent.parent.parent / "docs" / "badtls.md"

HELLO = """
from echod import Close

def hello(message):
    return Close(b"HTTP/1.0 200 OK\\r\\n\\r\\nhello\\n")
"""
REQUEST = b"GET / HTTP/1.0\r\n\r\n"

# Prints the error of a handshake and of a request, or "no error".
GO = """
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
)

func main() {
	file, _ := os.ReadFile("ca.pem")
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(file)
	config := &tls.Config{RootCAs: authorities, ServerName: os.Args[2]}
	connection, err := tls.Dial("tcp", os.Args[1], config)
	if err == nil {
		connection.Write([]byte("GET / HTTP/1.0\\r\\n\\r\\n"))
		_, err = connection.Read(make([]byte, 1))
	}
	if err == nil {
		fmt.Println("no error")
	} else {
		fmt.Println(err)
	}
}
"""

Client = Callable[[Path, int, str], str]


def with_curl(folder: Path, port: int, host: str, *options: str) -> str:
    url = f"https://{host}:{port}"
    command = (tool("curl"), "--silent", "--show-error", "--cacert", "ca.pem", *options, url)
    done = run(folder, *command)
    if done.returncode == 0:
        assert done.stdout == "hello\n"
        return "no error"
    return done.stderr.splitlines()[0].removeprefix("curl: ")


def with_openssl(folder: Path, port: int, host: str, *options: str) -> str:
    done = subprocess.run(
        [
            *(tool("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-servername", host),
            *("-CAfile", "ca.pem", "-verify_return_error", "-verify_hostname", host),
            *("-ign_eof", *options),
        ],
        cwd=folder,
        input=REQUEST,
        capture_output=True,
        timeout=PATIENCE,
    )
    said, error = done.stdout.decode(), done.stderr.decode()
    if found := re.search(r"verify error:num=\d+:(.*)", error):
        assert done.returncode == 1
        return found[1]
    if found := re.search(r":error:\w+:[^:]*:[^:]*:(.*?):", error):
        return found[1]
    assert "hello\n" in said
    assert "Verification: OK" in said
    return "no error"


def with_python(folder: Path, port: int, host: str) -> str:
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=host) as secure:
                secure.sendall(REQUEST)
                assert secure.recv(1) == b"H"
        except ssl.SSLError as error:
            found = re.fullmatch(r"\[SSL: \w+\] (.*) \(_ssl\.c:\d+\)", str(error.args[1]))
            assert found
            return found[1]
    return "no error"


def with_go(folder: Path, port: int, host: str) -> str:
    if shutil.which("go") is None:
        not_here("there is no Go")
    if not (folder / "client").exists():
        (folder / "client.go").write_text(GO)
        environment = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "GOFLAGS": "-mod=mod"}
        built = run(folder, tool("go"), "build", "client.go", env=environment, timeout=120)
        assert built.returncode == 0, built.stderr
    return run(folder, folder / "client", f"127.0.0.1:{port}", host).stdout.strip()


CLIENTS: dict[str, Client] = {
    "curl": with_curl,
    "openssl s_client": with_openssl,
    "Python": with_python,
    "Go": with_go,
}


def table() -> dict[str, dict[str, str]]:
    """Return the words of each client, by the name of the certificate, from the page."""
    rows = [
        [cell.strip().strip("`") for cell in row.strip("|").split("|")]
        for row in PAGE.read_text().splitlines()
        if row.startswith("|") and row.count("|") == 7
    ]
    _, _, *clients = rows[0]
    return {name: dict(zip(clients, said, strict=True)) for name, _, *said in rows[2:]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mistakes")
    (path / "hello.py").write_text(HELLO)
    return path


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Daemon]:
    """A daemon with certificates with mistakes."""
    with starting(folder) as start:
        listen = "badtls:0:ca=ca.pem:client=client.pem"
        running = start("--listen", listen, "--handler", "hello:hello", "--no-banner")
        running.wait_for(r"badtls: the authority is in \S+/ca\.pem; its certificates are good\.")
        yield running


def test_the_page_has_each_certificate_and_client() -> None:
    assert list(table()) == [one.value for one in Mistake]
    assert all(list(said) == list(CLIENTS) for said in table().values())


@pytest.mark.timeout(240)  # Go compiles its library once
@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_says_what_the_page_says(running: Daemon, folder: Path, client: str) -> None:
    """Fault 142: curl, openssl, Python and Go find in each certificate the mistake that
    docs/badtls.md names, or accept it, and say so in the words there.
    """
    said = {name: CLIENTS[client](folder, running.port, f"{name}.localhost") for name in table()}
    for name, words in table().items():
        pattern = re.escape(words[client]).replace(r"\.\.\.", ".*")
        assert re.fullmatch(pattern, said[name]), (name, said[name])


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_weak_key_will_do_at_a_low_level(running: Daemon, folder: Path, level: int) -> None:
    host, ciphers = "weak-key.localhost", f"DEFAULT@SECLEVEL={level}"
    curl = with_curl(folder, running.port, host, "--ciphers", ciphers)
    openssl = with_openssl(folder, running.port, host, "-cipher", ciphers)
    assert [said == "no error" for said in (curl, openssl)] == [level < 2] * 2


def test_a_client_with_its_certificate_is_served(running: Daemon, folder: Path) -> None:
    """Fault 142: A client that shows the certificate of `client=` is served by the host that wants
    one.
    """
    host = "wants-client-certificate.localhost"
    assert with_curl(folder, running.port, host, "--cert", "client.pem") == "no error"
    assert with_openssl(folder, running.port, host, "-cert", "client.pem") == "no error"
    assert (folder / "client.pem").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "arguments",
    [
        ("--listen", "badtls:unix:socket"),
        ("--listen", "proxy:badtls:0"),
        ("--listen", "badtls:0:interface=0.0.0.0"),
        ("--listen", "badtls:0", "--concurrency", "thread-per-connection"),
    ],
)
def test_its_file_is_there_while_it_runs(
    daemon: Start, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """Fault 142: The authority's certificate is in a temporary file, which the daemon removes."""
    running = daemon(*arguments)
    path = Path(running.wait_for(r"badtls: the authority is in (\S+);")[0])
    assert path.read_text().count("BEGIN") == 1
    assert "PRIVATE" not in path.read_text()
    running.stop()
    assert not path.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--listen", "badtls:0"),
        ("--listen", "tls:0:certificate=cert.pem", "--fault", "wrong-certificate"),
    ],
)
def test_its_file_is_removed_by_another_user_too(
    daemon: Start, tmp_path: Path, certificate: Path, arguments: tuple[str, ...]
) -> None:
    """Fault 142: With `--uid`, too, the daemon removes the temporary file at its end."""
    needs_root("become another user")
    (tmp_path / "cert.pem").write_bytes(certificate.read_bytes())
    running = daemon(*arguments, options=("--uid=65534", "--gid=65534"))
    path = Path(running.wait_for(r"the authority is in ([^;\s]+)")[0])
    assert path.owner() == "nobody"
    running.stop()
    assert not path.exists()


def test_it_is_refused_where_it_cannot_work(tmp_path: Path) -> None:
    """Fault 142: The start and `--check-config` refuse `badtls:` where it cannot work, in one
    line, and write no file.
    """
    (tmp_path / "key.pem").write_text("a key")
    for arguments, why in (
        (("--status", "badtls:0"), "its clients would not trust its certificates; use tls:"),
        (("--listen", "badtls:0:ca=key.pem"), "no badtls: listener has written it: name another"),
        (("--listen", "badtls:0:ca=none/ca.pem"), "there is no folder"),
    ):
        for more in ((), ("--check-config",)):
            done = run(tmp_path, *TWISTD, *REACTOR, "echod", "--port", "0", *arguments, *more)
            assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
            assert why in done.stderr
    checked = run(tmp_path, *TWISTD, "echod", "--listen", "badtls:0:ca=ca.pem", "--check-config")
    assert checked.returncode == 0
    assert [each.name for each in tmp_path.iterdir()] == ["key.pem"]


def test_it_outlives_a_reload(running: Daemon, folder: Path) -> None:
    before = (folder / "ca.pem").read_bytes()
    running.signal(1)
    running.wait_for("Reloaded; changed: nothing")
    assert (folder / "ca.pem").read_bytes() == before
    block_until(lambda: with_python(folder, running.port, "good.localhost") == "no error")
    assert with_python(folder, running.port, "expired.localhost") != "no error"


def test_nothing_is_imported_for_it_unless_it_is_asked_for(tmp_path: Path) -> None:
    code = """
import sys
from echod.cli.serve import serve
try:
    serve(["echo", "--listen", "tcp:0", "--check-config"])
except SystemExit:
    pass
print({"echod.tls.mistakes", "echod.listening.badtls"} & sys.modules.keys())
"""
    done = run(tmp_path, TWISTD[0].with_name("python"), "-c", code)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr
