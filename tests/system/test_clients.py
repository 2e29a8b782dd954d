"""The clients' view: netcat in a terminal, sockets, UNIX sockets, IPv6 and TLS."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import BANNER, connect, receive, receive_all, warm_up
from tests.support.daemon import CONCURRENT, MODELS, Daemon, Start, nothing_kept, starting
from tests.support.needs import tool
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE


class Terminal:
    """A network client with a person at the keyboard."""

    def __init__(self, *command: str | Path) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._keyboard, self._screen = self.process.stdin, self.process.stdout
        self.seen = b""

    def type(self, data: bytes) -> None:
        self._keyboard.write(data)

    def sees(self, expected: bytes) -> None:
        """Wait for exactly these bytes."""
        shown = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._screen, selectors.EVENT_READ)
            while len(shown) < len(expected) and selector.select(PATIENCE):
                if not (piece := os.read(self._screen.fileno(), 1 << 16)):
                    break
                shown += piece
        self.seen += shown
        assert shown == expected

    def is_over(self) -> bool:
        """End the input; return whether the client ends: it waits for the server."""
        self._keyboard.close()
        return self.process.wait(PATIENCE) == 0

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)
        self._keyboard.close()
        rest = self._screen.read()
        self._screen.close()
        assert rest == b""


@contextlib.contextmanager
def terminals(*commands: list[str]) -> Iterator[list[Terminal]]:
    with contextlib.ExitStack() as stack:
        opened = []
        for command in commands:
            opened.append(Terminal(*command))
            stack.callback(opened[-1].close)
        yield opened


def command(name: str, port: int) -> list[str]:
    """Return the command that a person types to connect."""
    path = tool(name)
    return (
        [path, "-", f"TCP:127.0.0.1:{port}"] if name == "socat" else [path, "127.0.0.1", f"{port}"]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the daemons run, and have their UNIX sockets."""
    return tmp_path_factory.mktemp("echoes")


@pytest.fixture(scope="module")
def _echoes(folder: Path, certificate: Path) -> Iterator[dict[str, Daemon]]:
    tls = f"ssl:0:privateKey={certificate}:certKey={certificate}"
    with starting(folder) as start:
        started = {
            model: start(
                *("--concurrency", model, "--port", "0"),
                *("--listen", f"unix:{model}", "--listen", tls),
            )
            for model in MODELS
        }
        warm_up(*started.values())
        yield started


@pytest.fixture
def echoes(_echoes: dict[str, Daemon]) -> Iterator[dict[str, Daemon]]:
    """An echo daemon for each concurrency model."""
    with nothing_kept(*_echoes.values()):
        yield _echoes


@pytest.fixture(params=CONCURRENT)
def model(request: pytest.FixtureRequest) -> str:
    """Each of the models that hold conversations."""
    return request.param


@pytest.fixture
def echo(model: str, echoes: dict[str, Daemon]) -> Daemon:
    """An echo daemon in each of the models that hold conversations."""
    return echoes[model]


# Terminals.


@pytest.mark.parametrize("name", ["nc", "ncat", "socat"])
def test_three_terminals_at_once_see_the_banner_and_their_own_echo(
    echo: Daemon, name: str
) -> None:
    with terminals(*[command(name, echo.port)] * 3) as (one, two, three):
        # The last to come is the first to type: no one waits for another's turn.
        for terminal in (one, two, three):
            terminal.sees(BANNER)
        three.type(b"happy\n")
        three.sees(b"OK...happy\n")
        one.type(b"happy\n")
        two.type(b"joy\n")
        two.sees(b"OK...joy\n")
        one.sees(b"OK...happy\n")
        for turn in range(3):
            for number, terminal in enumerate((one, two, three)):
                terminal.type(b"line %d of %d\n" % (turn, number))
            for number, terminal in enumerate((one, two, three)):
                terminal.sees(b"OK...line %d of %d\n" % (turn, number))


def test_a_terminal_sees_exactly_this(echo: Daemon) -> None:
    with terminals(command("nc", echo.port)) as (terminal,):
        terminal.sees(b"Welcome to the server. Type something and hit enter\n")
        terminal.type(b"happy\n")
        terminal.sees(b"OK...happy\n")
        assert terminal.seen == (
            b"Welcome to the server. Type something and hit enter\nOK...happy\n"
        )


