from __future__ import annotations

import tomllib
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod import Chunk, Fixed, Length, Limits, Line
from echod.handlers.contract import ConcurrencyModel
from echod.handlers.framings import parse_framing, resolve_framing
from echod.handlers.kinds import Defaults
from echod.handlers.lookup import parse as parse_handler
from echod.handlers.naming import Spec
from echod.settings.definitions import (
    SETTINGS,
    Settings,
    configure,
    differences,
    reloaded,
)
from echod.settings.flags import Options
from echod.settings.schema import Setting, SettingError, as_file
from echod.text import escape


def parse(*arguments: str) -> Settings:
    options = Options()
    options.parseOptions(arguments)
    return options.settings


def test_without_flags_the_defaults_hold() -> None:
    settings = parse()
    assert settings == Settings()
    assert settings.endpoints == ("tcp:8888",)
    assert settings.handler_spec == Spec("echo")
    assert resolve_framing(settings.framing_spec) == Chunk(1024)
    assert settings.make_limits() == Limits()
    assert settings.make_banner(Chunk()) is None


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--port", "80"], "endpoints", ("tcp:80",)),
        (["--listen", "unix:/a", "--listen=tcp6:1"], "endpoints", ("unix:/a", "tcp6:1")),
        (["--port=0", "--listen=unix:/a"], "endpoints", ("tcp:0", "unix:/a")),
        (["--handler", "m:f:a=1"], "handler_spec", Spec("m:f", {"a": "1"})),
        (["--prefix", "> "], "handler_spec", Spec("echo", {"prefix": "> "})),
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
        (["--framing=length:bytes=2,max_message=10"], Length(10, bytes=2)),
        (["--framing=length:bytes=2", "--max-message=10"], Length(10, bytes=2)),
        ([r"--framing=line:delimiter=\r\n,max_message=10"], Line(b"\r\n", 10)),
        (["--framing=line:max_message=10", r"--delimiter=\\\x00\xff;,"], Line(b"\\\0\xff;,", 10)),
        (["--framing=fixed:size=7"], Fixed(7)),
    ],
)
def test_the_framing_has_its_own_defaults_and_arguments(
    arguments: list[str], framing: Any
) -> None:
    assert resolve_framing(parse(*arguments).framing_spec) == framing


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


def test_a_banner_that_the_framing_cannot_hold_is_refused() -> None:
    with pytest.raises(SettingError) as caught:
        parse(f"--banner={'x' * 300}").make_banner(Length(bytes=1))
    assert str(caught.value) == (
        "--banner: a length of 1 byte announces at most 255 bytes, not 301"
    )


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
        (
            ["--drain-timeout=soon"],
            "'soon' is not a number of seconds, 0 or from 0.001 to 1",
        ),
        (["--drain-timeout=-1"], "'-1' is not a number of seconds"),
        (["--drain-timeout=nan"], "'nan' is not a number of seconds"),
        (["--framing=a=b"], "--framing: 'a=b' is not of the form NAME"),
        (
            ["--framing=length:max-message=5"],
            "'max-message=5' is not of the form key=value (did you mean max_message?)",
        ),
        (["--concurrency=fast"], "is not one of: reactor, defer-to-thread, thread-per"),
        (["--framing=line", "--delimiter="], "--delimiter: '' is not at least one byte"),
        (["--banner=\\x1"], "--banner: '\\\\x1' is not text in which"),
        (["--handler=a=b"], "--handler: 'a=b' is not of the form NAME"),
        (["--nonsense"], "there is no option --nonsense"),
        (["extra\x1b"], "unexpected argument 'extra\\x1b'"),
        (["--banner=a", "--no-banner"], "--banner and --no-banner contradict each other"),
        (
            ["--listen=proxy:starttls:0:certificate=x", "--concurrency=thread-per-connection"],
            "--listen proxy:starttls:0:certificate=x has no effect with --concurrency thread-per-",
        ),
        (
            ["--concurrency=serial", "--banner=a"],
            "--concurrency serial, which sends no greeting: leave it out",
        ),
        (["--delimiter=x"], "--delimiter needs --framing line, not chunk"),
        (
            ["--framing=line:delimiter=x", "--delimiter=x"],
            "--delimiter and --framing both give delimiter: leave out delimiter=x there",
        ),
        (
            ["--framing=length:max_message=5", "--max-message=6"],
            "--max-message and --framing both give max_message: leave out max_message=5 there",
        ),
        (
            ["--framing=fixed:size=5", "--max-message=5"],
            "--max-message has no effect with --framing fixed: give fixed:size=N",
        ),
        (["--port=80", "--port=80"], "--port: 80 is given twice"),
        (
            ["--listen=unix:s", "--listen=8888", "--listen=unix:s"],
            "--listen: unix:s is given twice",
        ),
        (["--port=80", "--listen=tcp:80"], "--listen: tcp:80 is given twice, also as --port"),
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


