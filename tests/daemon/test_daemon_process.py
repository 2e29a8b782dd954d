"""The set-up of the process that twistd runs, in the test's own process."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.application.app import ServerOptions
from twisted.scripts import twistd

from echod.cli.serve import ServeOptions, serve
from echod.daemon import file_limit, process
from echod.daemon.process import (
    Options,
    _settle_pidfile,
    log_through,
    make_log_observer,
    sink_for,
)
from echod.entry import makeService
from echod.log.observer import LogObserver
from echod.log.sinks import DescriptorSink, FileSink, Line, Sink, SyslogSink
from echod.settings.definitions import Settings
from echod.workers.start import make_supervisor
from echod.workers.supervisor import Supervisor
from tests.support.log import Log
from tests.support.reactor import reactor
from tests.support.serving import LOOPBACK
from twisted.plugins import echod_plugin


class Kept:
    """Keeps what the set-up gives to the process: nothing of it stays."""

    def __init__(self) -> None:
        self.triggers: list[tuple[Any, ...]] = []
        self.at_exit: list[Any] = []
        self.in_child: list[Any] = []


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kept]:
    made = Kept()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    handlers = {number: signal.getsignal(number) for number in (*numbers, signal.SIGURG)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    for name in ("sigTerm", "sigInt"):
        monkeypatch.setattr(reactor, name, getattr(reactor, name))
    monkeypatch.setattr(reactor, "seconds", reactor.seconds, raising=False)
    monkeypatch.setattr(
        reactor, "addSystemEventTrigger", lambda *words: made.triggers.append(words)
    )
    monkeypatch.setattr(reactor, "removeSystemEventTrigger", lambda trigger: None)
    monkeypatch.setattr(atexit, "register", lambda function, *_: made.at_exit.append(function))
    monkeypatch.setattr(
        os,
        "register_at_fork",
        lambda **hooks: made.in_child.append(hooks["after_in_child"]),
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.chdir(tmp_path)
    yield made
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class ListSink(Sink):
    """Keeps lines."""

    stamps = False

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def write(self, lines: Any) -> int:
        self.lines += lines
        return len(lines)

    def begin_anew(self) -> None:
        pass

    def in_child(self) -> Any:
        return self


def options_of(*flags: str, **of_twistd: Any) -> Options:
    """Return the daemon's options, below twistd's."""
    options = Options()
    options.parent = ServerOptions()
    options.parent.update({"reactor": "any", "pidfile": "", "nodaemon": True, **of_twistd})
    options.parseOptions(["--listen", LOOPBACK, *flags])
    return options


# The log.


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({}, FileSink),
        ({"nodaemon": True}, DescriptorSink),
        ({"debug": True}, DescriptorSink),
        ({"nodaemon": True, "logfile": "-"}, DescriptorSink),
        ({"nodaemon": True, "logfile": "echod.log"}, FileSink),
        ({"syslog": True}, SyslogSink),
        ({"logfile": "-"}, type(None)),  # twistd refuses it in the background
        ({"nodaemon": True, "logger": "any.observer"}, type(None)),
    ],
)
@pytest.mark.usefixtures("kept")
def test_the_log_goes_where_twistd_is_told_to_write_it(
    given: dict[str, Any], kind: type, tmp_path: Path
) -> None:
    unset = {"logfile": None, "nodaemon": False, "debug": False, "logger": None, "syslog": False}
    with (tmp_path / "stdout").open("w") as stdout:
        sink = sink_for({"prefix": "echod", **unset, **given}, stdout, keep=3)
    assert type(sink) is kind
    if isinstance(sink, FileSink):
        assert sink.keep == 3
        assert (tmp_path / (given.get("logfile") or "twistd.log")).exists()
        sink.write([Line("a line", "info")])
        os.close(sink._descriptor)


@pytest.mark.usefixtures("kept")
def test_a_log_that_cannot_be_opened_stops_the_start_in_one_line() -> None:
    options = options_of(logfile="/nosuch/echod.log", debug=False)
    with pytest.raises(SystemExit) as caught:
        make_log_observer(options)
    assert caught.value.code == ("echod: --logfile /nosuch/echod.log: No such file or directory")


@pytest.mark.usefixtures("kept")
def test_twist_keeps_its_own_log() -> None:
    options = Options()
    options.parseOptions(["--listen", LOOPBACK])
    assert make_log_observer(options) is None


def test_old_files_are_a_matter_of_a_log_in_files(
    kept: Kept, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "sink_for", lambda *_, **options: ListSink())
    observer = make_log_observer(options_of("--log-files", "7"))
    assert observer is not None
    assert "--log-files has no effect: the log does not go to a file" in log.text
    assert kept.at_exit == [observer.close]


def test_the_log_is_finished_at_the_end_and_begins_a_new_file_at_sigusr1(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    observer = LogObserver(ListSink())
    rotated: list[bool] = []
    monkeypatch.setattr(observer.writer, "rotate", lambda: rotated.append(True))
    log_through(observer)
    assert kept.triggers == [("after", "shutdown", observer.finish)]
    assert (kept.at_exit, kept.in_child) == ([observer.close], [observer.restart])
    signal.raise_signal(signal.SIGUSR1)
    assert rotated == [True]


# The pidfile.


@pytest.mark.parametrize("content", ["", "nonsense", str(os.getpid())], ids=["", "text", "own"])
def test_a_stale_pidfile_is_removed_where_twistd_writes_it(
    content: str, tmp_path: Path, log: Log
) -> None:
    file = tmp_path / "twistd.pid"
    file.write_text(content)
    given = {"pidfile": "twistd.pid", "rundir": str(tmp_path)}
    _settle_pidfile(given)
    assert given["pidfile"] == str(file)
    assert not file.exists()
    assert f"Removing the pidfile {file}: " in log.text


def test_a_pidfile_that_is_a_link_is_left_for_the_refusal(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.touch()
    link.symlink_to(target)
    _settle_pidfile({"pidfile": str(link)})
    assert link.is_symlink()
    assert target.exists()


def test_a_pidfile_that_cannot_be_read_stops_the_start_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        _settle_pidfile({"pidfile": str(tmp_path)})
    assert str(caught.value.code).startswith(f"echod: --pidfile {tmp_path} is not a file: ")
    with pytest.raises(SystemExit, match=r"x: File name too long$"):
        _settle_pidfile({"pidfile": "x" * 256})
    _settle_pidfile({"pidfile": str(tmp_path / "nosuch")})  # which is no error
    _settle_pidfile({"pidfile": ""})
    _settle_pidfile(None)


# The options.


def test_a_reactor_in_place_of_a_closed_stream_is_refused_in_the_background(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(file_limit, "fill_standard_streams", lambda: ["standard input"])
    with pytest.raises(SystemExit, match=r"^echod: standard input is closed, and --reactor"):
        options_of(nodaemon=False)
    options_of(nodaemon=True)


def test_the_advice_on_another_user_fits_the_command() -> None:
    under_twist = Options()
    assert under_twist.other_user.startswith("Run it as another user")
    assert options_of(uid=None).other_user.startswith("Start twistd with --uid")
    assert ServeOptions().other_user.startswith("Give echod serve --uid")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--handler", "nosuch"), "--handler: no handler is named 'nosuch'"),
        (
            ("--workers", "2", "--listen", "systemd:name=nosuch"),
            "--listen systemd:name=nosuch: no socket",
        ),
    ],
)
@pytest.mark.usefixtures("kept")
def test_a_check_of_the_configuration_refuses_what_a_start_would(
    flags: tuple[str, ...], why: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        options_of("--check-config", *flags)
    assert str(caught.value.code).startswith("echod: ")
    assert why in str(caught.value.code)


# Workers.


def test_a_service_with_workers_is_their_supervisor(
    kept: Kept, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "sink_for", lambda *_, **options: ListSink())
    calls: list[Any] = []
    monkeypatch.setattr(reactor, "callFromThread", calls.append)
    status = ("--status", "tcp:0:interface=127.0.0.1")
    made: Any = makeService(options_of("--workers", "2", "--threads", "3", *status))
    assert isinstance(made, Supervisor)
    assert "--threads has no effect" in log.text
    assert made.status is not None
    assert made.signals is not None
    signal.raise_signal(signal.SIGUSR2)
    assert calls == [made.renew]
    signal.raise_signal(signal.SIGHUP)
    assert len(calls) == 2
    made.signals.uninstall()


@pytest.mark.usefixtures("kept")
def test_workers_need_a_log_that_is_echods() -> None:
    with pytest.raises(SystemExit, match=r"^echod: --workers needs twistd without --logger"):
        make_supervisor(options_of("--workers", "2"), None)


@pytest.mark.parametrize(
    ("flags", "given", "why"),
    [
        ((), {"chroot": "/nosuch"}, "--chroot and --workers"),
        (("--listen", "systemd:name=nosuch"), {}, "--listen systemd:name=nosuch: no socket"),
        (("--status", "nosuch:1"), {}, "--status"),
    ],
)
@pytest.mark.usefixtures("kept")
def test_workers_that_cannot_be_are_refused_in_one_line(
    flags: tuple[str, ...], given: dict[str, Any], why: str
) -> None:
    options = options_of("--workers", "2", *flags, **given)
    with pytest.raises(SystemExit) as caught:
        make_supervisor(options, LogObserver(ListSink()))
    assert str(caught.value.code).startswith("echod: ")
    assert why in str(caught.value.code)
    assert "\n" not in str(caught.value.code)


def test_settings_of_the_log_and_the_drain_follow_a_reload() -> None:
    sink = ListSink()
    observer = LogObserver(sink, level="error")
    process.reload_of_log(observer)(Settings(log_level="debug"))()
    observer({"log_format": "now it is written", "log_level": None, "log_namespace": "x"})
    observer.writer.flush(20)
    observer.close()
    assert any("now it is written" in line.text for line in sink.lines)


# `echod serve`.


@pytest.fixture
def run(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Keep the configurations that twistd would run."""
    runs: list[Any] = []
    monkeypatch.setattr(twistd, "runApp", runs.append)
    monkeypatch.setattr(echod_plugin, "take_signals", lambda: None)
    return runs