@pytest.mark.parametrize("name", ["nc", "ncat", "socat"])
def test_serial_gives_each_terminal_one_reply_and_no_banner(
    echoes: dict[str, Daemon], name: str
) -> None:
    with terminals(*[command(name, echoes["serial"].port)] * 3) as opened:
        for number, terminal in enumerate(opened):
            terminal.type(b"line %d\n" % number)
        for number, terminal in enumerate(opened):
            terminal.sees(b"OK...line %d\n" % number)
        for terminal in opened:
            assert terminal.is_over()


def test_serial_ends_the_connection_after_its_one_reply(echoes: dict[str, Daemon]) -> None:
    for number in range(3):
        with connect(echoes["serial"]) as connection:
            connection.sendall(b"line %d\n" % number)
            assert receive_all(connection) == b"OK...line %d\n" % number


def test_a_silent_client_keeps_serial_waiting_no_longer_than_serial_timeout(
    daemon: Start,
) -> None:
    running = daemon("--concurrency", "serial", "--serial-timeout", "1")
    with connect(running) as silent, connect(running) as second, connect(running) as third:
        began = time.monotonic()
        second.sendall(b"second\n")
        third.sendall(b"third\n")
        assert receive_all(second) == b"OK...second\n"
        assert 0.5 < time.monotonic() - began < PATIENCE
        assert receive_all(third) == b"OK...third\n"
        assert receive_all(silent) == b""


def test_a_client_that_goes_away_before_its_turn_is_no_hindrance(daemon: Start) -> None:
    running = daemon("--concurrency", "serial", "--serial-timeout", "0")
    with connect(running) as first:
        with connect(running):
            running.wait_for("Connected with", 2)
        with connect(running) as third:
            third.sendall(b"third\n")
            first.sendall(b"first\n")
            assert receive_all(first) == b"OK...first\n"
            assert receive_all(third) == b"OK...third\n"


# Messages.


@pytest.mark.parametrize(("size", "pieces"), [(1024, 1), (1025, 2), (3000, 3)])
def test_what_comes_at_once_is_answered_in_pieces_of_1024_bytes(
    echo: Daemon, size: int, pieces: int
) -> None:
    sent = bytes(b"abcdefgh"[number % 8] for number in range(size))
    expected = b"".join(b"OK..." + sent[at : at + 1024] for at in range(0, size, 1024))
    assert expected.count(b"OK...") == pieces
    with connect(echo) as connection:
        assert receive(connection, len(BANNER)) == BANNER
        connection.sendall(sent)
        assert receive(connection, len(expected)) == expected


@pytest.mark.parametrize(
    "message",
    [b"\0", b"\xff\xfe\xff", b"happy\r\n", b"\n", b"\r\n", b"\x1b[2J", bytes(range(256))],
    ids=["NUL", "not UTF-8", "CRLF", "empty line", "empty CRLF line", "escape", "every byte"],
)
def test_bytes_come_back_as_they_are(echoes: dict[str, Daemon], message: bytes) -> None:
    for model, running in echoes.items():
        with connect(running) as connection:
            expected = (b"" if model == "serial" else BANNER) + b"OK..." + message
            connection.sendall(message)
            assert receive(connection, len(expected)) == expected


@pytest.fixture(scope="module")
def _framing_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Daemon]]:
    lines = ("--framing", "line", "--delimiter", r"\r\n", "--max-message", "20", "--no-banner")
    lengths = ("--framing", "length", "--max-message", "20")
    with starting(tmp_path_factory.mktemp("framings")) as start:
        started = {
            f"{arguments[1]} {model}": start("--concurrency", model, *arguments)
            for model in CONCURRENT
            for arguments in (lines, lengths)
        }
        warm_up(*started.values())
        yield started


@pytest.fixture(params=CONCURRENT)
def line_server(
    request: pytest.FixtureRequest, _framing_servers: dict[str, Daemon]
) -> Iterator[Daemon]:
    with nothing_kept(_framing_servers[f"line {request.param}"]):
        yield _framing_servers[f"line {request.param}"]


