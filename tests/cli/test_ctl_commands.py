"""The commands of `echod ctl`, in the test's own process, beside a service with a control."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from echod.cli import ctl as module
from echod.cli.control_client import CONTROL, TOKEN
from echod.cli.ctl import ctl
from tests.cli.test_ctl import answering
from tests.control.test_control_server import Controlled, port_of, running
from tests.support.certificates import Authority
from tests.support.serving import LOOPBACK, eventually, in_thread

SECRET = "0123456789abcdef"


@dataclass(frozen=True)
class Done:
    """The outcome of a command.

    Attributes:
        code: the exit code.
        out: standard output.
        err: standard error.
    """

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        """The words of each line of standard output."""
        assert (self.code, self.err) == (0, "")
        return [line.split() for line in self.out.splitlines()]

    @property
    def value(self) -> Any:
        """The value of standard output, which is JSON."""
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The error, without the name of the program: it is the only line."""
        assert self.out == ""
        head, _, text = self.err.partition(": ")
        assert head == "echod ctl"
        assert text.count("\n") == 1
        return text.removesuffix("\n")


Call = Callable[..., Done]
Beside = Callable[..., Awaitable[Done]]


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Call:
    """Run a command; the environment names the control socket in `tmp_path`."""
    monkeypatch.setenv(CONTROL, f"unix:{tmp_path / 'control'}")
    monkeypatch.delenv(TOKEN, raising=False)

    def run(*words: str) -> Done:
        capsys.readouterr()
        try:
            code = ctl(words)
        except SystemExit as error:  # by the parser
            code = int(error.code or 0)
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def beside(call: Call) -> Beside:
    """Run a command in a thread, so that the reactor can serve it."""

    async def run(*words: str) -> Done:
        done: list[Done] = []
        await in_thread(lambda: done.append(call(*words)))
        return done[0]

    return run


async def ended(controlled: Controlled) -> None:
    """Connect a client, and wait until its connection is in the journal."""
    client = await controlled.connect()
    client.finish()
    await client.receive_all()
    await eventually(lambda: controlled.open == 0)


# Connections.


@pytest_twisted.ensureDeferred
async def test_connections_are_a_table_whose_columns_are_aligned(
    tmp_path: Path, beside: Beside
) -> None:
    async with running(tmp_path) as controlled:
        await ended(controlled)
        client = await controlled.connect()
        client.send(b"happy")
        await client.receive(b"OK...happy")
        done = await beside("connections")
        heads, first, second = done.out.splitlines()
        assert heads.split() == list(module._HEADS)
        for line in (first, second):
            at = heads.index("LISTENER")
            assert line[at:].startswith(f"{LOOPBACK}  ")
            assert line == line.rstrip()
        assert first.split()[0] == "1"
        assert first.endswith("client closed")
        number, peer, _, _, came, went, *rest = second.split()
        assert (number, came, went) == ("2", "5", str(len(b"Hello\nOK...happy")))
        assert peer == f"127.0.0.1:{client.transport.getHost().port}"
        assert rest == ["-", "-", "(open)"]


@pytest_twisted.ensureDeferred
async def test_connections_as_json_are_those_of_the_table(tmp_path: Path, beside: Beside) -> None:
    async with running(tmp_path) as controlled:
        await ended(controlled)
        await controlled.connect()
        found = (await beside("connections", "--json")).value
        assert [(one["id"], one["state"]) for one in found] == [(1, "ended"), (2, "open")]
        # The option may stand before the command, too.
        assert (await beside("--json", "connections", "1")).value == found[0]


@pytest_twisted.ensureDeferred
async def test_a_filter_leaves_only_what_it_names(tmp_path: Path, beside: Beside) -> None:
    listen = (LOOPBACK, f"unix:{tmp_path / 's'}")
    async with running(tmp_path, listen=listen) as controlled:
        await ended(controlled)
        await controlled.connect(0)
        await controlled.connect(1)
        for words, numbers in {
            (): ["1", "2", "3"],
            ("--open",): ["2", "3"],
            ("--ended",): ["1"],
            ("--listener", "2"): ["3"],
            ("--listener", LOOPBACK): ["1", "2"],
            ("--address", "127.0.0.0/8"): ["1", "2"],
            ("--address", "192.0.2.1"): [],
            ("--reason", "client closed"): ["1"],
            ("--fault", "reset"): [],
            ("--limit", "2"): ["1", "2"],
            ("--open", "--limit", "1"): ["2"],
        }.items():
            _, *rows = (await beside("connections", *words)).rows
            assert [row[0] for row in rows] == numbers, words


