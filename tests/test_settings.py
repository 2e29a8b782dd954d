from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from echod import Chunk, Length, Limits, Line
from echod.handlers import ConcurrencyModel, HandlerSpec
from echod.settings import Options, SettingError, Settings


def parse(*arguments: str) -> Settings:
    options = Options()
    options.parseOptions(arguments)
    return options.settings


def test_without_flags_the_defaults_hold() -> None:
    settings = parse()
    assert settings == Settings()
    assert settings.endpoints == ("tcp:8888",)
    assert settings.handler_spec == HandlerSpec("echo")
    assert settings.make_framing() == Chunk(1024)
    assert settings.make_limits() == Limits()
    assert settings.make_banner(Chunk()) is None


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--port", "80"], "endpoints", ("tcp:80",)),
        (["--listen", "unix:/a", "--listen=tcp6:1"], "endpoints", ("unix:/a", "tcp6:1")),
        (["--port=0", "--listen=unix:/a"], "endpoints", ("tcp:0", "unix:/a")),
        (["--handler", "m:f:a=1"], "handler_spec", HandlerSpec("m:f", {"a": "1"})),
        (["--prefix", "> "], "handler_spec", HandlerSpec("echo", {"prefix": "> "})),
        (["--concurrency=serial"], "concurrency", ConcurrencyModel.SERIAL),
        (["--threads=3"], "threads", 3),
        (["--max-threads=7"], "max_threads", 7),
        (["--no-banner"], "no_banner", True),
        (["--drain-timeout", "2.5"], "drain_timeout", 2.5),
    ],
)
def test_each_flag_is_a_setting(arguments: list[str], name: str, value: Any) -> None:
    assert getattr(parse(*arguments), name) == value


@pytest.mark.parametrize(
    ("arguments", "framing"),
    [
        (["--max-message=10"], Chunk(10)),
        (["--framing=line"], Line()),
        (["--framing=line", r"--delimiter=\r\n", "--max-message=10"], Line(b"\r\n", 10)),
        (["--framing=length"], Length()),
    ],
)
def test_the_framing_has_its_own_defaults(arguments: list[str], framing: Any) -> None:
    assert parse(*arguments).make_framing() == framing


@pytest.mark.parametrize(
    ("arguments", "banner"),
    [
        ([], None),
        (["--no-banner"], b""),
        (["--banner=Hi"], b"Hi\r\n"),
        (["--banner=Hi\\n"], b"Hi\r\n"),
        (["--banner=Hi\n"], b"Hi\r\n"),
        (["--banner="], b"\r\n"),
    ],
)
def test_a_banner_is_a_line(arguments: list[str], banner: bytes | None) -> None:
    assert parse(*arguments).make_banner(Line(b"\r\n")) == banner


def test_limits_on_clients_are_settings() -> None:
    limits = parse("--idle-timeout=1", "--write-timeout=2", "--serial-timeout=0").make_limits()
    assert (limits.idle_timeout, limits.write_timeout, limits.serial_timeout) == (1, 2, 0)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--port=http"], "--port: 'http' is not a whole number from 0 to 65535"),
        (["--port=65536"], "--port: '65536' is not"),
        (["--port=-1"], "--port: '-1' is not"),
        (["--threads=0"], "--threads: '0' is not a whole number from 1 to 10000"),
        (["--threads=\u0663"], "is not a whole number"),
        (["--max-message=0"], "--max-message: '0' is not"),
        (["--drain-timeout=soon"], "'soon' is not a number of seconds, 0 or more"),
        (["--drain-timeout=-1"], "'-1' is not a number of seconds"),
        (["--drain-timeout=nan"], "'nan' is not a number of seconds"),
        (["--framing=xml"], "--framing: 'xml' is not one of: chunk, line, length"),
        (["--concurrency=fast"], "is not one of: reactor, defer-to-thread, thread-per"),
        (["--framing=line", "--delimiter="], "--delimiter: '' is not at least one byte"),
        (["--banner=\\x1"], "--banner: '\\\\x1' is not text in which"),
        (["--handler=a=b"], "--handler: 'a=b' is not of the form NAME"),
        (["--nonsense"], "option --nonsense not recognized"),
        (["extra\x1b"], "unexpected argument 'extra\\x1b'"),
        (["--banner=a", "--no-banner"], "--banner and --no-banner contradict each other"),
        (
            ["--concurrency=serial", "--banner=a"],
            "--banner is of no use with --concurrency serial",
        ),
        (["--delimiter=x"], "--delimiter needs --framing line, not chunk"),
    ],
)
def test_a_wrong_flag_is_one_line_that_says_what_is_accepted(
    arguments: list[str], why: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    message = str(caught.value)
    assert why in message
    assert message.startswith("echod: ")
    assert "\n" not in message


def test_contradictions_are_refused_however_settings_are_made() -> None:
    with pytest.raises(SettingError):
        Settings(banner=b"a", no_banner=True)


def test_help_names_every_setting_and_its_default() -> None:
    text = " ".join(str(Options()).split())
    for setting in fields(Settings):
        assert f"--{setting.name.replace('_', '-')}" in text
    for default in ("[default: reactor]", "[default: 600]", "[default: OK...]", "[default: 16]"):
        assert default in text


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--version")
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("echod ")