@pytest.fixture(params=CONCURRENT)
def length_server(
    request: pytest.FixtureRequest, _framing_servers: dict[str, Daemon]
) -> Iterator[Daemon]:
    with nothing_kept(_framing_servers[f"length {request.param}"]):
        yield _framing_servers[f"length {request.param}"]


def test_each_line_is_a_message_however_it_is_cut(line_server: Daemon) -> None:
    with connect(line_server) as connection:
        connection.sendall(b"one\r\ntwo\nstill two\r\n\r\nlast\r")
        expected = b"OK...one\r\nOK...two\nstill two\r\nOK...\r\n"
        assert receive(connection, len(expected)) == expected
        connection.sendall(b"\nno end")
        connection.shutdown(socket.SHUT_WR)
        assert receive_all(connection) == b"OK...last\r\nOK...no end\r\n"


def test_a_line_that_is_too_long_gets_an_error_and_the_end(line_server: Daemon) -> None:
    with connect(line_server) as connection:
        connection.sendall(b"fits into 20 bytes..\r\n" + b"x" * 5000)
        assert receive_all(connection) == (
            b"OK...fits into 20 bytes..\r\nMessage too long: the limit is 20 bytes\r\n"
        )


def framed(message: bytes) -> bytes:
    return struct.pack("!I", len(message)) + message


def test_each_message_follows_its_length(length_server: Daemon) -> None:
    with connect(length_server) as connection:
        assert receive(connection, 4 + len(BANNER)) == framed(BANNER)
        wire = framed(b"one") + framed(b"") + framed(b"\0\n") + framed(b"three")
        connection.sendall(wire[:-2])
        expected = framed(b"OK...one") + framed(b"OK...") + framed(b"OK...\0\n")
        assert receive(connection, len(expected)) == expected
        connection.sendall(wire[-2:])
        connection.shutdown(socket.SHUT_WR)
        assert receive_all(connection) == framed(b"OK...three")


def test_a_length_that_is_too_large_gets_an_error_and_the_end(length_server: Daemon) -> None:
    with connect(length_server) as connection:
        assert receive(connection, 4 + len(BANNER)) == framed(BANNER)
        connection.sendall(framed(b"one") + struct.pack("!I", 21) + b"x" * 5000)
        assert receive_all(connection) == (
            framed(b"OK...one") + framed(b"Message too long: the limit is 20 bytes\n")
        )


def test_a_message_that_is_cut_short_gets_an_error_and_the_end(length_server: Daemon) -> None:
    with connect(length_server) as connection:
        assert receive(connection, 4 + len(BANNER)) == framed(BANNER)
        connection.sendall(framed(b"twelve bytes")[:-2])
        connection.shutdown(socket.SHUT_WR)
        assert receive_all(connection) == framed(
            b"Message cut short: the stream ended 2 bytes before its end\n"
        )


# Settings.


CONFIGURED = {
    r"--banner Hello": b"Hello\nOK...happy\r\n",
    r"--banner Hello\n --handler upper": b"Hello\nHAPPY\r\n",
    r"--no-banner --prefix=": b"happy\r\n",
    r"--no-banner --prefix >\t --max-message 4": b">\thapp>\ty\r\n",
    r"--handler reverse": b"yppah\r\n",
    r"--handler count:start=7": b"7: happy\r\n",
    r"--framing line --delimiter \r\n --banner Hello": b"Hello\r\nOK...happy\r\n",
    r"--framing line --delimiter \r\n": BANNER[:-1] + b"\r\nOK...happy\r\n",
}


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Daemon]]:
    """A daemon for each of these lists of settings."""
    with starting(tmp_path_factory.mktemp("configured")) as start:
        yield {settings: start(*settings.split(" ")) for settings in CONFIGURED}