@pytest_twisted.ensureDeferred
async def test_pages_are_fetched_until_there_is_no_more(
    tmp_path: Path, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    async with running(tmp_path) as controlled:
        for _ in range(5):
            await controlled.connect()
        for words, count in {(): 5, ("--limit", "3"): 3, ("--limit", "4"): 4}.items():
            found = (await beside("connections", "--json", *words)).value
            assert [one["id"] for one in found] == list(range(1, count + 1))


@pytest_twisted.ensureDeferred
async def test_one_connection_is_shown_in_full_without_what_is_empty(
    tmp_path: Path, certificate: Path, beside: Beside
) -> None:
    listen = (f"tls:0:interface=127.0.0.1:certificate={certificate}",)
    async with running(tmp_path, listen=listen, journal_bytes=20) as controlled:
        client = await controlled.connect()
        client.send(b"\x1b[31m")
        await client.receive(b"OK...\x1b[31m")
        lines = (await beside("connections", "1")).out.splitlines()
    assert {"id: 1", "state: open", "bytes_in: 5", "  version: TLSv1.3"} <= set(lines)
    assert r"received: \x1b[31m" in lines
    names = [line.partition(":")[0] for line in lines]
    assert names.index("tls") + 1 == names.index("  version")
    assert not {"reason", "proxy", "faults", "received_base64"} & set(names)


def test_what_a_client_sent_cannot_command_the_terminal(call: Call) -> None:
    mismatch = {"line": 1, "expected": "a", "got": "\x1b[2J"}
    one = json.dumps({"id": 7, "faults": ["drip", "reset"], "mismatches": [mismatch]}).encode()
    with answering(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + one) as port:
        done = call("connections", "7", "--control", f"http://127.0.0.1:{port}")
    assert done.out.splitlines() == [
        "id: 7",
        "faults: drip, reset",
        r"mismatches: line 1, expected a, got \x1b[2J",
    ]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("connections", "77"), "no connection of that number is open, or remembered"),
        (("disconnect", "77"), "no connection of that number is open"),
        (("disconnect", "--address", "192.0.2.1"), None),
        (("disconnect", "--address", "localhost"), "address is an address, an address with"),
        (("disconnect", "--listener", "9"), "there is no such listener; there are: 1 (tcp"),
        (("fault", "nosuch"), "no fault is named 'nosuch'"),
        (("fault", "drip", "--remove"), "no fault is written so"),
        (("fault", "drip", "--seed", "-1"), "seed is a whole number from 0"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_refusal_is_one_line_with_exit_code_1(
    words: tuple[str, ...], why: str | None, tmp_path: Path, beside: Beside
) -> None:
    async with running(tmp_path):
        done = await beside(*words)
    if why is None:  # no client is selected, which is no error
        assert (done.code, done.out) == (0, "disconnected 0 connections\n")
    else:
        assert (done.code, done.error[: len(why)]) == (1, why)


@pytest_twisted.ensureDeferred
async def test_ended_ones_need_a_journal(tmp_path: Path, beside: Beside) -> None:
    async with running(tmp_path, journal=0) as controlled:
        await ended(controlled)
        done = await beside("connections", "--ended")
        assert (done.code, done.error) == (
            1,
            "the daemon remembers no connection that has ended: start it with --journal N",
        )
        assert len((await beside("connections")).rows) == 1


@pytest_twisted.ensureDeferred
async def test_the_named_connections_are_ended_and_counted(tmp_path: Path, beside: Beside) -> None:
    async with running(tmp_path) as controlled:
        one, two, three, four = [await controlled.connect() for _ in range(4)]
        assert (await beside("disconnect", "1", "3")).out == "disconnected 2 connections\n"
        await eventually(lambda: one.reason and three.reason)
        assert (two.reason, four.reason) == (None, None)
        port = two.transport.getHost().port
        done = await beside("disconnect", "--address", f"127.0.0.1:{port}", "--json")
        assert done.value == {"disconnected": 1}
        await eventually(lambda: two.reason)
        assert four.reason is None
        assert (await beside("disconnect", "--all")).out == "disconnected 1 connection\n"
        await eventually(lambda: controlled.open == 0)
        _, *rows = (await beside("connections", "--reason", "disconnected")).rows
        assert [row[0] for row in rows] == ["1", "2", "3", "4"]


@pytest_twisted.ensureDeferred
async def test_a_drained_connection_closes_without_a_reset(tmp_path: Path, beside: Beside) -> None:
    async with running(tmp_path) as controlled:
        client = await controlled.connect()
        assert (await beside("disconnect", "1", "--drain")).out == "disconnected 1 connection\n"
        assert await client.receive_all() == b""
        await eventually(lambda: controlled.open == 0)
        assert (await beside("connections", "1", "--json")).value["reason"] == "drained"


# Faults on purpose.


@pytest_twisted.ensureDeferred
async def test_faults_are_replaced_added_removed_and_cleared(
    tmp_path: Path, beside: Beside
) -> None:
    async with running(tmp_path) as controlled:
        assert (await beside("faults")).out.splitlines()[1:] == ["no faults on purpose"]
        done = await beside("fault", "reset:after=3", "drip:first=2", "--seed", "5")
        assert done.out == "seed: 5\nreset:after=3\ndrip:first=2\n"
        done = await beside("fault", "--add", "drip:first=9")
        assert done.out == "seed: 5\nreset:after=3\ndrip:first=2\ndrip:first=9\n"
        done = await beside("fault", "--remove", "reset:after=3", "drip:first=9", "--json")
        assert done.value["faults"] == ["drip:first=2"]
        assert (await beside("fault", "drip:first=4")).out == "seed: 5\ndrip:first=4\n"
        assert (await beside("faults")).out == "seed: 5\ndrip:first=4\n"
        done = await beside("fault", "--clear")
        assert done.out == "seed: 5\nno faults on purpose\n"
        assert controlled.service.faults is not None
        assert list(controlled.service.faults.rules) == []


@pytest_twisted.ensureDeferred
async def test_faults_are_shown_with_how_often_they_happened(
    tmp_path: Path, beside: Beside
) -> None:
    async with running(tmp_path) as controlled:
        await beside("fault", "reset:after=3", "--seed", "5")
        for count, words in ((1, "1 connection"), (2, "2 connections")):
            client = await controlled.knock()
            await eventually(lambda client=client: client.reason)
            done = await beside("faults")
            assert done.out == f"seed: 5\nreset:after=3\nhappened: reset, in {words}\n"
            assert (await beside("faults", "--json")).value["happened"]["reset"] == count
        _, *rows = (await beside("connections", "--fault", "reset")).rows
        assert [row[7] for row in rows] == ["reset", "reset"]


# The listeners.


@pytest_twisted.ensureDeferred
async def test_suspended_listeners_let_clients_wait_until_they_resume(
    tmp_path: Path, beside: Beside
) -> None:
    async with running(tmp_path) as controlled:
        assert (await beside("suspend")).out == "suspended\n"
        assert controlled.service.suspended
        client = await controlled.knock()
        assert (await beside("suspend", "--json")).value == {"state": "suspended"}
        assert controlled.open == 0
        assert (await beside("resume")).out == "ready\n"
        await client.receive(b"Hello\n")


# The token, and the way to the daemon.


@pytest.mark.parametrize("way", ["tcp", "tls"])
@pytest_twisted.ensureDeferred
async def test_over_a_network_the_token_decides(
    way: str, tmp_path: Path, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other, certificate = (tmp_path / name for name in ("token", "other", "server.pem"))
    file.write_text(f"{SECRET}\n")
    other.write_text(SECRET[::-1])
    file.chmod(0o600)
    certificate.write_bytes(Authority().pem)
    more = f":certificate={certificate}" if way == "tls" else ""
    endpoint = f"{way}:0:interface=127.0.0.1{more}"
    async with running(tmp_path, control=endpoint, control_token_file=str(file)) as controlled:
        port = port_of(controlled.service.control)
        words = ("suspend", "--control", f"{way}:127.0.0.1:{port}", "--ca", str(certificate))
        for wrong in ((), ("--control-token-file", str(other))):
            done = await beside(*words, *wrong)
            assert done.code == 1
            assert "the token is missing or wrong: give --control-token-file" in done.error
        assert not controlled.service.suspended
        done = await beside(*words, "--control-token-file", str(file))
        assert done.out == "suspended\n"
        monkeypatch.setenv(TOKEN, SECRET)
        assert (await beside(*words)).out == "suspended\n"


@pytest_twisted.ensureDeferred
async def test_a_certificate_that_is_not_trusted_is_an_unreachable_daemon(
    tmp_path: Path, certificate: Path, beside: Beside
) -> None:
    file, other = tmp_path / "token", tmp_path / "other.pem"
    file.write_text(SECRET)
    file.chmod(0o600)
    other.write_bytes(Authority().pem)
    endpoint = f"tls:0:interface=127.0.0.1:certificate={certificate}"
    async with running(tmp_path, control=endpoint, control_token_file=str(file)) as controlled:
        place = f"tls:127.0.0.1:{port_of(controlled.service.control)}"
        done = await beside("faults", "--control", place, "--ca", str(other))
    assert done.code == 3
    assert done.error.startswith(f"{place}: ")
    assert "CERTIFICATE_VERIFY_FAILED" in done.error


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n<html>",
        b"HTTP/1.1 200 OK\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
    ],
)
def test_another_server_is_no_control(data: bytes, call: Call) -> None:
    with answering(data) as port:
        done = call("faults", "--control", f"tcp:{port}")
    assert done.code == 3
    assert done.error.startswith(f"tcp:{port}: ")