@pytest.mark.parametrize("one", [one for one in SETTINGS if one.native is not bool])
def test_of_a_flag_that_is_given_twice_the_last_one_wins_unless_it_repeats(one: Setting) -> None:
    first, last = SOME.get(one.name, ("1", "2"))
    options = Options()
    options.parseOptions([f"{one.flag}={first}", f"{one.flag}={last}", *NEEDED.get(one.name, ())])
    expected = (one.from_flag(first), one.from_flag(last))
    assert getattr(options.settings, one.name) == (expected if one.text.repeats else expected[1])


# Two values for each setting that takes no numbers, and what else it needs.
SOME = {
    "proxy_trust": ("10.0.0.0/8", "fd00::/8"),
    "concurrency": ("serial", "reactor"),
    "framing": ("line", "length"),
    "fault": ("reset:after=10", "delay"),
    "log_format": ("json", "text"),
    "log_level": ("debug", "warn"),
}
NEEDED = {"delimiter": ("--framing=line",)}


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("fd00::/8", "fd00::/8"),
        ("::ffff:192.0.2.7", "::ffff:c000:207/128"),
    ],
)
def test_a_network_is_an_address_and_the_length_of_its_prefix(text: str, network: str) -> None:
    assert parse("--proxy-trust", text).proxy_trust == (ip_network(network),)