def test_serve_is_twistd_in_the_foreground_with_this_handler(run: list[Any]) -> None:
    serve(["echo", "--port", "0", "--logfile", "x.log"])
    (config,) = run
    assert config.subCommand == "echod"
    assert (config["nodaemon"], config["pidfile"], config["logfile"]) == (True, "", "x.log")
    assert isinstance(config.subOptions, ServeOptions)
    assert config.subOptions.settings.port == (0,)
    assert str(config.subOptions.settings.handler) == "echo"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "name the handler, as in: echod serve module:function"),
        (("echo", "upper"), "unexpected argument 'upper': 'echo' is served"),
        (("echo", "--handler", "upper"), "the handler is named twice: echo and --handler upper"),
        (("echo", "--nosuch"), "--nosuch"),
        (("echo", "--uid", "nosuch"), "--uid 'nosuch': there is no such user"),
        (("echo", "--gid", "nosuch"), "--gid 'nosuch': there is no such group"),
    ],
)
def test_serve_refuses_in_one_line(words: tuple[str, ...], why: str, run: list[Any]) -> None:
    with pytest.raises(SystemExit) as caught:
        serve(words)
    said = str(caught.value.code)
    assert said.startswith("echod: ")
    assert why in said
    assert said.endswith("(see: echod serve --help)")
    assert "\n" not in said
    assert run == []


def test_the_help_of_serve_names_the_flags_of_twistd_that_it_takes(
    run: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        serve(["--help"])
    assert not caught.value.code
    shown = capsys.readouterr().out
    assert shown.startswith("Usage: echod serve HANDLER [options]")
    assert "--logfile=FILE" in shown
    assert "--chroot" not in shown
