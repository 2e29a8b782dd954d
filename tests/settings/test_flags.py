from __future__ import annotations

import sys

import pytest
from twisted.application.twist._options import TwistOptions
from twisted.python import usage
from twisted.scripts import twistd

from echod.settings.flags import Options

TwistdOptions = twistd.ServerOptions  # type: ignore[attr-defined]


def refusal(*arguments: str, runner: usage.Options | None = None) -> str:
    options = Options()
    options.parent = runner
    with pytest.raises(SystemExit) as caught:
        options.parseOptions(arguments)
    message = str(caught.value)
    assert message.startswith("echod: ")
    assert message.endswith(" (see: twistd echod --help)")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--prot", "there is no option --prot; did you mean --port?"),
        ("--max_mesage=1", "there is no option --max_mesage; did you mean --max-message?"),
        ("--thread-count", "did you mean --threads?"),
        ("--cert=x", "--cert; it is given as --listen tls:8443:certificate=cert.pem:key=key.pem"),
        ("--ssl-keyfile=x", "--ssl-keyfile; it is given as --listen tls:8443:certificate="),
        ("--tls", "there is no option --tls; it is given as --listen tls:8443:certificate="),
        ("--unix=x", "--unix; it is given as --listen unix:/run/echod/echod.sock"),
        ("--uds=x", "--uds; it is given as --listen unix:/run/echod/echod.sock"),
        ("--verbose", "there is no option --verbose; it is given as --log-level debug"),
        ("-v", "there is no option -v; it is given as --log-level debug"),
        ("--handshake", "there is no option --handshake; did you mean --handshake-timeout?"),
        ("--certificates=x", "--certificates; --listen may have what you need"),
        ("--host=::1", "no option --host; it is given as --listen tcp:8888:interface=127.0.0.1"),
        ("--bind=x", "no option --bind; it is given as --listen tcp:8888:interface=127.0.0.1"),
        ("--user=x", "there is no option --user; it is given as --uid USER"),
        ("-x", "there is no option -x (see"),
        ("--zzzz", "there is no option --zzzz (see"),
        ("--\x1b", r"there is no option --\x1b (see"),
        ("--max=5", "no option --max; the options that begin with it are: --max-"),
        ("--idle=5", "there is no option --idle; did you mean --idle-timeout?"),
        ("--log-fil=5", "there is no option --log-fil; did you mean --log-files?"),
        ("--log-file=x", "no option --log-file; it is given as --logfile FILE, an option"),
        ("--no-ban", "there is no option --no-ban; did you mean --no-banner?"),
        ("--port", "option --port requires argument"),
    ],
)
def test_an_unknown_flag_is_answered_by_what_may_be_meant(flag: str, meant: str) -> None:
    assert meant in refusal(flag)


def test_a_value_may_look_like_an_option() -> None:
    options = Options()
    options.parseOptions(["--banner", "--log-file", "--prefix=--idle"])
    assert (options.settings.banner, options.settings.prefix) == (b"--log-file", "--idle")


def test_a_word_that_is_no_flag_may_be_the_handler() -> None:
    assert "unexpected argument 'upper'; a handler is given as --handler NAME" in refusal("upper")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_a_short_flag(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        Options().parseOptions([flag])
    assert caught.value.code == 0
    assert "--listen=TEXT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "right"),
    [
        ("-n", "-n is an option of twistd, and stands before echod: twistd -n echod"),
        ("--nodaemon", "before echod: twistd --nodaemon echod"),
        ("--pidfile=", "before echod: twistd --pidfile ... echod"),
        ("-u", "before echod: twistd -u ... echod"),
        ("-l-", "before echod: twistd -l ... echod"),
        ("--reactor=epoll", "before echod: twistd --reactor ... echod"),
        ("-p8888", "there is no option -p; it is given as --port 8888"),
    ],
)
def test_an_option_of_twistd_is_sent_to_its_place(flag: str, right: str) -> None:
    assert right in refusal(flag, runner=TwistdOptions())


def test_an_option_of_twist_is_sent_to_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/twist"])
    said = refusal("--reactor=epoll", runner=TwistOptions())
    assert "is an option of twist, and stands before echod: twist --reactor ... echod" in said


def test_an_unknown_flag_is_no_option_of_twistd_either() -> None:
    assert "did you mean --port?" in refusal("--prot", runner=TwistdOptions())