def test_a_refusal_without_a_reason_shows_the_status(call: Call) -> None:
    with answering(b"HTTP/1.1 503 Busy\r\n\r\n{}") as port:
        done = call("faults", "--control", f"tcp:{port}")
    assert (done.code, done.error) == (1, "status 503")


def test_without_a_daemon_the_exit_code_is_3(call: Call, tmp_path: Path) -> None:
    done = call("faults")
    assert done.code == 3
    assert done.error == f"unix:{tmp_path / 'control'}: No such file or directory"


def test_without_an_endpoint_the_error_says_how_to_name_one(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CONTROL)
    done = call("faults")
    assert done.code == 2
    assert done.error.startswith(f"name the control, by --control ENDPOINT or {CONTROL}")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("fault",), "name the faults"),
        (("fault", "drip", "--clear"), "name the faults"),
        (("fault", "drip", "--add", "--remove"), "name the faults"),
        (("fault", "drip", "--add", "--seed", "1"), "--seed needs"),
        (("disconnect",), "say which"),
        (("disconnect", "1", "--all"), "say which"),
        (("disconnect", "--listener", "1", "--all"), "say which"),
        (("disconnect", "x"), "'x' is not a number from 1"),
        (("connections", "--state", "open"), "unrecognized arguments: --state"),
        (("disconnect", "--how", "reset"), "unrecognized arguments: --how"),
        (("connections", "0"), "'0' is not a number from 1"),
        (("connections", "--limit", "-1"), "'-1' is not a number from 1"),
        (("nosuch",), "invalid choice"),
        (("disconnect", "--al"), "unrecognized arguments: --al"),
        ((), "COMMAND"),
        (("faults", "--control", "x"), "'x' is no endpoint of a control"),
        (("faults", "--control", "http://x:y"), "is no URL"),
        (("faults", "--control-token-file", "/nosuch"), "/nosuch: No such file"),
        (("faults", "--control", "tls:1", "--ca", "/nosuch"), "--ca /nosuch: No such file"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_one_line_with_exit_code_2(
    words: tuple[str, ...], why: str, call: Call
) -> None:
    done = call(*words)
    assert done.code == 2
    assert why in done.error


def test_a_token_that_no_header_can_carry_is_refused(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("one\ntwo")
    done = call("faults", "--control-token-file", str(file))
    assert (done.code, done.error) == (2, "the token has characters that no token has")
    monkeypatch.setenv(TOKEN, "größe")
    assert call("faults").error == "the token has characters that no token has"


def test_help_names_every_command(call: Call) -> None:
    done = call("--help")
    assert (done.code, done.err) == (0, "")
    for name in ("connections", "disconnect", "faults", "fault", "suspend", "resume"):
        assert f"\n    {name} " in done.out