@pytest.mark.parametrize(
    "text",
    [
        *["", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/08", "10.0.0.0/255.0.0.0", "10.0.0.0/0.0.0.3"],
        *["10.0.0", "167772160", "fe80::%eth0/64", "fe80::/129", "host", "10.0.0.0/\u0968", "a\0"],
        *["10.0.0.0/8 ", "010.0.0.1", ":" * 5000],
    ],
)
def test_a_network_is_nothing_else(text: str) -> None:
    with pytest.raises(SystemExit, match=r"is not a network, as in 10\.0\.0\.0/8 or fd00::/8"):
        parse("--proxy-trust", text)


def test_a_network_with_bits_beyond_its_prefix_is_not_guessed() -> None:
    with pytest.raises(SystemExit, match=r"did you mean 10\.0\.0\.0/8\?"):
        parse("--proxy-trust", "10.0.0.1/8")


def test_to_watch_for_stalls_is_not_to_burn_the_processor() -> None:
    for text in ("1e-7", "0.0099"):
        with pytest.raises(SystemExit, match=r"not a number of seconds, 0 or from 0\.01 to"):
            parse(f"--stall-threshold={text}")
    assert parse("--stall-threshold=0.01").stall_threshold == 0.01


def taken(read: Callable[[Any], Any], value: object) -> list[Any]:
    """Return what a value is taken for; nothing where it is refused in one printable line."""
    try:
        return [read(value)]
    except SettingError as error:
        said = escape(str(error))
    assert len(said) < 600
    assert "\n" not in said
    return []


@given(st.sampled_from(SETTINGS), st.text() | st.text("0123456789.e+-_ \u0967\u0665"))
def test_whatever_a_flag_says_is_a_value_or_one_line(one: Setting, text: str) -> None:
    for value in taken(one.from_flag, text):
        if one.native in (int, float):
            # As TOML writes numbers; nothing else that Python would read.
            assert tomllib.loads(f"it = {text}")["it"] == value


# The values of TOML.
TOML = st.recursive(
    st.integers()
    | st.floats()
    | st.booleans()
    | st.text()
    | st.dates()
    | st.times()
    | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@given(st.sampled_from(SETTINGS), TOML)
def test_whatever_a_file_says_is_a_value_or_one_line(one: Setting, value: object) -> None:
    for kept in taken(one.from_file, value):
        if one.native in (int, float, bool):
            items = value if isinstance(value, list) else [value]
            assert kept == (tuple(items) if one.text.repeats else value)


def test_ports_that_the_kernel_chooses_may_be_as_many_as_wanted() -> None:
    assert parse("--port=0", "--port=0", "--listen=tcp:0").endpoints == ("tcp:0",) * 3


def test_contradictions_are_refused_however_settings_are_made() -> None:
    with pytest.raises(SettingError):
        Settings(banner=b"a", no_banner=True)


def test_help_names_every_setting_and_its_default() -> None:
    text = " ".join(str(Options()).split())
    for setting in SETTINGS:
        assert setting.flag in text
    for default in ("[default: reactor]", "[default: 600]", "[default: OK...]", "[default: 16]"):
        assert default in text


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--version")
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("echod ")


# The file.


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with settings."""
    path = tmp_path / "echod.toml"
    path.write_text("threads = 5\nport = [80, 81]\nidle-timeout = 7\n")
    return path


def test_a_file_gives_settings_and_flags_win(file: Path) -> None:
    settings = parse("--config", str(file), "--idle-timeout=8", "--port=90", "--max-threads=6")
    assert settings == Settings(threads=5, port=(90,), idle_timeout=8.0, max_threads=6)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (
            ["--fault=reset:after=handshake"],
            "--fault reset: after=handshake needs a listener with TLS, as --listen tls:...",
        ),
        (
            ["--fault=close:after=handshake,listener=1", "--listen=tcp:0", "--listen=tls:1"],
            "--fault close: after=handshake needs a listener with TLS, as --listen tls:...",
        ),
        (
            ["--fault=alert", "--listen=unix:x"],
            "--fault alert needs a listener with TLS, as --listen tls:...",
        ),
        (
            ["--fault=wrong-certificate:listener=1", "--listen=tcp:0", "--listen=badtls:1"],
            "--fault wrong-certificate needs a listener with TLS, as --listen tls:...",
        ),
        (
            ["--fault=delay:sni=shop.localhost"],
            "--fault delay: sni= needs a listener with TLS, as --listen tls:...",
        ),
        (
            ["--fault=close:listener=2", "--listen=tcp:0"],
            "--fault close: listener=2 is none of the listeners: tcp:0",
        ),
        (
            ["--fault=close:listener=tcp:1", "--listen=tcp:0"],
            "--fault close: listener=tcp:1 is none of the listeners: tcp:0",
        ),
    ],
)
def test_a_fault_that_can_hit_no_connection_is_refused(flags: list[str], why: str) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*flags)
    assert str(caught.value) == f"echod: {why} (see: twistd echod --help)"


def test_a_fault_after_the_handshake_may_be_of_any_listener_with_tls() -> None:
    for endpoint in ("tls:0", "ssl:0", "starttls:0", "proxy:tls:0"):
        parse("--fault=close:after=handshake", "--listen=tcp:0", f"--listen={endpoint}")


@pytest.mark.parametrize(
    ("content", "flag", "settings"),
    [
        ("no-banner = true", "--banner=Hi", Settings(banner=b"Hi")),
        ("banner = 'Hi'", "--no-banner", Settings(no_banner=True)),
        ("port = 80", "--listen=unix:/a", Settings(listen=("unix:/a",))),
        ("listen = 'tcp6:80'\nport = 80", "--port=0", Settings(port=(0,))),
    ],
)
def test_a_flag_wins_over_what_contradicts_it_in_the_file(
    file: Path, content: str, flag: str, settings: Settings
) -> None:
    file.write_text(content)
    assert parse("--config", str(file), flag) == settings


BOTH = "--max-message and --framing both give max_message: leave out max_message=6 there"
SPREAD = "--drain-spread (5) must be shorter than --drain-timeout (2.5)"


@pytest.mark.parametrize(
    ("content", "flag", "why"),
    [
        ("drain-timeout = 2.5\ndrain-spread = 5", "--threads=1", "{file}: " + SPREAD),
        (
            "drain-spread = 5",
            "--drain-timeout=2.5",
            "{file}: " + SPREAD + " (--drain-timeout is given as a flag)",
        ),
        (
            "drain-timeout = 2.5",
            "--drain-spread=5",
            SPREAD + " (--drain-timeout is set in {file})",
        ),
        ("threads = 1", "--delimiter=x", "--delimiter needs --framing line, not chunk"),
        (
            "max-message = 5",
            "--framing=line:max_message=6",
            "{file}: " + BOTH + " (--framing is given as a flag)",
        ),
    ],
)
def test_a_contradiction_between_flags_and_file_names_both_places(
    file: Path, content: str, flag: str, why: str
) -> None:
    file.write_text(content)
    with pytest.raises(SystemExit) as caught:
        parse("--config", str(file), flag)
    assert str(caught.value).startswith(f"echod: {why.format(file=file)} (see")


def test_the_file_may_be_named_before_or_after_the_flags(file: Path) -> None:
    assert parse("--threads=6", f"--config={file}").threads == 6


def test_a_file_can_be_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    options = Options()
    options.parseOptions(["--config", file.name, "--threads=6"])
    monkeypatch.chdir("/")
    file.write_text("threads = 9\nidle-timeout = 9\n")
    again = options.configure()
    assert again == Settings(threads=6, idle_timeout=9.0)
    changed = [one.name for one in differences(options.settings, again)]
    assert changed == ["port", "idle_timeout"]


def test_a_running_daemon_takes_what_it_can() -> None:
    running, wanted = Settings(threads=6), Settings(handler=Spec("upper"), idle_timeout=1)
    assert reloaded(running, wanted) == Settings(threads=6, idle_timeout=1)


def test_what_a_running_daemon_cannot_take_may_contradict_what_it_can() -> None:
    running = Settings(concurrency=ConcurrencyModel.SERIAL)
    with pytest.raises(SettingError, match="--banner has no effect with --concurrency serial"):
        reloaded(running, Settings(banner=b"Good day"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"threads = 0", "echod.toml:1: threads: '0' is not a whole number from 1 to 10000"),
        (b"thread = 1", "echod.toml:1: thread: there is no such key; did you mean threads?"),
        (b"host = 'a'", ":1: host: there is no such key; as a flag, it is --listen tcp:8888:int"),
        (b"tls = true", ":1: tls: there is no such key; as a flag, it is --listen tls:8443:cert"),
        (b"reload = true", "no such key; as a flag, it is --reload, an option of echod serve"),
        (b"check-config = true", "no such key; as a flag, it is --check-config"),
        (b"uid = 'nobody'", "no such key; as a flag, it is --uid USER, an option of twistd"),
        (b"handler = 'a=b'", "echod.toml:1: handler: 'a=b' is not of the form NAME"),
        (b"banner = 'a'\nno-banner = true", "echod.toml: --banner and --no-banner contradict"),
        (b"listen = ['unix:s', 'unix:s']", "echod.toml: --listen: unix:s is given twice"),
        (b"port = [1, 2, 1]", "echod.toml: --port: 1 is given twice"),
        (b"threads = ", "echod.toml:1: threads: has no value; write threads = VALUE"),
        (b"threads = 1\nthreads = 2\n", "echod.toml:2: threads: is given twice, first in line 1"),
        (
            b'banner = "a\nthreads = 2\n',
            "echod.toml:1: banner: the text has no closing quotation mark",
        ),
        (b"banner = 'a", "echod.toml:1: banner: the text has no closing quotation mark"),
        (b'banner = "a', "echod.toml:1: banner: the text has no closing quotation mark"),
        (b"\xff", "echod.toml: this is not UTF-8"),
        (b"'a\\u001b' = 1\n\"\\u001b\" = 1", "echod.toml"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(file: Path, content: bytes, why: str) -> None:
    file.write_bytes(content)
    with pytest.raises(SystemExit) as caught:
        parse("--config", str(file))
    message = str(caught.value)
    assert why in message
    assert message.startswith(f"echod: {file}")
    assert "\n" not in message
    assert "\x1b" not in message


def test_a_byte_order_mark_is_skipped(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert parse("--config", str(file)).threads == 5
    file.write_bytes(b"\xef\xbb\xbfprot = 1")
    with pytest.raises(SystemExit, match=r"echod\.toml:1: prot: there is no such key"):
        parse("--config", str(file))


def test_a_path_that_is_none_is_one_line() -> None:
    with pytest.raises(SystemExit, match=r"echod: --config /a\\x00b: embedded null byte"):
        parse("--config", "/a\0b")


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--config", str(tmp_path / "none"))
    assert str(caught.value).startswith(
        f"echod: --config {tmp_path}/none: No such file or directory"
    )


NAMES = st.from_regex(r"[a-z_]{1,9}", fullmatch=True)
TEXTS = st.text(st.characters(codec="utf-8"))
SECONDS = st.just(0.0) | st.floats(0.001, 10**7)

# A value for each independent setting; settings that exclude each other are left out.
ANY_SETTINGS = st.builds(
    Settings,
    port=st.lists(st.integers(0, 65535), unique=True).map(tuple),
    listen=st.lists(TEXTS, unique=True).map(tuple),
    handler=st.from_regex(r"[^:=,]+(:[^:=,]+)?(:[a-z]+=[^,]*(,[A-Z]+=[^,\\]+)?)?", fullmatch=True)
    .filter(lambda text: "\\," not in text)
    .map(parse_handler),
    concurrency=st.sampled_from([ConcurrencyModel.REACTOR, ConcurrencyModel.DEFER_TO_THREAD]),
    threads=st.integers(1, 10_000),
    framing=st.sampled_from([Spec("line"), parse_framing(r"mine:Own:end=\r\n\,,size=7")]),
    delimiter=st.none() | st.binary(min_size=1),
    max_message=st.none() | st.integers(1, 2**31 - 1),
    banner=st.none() | st.binary(),
    prefix=st.none() | TEXTS,
    drain_timeout=SECONDS,
    idle_timeout=SECONDS,
)


@given(ANY_SETTINGS)
def test_settings_that_are_printed_are_a_file_that_gives_them(settings: Settings) -> None:
    assert configure({}, as_file(SETTINGS, settings)) == settings


def test_settings_can_be_printed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--config", str(file), "--threads=6", "--print-config")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert configure({}, printed) == Settings(threads=6, port=(80, 81), idle_timeout=7.0)


def test_the_printed_settings_show_each_default_in_effect(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse("--print-config")
    printed = capsys.readouterr().out
    assert "# port is unset: 8888, if no other address is given\n" in printed
    assert "# listen is unset: where --port says\n" in printed
    assert "# status is unset: nowhere\n" in printed
    assert "= []" not in printed
    assert '= ""' not in printed
    assert "is unset: \n" not in printed


def test_settings_can_be_checked(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--check-config", "--config", str(file))
    assert caught.value.code == 0
    assert capsys.readouterr().out == "echod: the configuration is good\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--threads=3"], "--threads has no effect: it needs --concurrency defer-to-thread"),
        (["--max-queue=3"], "--max-queue has no effect: it needs --concurrency defer-to-thread"),
        (
            ["--max-threads=3", "--concurrency=defer-to-thread"],
            "--max-threads has no effect: it needs --concurrency thread-per-connection",
        ),
        (["--serial-timeout=3"], "--serial-timeout has no effect: it needs --concurrency serial"),
        (
            ["--message-timeout=3"],
            "--message-timeout has no effect: it needs a --framing other than chunk",
        ),
        (
            ["--proxy-trust=10.0.0.0/8", "--listen=tls:1:certificate=c"],
            "--proxy-trust has no effect: it needs --listen proxy:...",
        ),
        (["--proxy-timeout=3"], "--proxy-timeout has no effect: it needs --listen proxy:..."),
        (
            ["--handshake-timeout=3", "--listen=proxy:tcp:1"],
            "--handshake-timeout has no effect: it needs --listen tls:...",
        ),
        (["--max-processes=3"], "--max-processes has no effect: it needs --handler exec"),
        (
            ["--max-pending=3", "--concurrency=thread-per-connection"],
            (
                "--max-pending has no effect: it needs a --concurrency other than "
                "thread-per-connection"
            ),
        ),
        (["--status-host=a"], "--status-host has no effect: it needs --status"),
        (["--journal=9"], "--journal has no effect: it needs --control"),
        (["--journal-bytes=9"], "--journal-bytes has no effect: it needs --control"),
        (
            ["--max-connections-per-address=3", "--listen=unix:a", "--listen=tls:unix:b"],
            "--max-connections-per-address has no effect: it needs a listener other than unix:",
        ),
    ],
)
def test_a_setting_without_effect_is_named_with_the_choice_that_it_needs(
    arguments: list[str], line: str
) -> None:
    assert parse(*arguments).without_effect == [line]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [f"--threads={Limits.threads}"],  # the default
        ["--threads=3", "--max-queue=1", "--concurrency=defer-to-thread"],
        ["--max-threads=3", "--concurrency=thread-per-connection"],
        ["--max-processes=3", "--handler=exec:command=cat"],
        ["--serial-timeout=3", "--concurrency=serial"],
        ["--max-pending=3", "--handler-timeout=3", "--concurrency=defer-to-thread"],
        ["--message-timeout=3", "--framing=line"],
        ["--message-timeout=3", "--framing=length:bytes=2"],
        ["--proxy-trust=10.0.0.0/8", "--proxy-timeout=3", "--port=1", "--listen=proxy:unix:a"],
        ["--handshake-timeout=3", "--listen=proxy:ssl:1:privateKey=k"],
        ["--status=tcp:1", "--status-host=a"],
        ["--control=unix:a", "--journal=9", "--journal-bytes=9"],
        ["--max-connections-per-address=3", "--listen=proxy:unix:a"],
        ["--max-connections-per-address=3", "--listen=unix:a", "--port=0"],
    ],
)
def test_a_setting_that_has_an_effect_is_not(arguments: list[str]) -> None:
    assert parse(*arguments).without_effect == []


def test_a_check_names_settings_without_effect_and_their_place(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--check-config", "--config", str(file), "--max-threads=6")
    assert caught.value.code == 0
    printed = capsys.readouterr()
    assert printed.out == "echod: the configuration is good\n"
    assert printed.err.splitlines() == [
        f"echod: {file}: --threads has no effect: it needs --concurrency defer-to-thread",
        "echod: --max-threads has no effect: it needs --concurrency thread-per-connection",
    ]


def test_a_handler_asks_for_settings_that_flags_and_files_override() -> None:
    wants = Defaults(framing="line", concurrency="defer-to-thread", banner=b"Hello")
    taken, told = Settings().with_defaults(wants)
    assert taken.framing.name == "line"
    assert taken.concurrency is ConcurrencyModel.DEFER_TO_THREAD
    assert taken.banner == b"Hello"
    assert told == ["framing line", "concurrency defer-to-thread", "banner b'Hello'"]
    flags = configure({"concurrency": ConcurrencyModel.REACTOR, "no_banner": True})
    taken, told = flags.with_defaults(wants)
    assert taken.concurrency is ConcurrencyModel.REACTOR
    assert taken.banner is None
    assert told == ["framing line"]
    written = configure({}, 'framing = "chunk"', "echod.toml").with_defaults(wants)[0]
    assert written.framing.name == "chunk"
    assert Settings().with_defaults(Defaults(banner=b""))[0].no_banner


def test_a_value_that_there_is_not_is_the_handlers_error() -> None:
    with pytest.raises(SettingError, match="threads"):
        Settings().with_defaults(Defaults(concurrency="threads"))
