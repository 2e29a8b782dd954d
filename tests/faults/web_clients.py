"""Clients that ask for a page, by HTTP or HTTPS, and say what is wrong with the server."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path

from tests.support.needs import not_here, tool
from tests.support.programs import run
from tests.support.waiting import PATIENCE

REQUEST = b"GET / HTTP/1.1\r\nHost: shop.localhost\r\nConnection: close\r\n\r\n"

NO_ERROR = "no error"

# Python 3.11.2, which Debian 12 has, says of an end of the stream in a handshake what others say
# of close_notify.
_OTHER_WORDS = (
    {
        "SSLZeroReturnError: TLS/SSL connection has been closed (EOF)": (
            "SSLEOFError: EOF occurred in violation of protocol"
        )
    }
    if sys.version_info < (3, 11, 7)
    else {}
)

# A page: its header has 38 bytes, and its body 7.
HANDLER = """
from echod import Close

def hello(message):
    return Close(b"HTTP/1.1 200 OK\\r\\nContent-Length: 7\\r\\n\\r\\nhello\\r\\n")
"""

GO = """
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

func get(url, place, from string, patience time.Duration) error {
	file, _ := os.ReadFile("ca.pem")
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(file)
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, place)
		},
		TLSClientConfig: &tls.Config{RootCAs: authorities},
		DisableKeepAlives: true,
	}
	client := http.Client{Transport: transport, Timeout: patience}
	answer, err := client.Get(url)
	if err == nil {
		_, err = io.ReadAll(answer.Body)
	}
	return err
}

func main() {
	patience, _ := time.ParseDuration(os.Args[4])
	if err := get(os.Args[1], os.Args[2], os.Args[3], patience); err != nil {
		fmt.Println(err)
	} else {
		fmt.Println("no error")
	}
}
"""

# (folder, port, source address, whether over TLS, patience in seconds): the words.
Client = Callable[[Path, int, str, bool, float], str]


def url_of(port: int, secure: bool) -> str:
    return f"{'https' if secure else 'http'}://shop.localhost:{port}"


def with_curl(folder: Path, port: int, source: str, secure: bool, patience: float) -> str:
    options = ("--silent", "--show-error", "--max-time", str(patience), "--cacert", "ca.pem")
    command = (
        tool("curl"),
        *options,
        "--output",
        "/dev/null",
        "--interface",
        source,
        url_of(port, secure),
    )
    done = run(folder, *command, timeout=2 * PATIENCE)
    return done.stderr.splitlines()[0].removeprefix("curl: ") if done.returncode else NO_ERROR


def with_openssl(folder: Path, port: int, source: str, secure: bool, patience: float) -> str:
    command = (
        *(tool("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-quiet"),
        *("-bind", source, "-servername", "shop.localhost", "-CAfile", "ca.pem"),
        *("-verify_hostname", "shop.localhost", "-verify_return_error"),
    )
    try:
        done = subprocess.run(
            command, cwd=folder, input=REQUEST, capture_output=True, timeout=patience
        )
    except subprocess.TimeoutExpired:
        return "no end"
    said = done.stderr.decode()
    for pattern in (
        r"verify error:num=\d+:(.*)",
        r":error:\w+:[^:]*:[^:]*:(.*?):",
        r"(\w+:errno=.*)",
    ):
        if found := re.search(pattern, said):
            return found[1]
    return NO_ERROR


def with_python(folder: Path, port: int, source: str, secure: bool, patience: float) -> str:
    options = {"timeout": patience, "source_address": (source, 0)}
    if secure:
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        made: HTTPConnection = HTTPSConnection("shop.localhost", port, context=context, **options)
    else:
        made = HTTPConnection("shop.localhost", port, **options)
    make = socket.create_connection
    made._create_connection = lambda address, *more: make(("127.0.0.1", address[1]), *more)  # type: ignore[attr-defined]
    try:
        made.request("GET", "/")
        with made.getresponse() as answer:
            answer.read()
    except (OSError, HTTPException) as error:
        said = re.sub(r"(\[SSL: \w+\] | \(_ssl\.c:\d+\)|_ssl\.c:\d+: )", "", str(error))
        words = f"{type(error).__name__}: {said}"
        return _OTHER_WORDS.get(words, words)
    finally:
        made.close()
    return NO_ERROR


def with_go(folder: Path, port: int, source: str, secure: bool, patience: float) -> str:
    url, place = url_of(port, secure), f"127.0.0.1:{port}"
    command = (go_client(folder), url, place, source, f"{patience}s")
    said = run(folder, *command, timeout=2 * PATIENCE).stdout.strip()
    return said.removeprefix(f'Get "{url}": ')


def go_client(folder: Path) -> Path:
    """Return the client in Go, which is built once in a folder."""
    if shutil.which("go") is None:
        not_here("there is no Go")
    program = folder / "client"
    if not program.exists():
        (folder / "client.go").write_text(GO)
        environment = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "GOFLAGS": "-mod=mod"}
        built = run(folder, tool("go"), "build", "client.go", env=environment, timeout=240)
        assert built.returncode == 0, built.stderr
    return program


CLIENTS: dict[str, Client] = {
    "curl": with_curl,
    "openssl s_client": with_openssl,
    "Python": with_python,
    "Go": with_go,
}