@pytest.mark.parametrize("settings", CONFIGURED)
def test_settings_change_what_the_client_sees(
    configured: dict[str, Daemon], settings: str
) -> None:
    with connect(configured[settings]) as connection:
        connection.sendall(b"happy\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert receive_all(connection) == CONFIGURED[settings]


@pytest.mark.parametrize("model", ["reactor", "serial"])
def test_count_numbers_the_messages_of_each_client(daemon: Start, model: str) -> None:
    running = daemon("--handler", "count", "--framing", "line", "--concurrency", model)
    with connect(running) as one, connect(running) as two:
        if model == "serial":
            one.sendall(b"a\nb\n")
            assert receive_all(one) == b"1: a\n"
            two.sendall(b"quit\n")
            assert receive_all(two) == b"0 messages\n"
            return
        one.sendall(b"a\nb\n")
        assert receive(one, 10) == b"1: a\n2: b\n"
        two.sendall(b"c\n")
        assert receive(two, 5) == b"1: c\n"
        one.sendall(b"quit\nnever answered\n")
        assert receive_all(one) == b"2 messages\n"


# Listeners.


def test_listen_repeats_and_a_unix_socket_is_removed_at_the_end(
    daemon: Start, tmp_path: Path
) -> None:
    running = daemon("--listen=tcp:0:interface=127.0.0.1", "--port=0", "--listen=unix:socket")
    running.wait_for("Socket now listening", 3)
    ports = running.wait_for(r"EchoFactory starting on (\d+)", 2)
    for port in ports:
        with connect(int(port)) as connection:
            assert receive(connection, len(BANNER)) == BANNER
    assert (tmp_path / "socket").is_socket()
    running.stop()
    assert not (tmp_path / "socket").exists()


def test_a_unix_socket_is_served(echo: Daemon, folder: Path, model: str) -> None:
    with terminals([tool("nc"), "-U", f"{folder / model}"]) as (terminal,):
        terminal.sees(BANNER)
        terminal.type(b"happy\n")
        terminal.sees(b"OK...happy\n")
        terminal.type(b"joy\n")
        terminal.sees(b"OK...joy\n")


def test_ipv6_is_served(daemon: Start) -> None:
    running = daemon("--listen", "tcp6:0:interface=\\:\\:1")
    with socket.create_connection(("::1", running.port), PATIENCE) as connection:
        connection.sendall(b"happy\n")
        connection.shutdown(socket.SHUT_WR)
        assert receive_all(connection) == BANNER + b"OK...happy\n"
        port = connection.getsockname()[1]
    running.wait_for(rf"Connected with \[::1\]:{port}$")


def test_the_example_of_the_settings_listens_over_ipv4_and_ipv6(
    daemon: Start, tmp_path: Path
) -> None:
    example = Path(__file__).parents[2] / "etc" / "echod.toml"
    (line,) = re.findall(r"^#(listen = .*)", example.read_text(), re.MULTILINE)
    port = free_port()
    (tmp_path / "echod.toml").write_text(line.replace("8888", str(port)))
    running = daemon("--config=echod.toml", listening=True)
    running.wait_for("Socket now listening", 2)
    for host in ("127.0.0.1", "::1"):
        with socket.create_connection((host, port), PATIENCE) as connection:
            connection.sendall(b"happy\n")
            connection.shutdown(socket.SHUT_WR)
            assert receive_all(connection) == BANNER + b"OK...happy\n"


def test_what_one_of_a_pair_cannot_have_is_said(daemon: Start) -> None:
    first = daemon("--listen", "tcp6:0")
    port = first.port
    with pytest.raises(ConnectionRefusedError):
        connect(port)  # over IPv4
    second = daemon("--listen", f"tcp6:{port}")
    second.wait_for(rf"tcp6:{port}: Bind failed. Error Code : 98 Message Address already in use")


def test_tls_greets_and_echoes(echo: Daemon, certificate: Path) -> None:
    echo.wait_for("Socket now listening", 3)
    port = int(echo.wait_for(r"\(TLS\) starting on (\d+)")[0])
    context = ssl.create_default_context(cafile=certificate)
    for _ in range(2):
        with (
            connect(port) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        ):
            assert receive(connection, len(BANNER)) == BANNER
            for message in (b"happy\n", b"\0\xff\r\n", b"x" * 1024):
                connection.sendall(message)
                assert receive(connection, 5 + len(message)) == b"OK..." + message
    assert "Traceback" not in echo.log
