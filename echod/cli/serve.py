"""`echod serve`: twistd in the foreground, with echod as its only command.

`echod serve module:handler --port 8888` is
`twistd -n --pidfile= echod --handler module:handler --port 8888`. It takes each flag of the
daemon, and those of twistd that suit a service in a terminal.

This module imports the daemon, so the command imports this module only when it is called.
"""

from __future__ import annotations

import getopt
from collections.abc import Iterator, Sequence
from typing import Any

from twisted.python import usage
from twisted.python.util import gidFromString, uidFromString
from twisted.scripts import twistd

from echod.daemon.file_limit import fill_standard_streams
from echod.daemon.process import Options
from echod.errors import UserError
from echod.printing import printing
from echod.settings.flags import entry, refuse_abbreviations
from echod.text import clipped, escape, quoted
from twisted.plugins import echod_plugin

COMMAND = "echod serve"

# Options of twistd that `serve` takes; the others are about the background.
TWISTD = {
    "reactor=NAME": "The reactor to run on: uvloop (the default), epoll, asyncio, ...",
    "help-reactors": "List the reactors, and exit.",
    "logfile=FILE": "Write the log to this file instead of the terminal.",
    "uid=USER": "Run as this user, by name or id, once the ports are open; only root can.",
    "gid=GROUP": "Run as this group, by name or id, beside --uid.",
}

# With one of these no handler has to be named: they print and exit, or name it in another way.
_INSTEAD = {"--handler", "--config", "-h", "--help", "--version", "--help-reactors"}


class ServeError(UserError):
    """The arguments of `echod serve` cannot be used; the text is one line."""


class ServeOptions(Options):
    """The daemon's flags, with the help of `echod serve`."""

    command = COMMAND
    takes_reload = True
    longdesc = (
        "Run a handler as a service in the foreground, until Ctrl-C or SIGTERM. HANDLER is "
        "module:object, for a module of this folder or an installed one, or an installed name "
        "(`echod handlers` lists them). "
        "`echod serve HANDLER ...` is `twistd -n --pidfile= echod --handler HANDLER ...`."
    )

    @property
    def other_user(self) -> str:
        return f"Give {COMMAND} --uid, or run it as another user"

    def getSynopsis(self) -> str:
        return f"Usage: {COMMAND} HANDLER [options]"

    def entries(self, width: int) -> Iterator[str]:
        yield from super().entries(width)
        yield from entry("--reload", " ".join((self.opt_reload.__doc__ or "").split()), width)
        for flag, text in TWISTD.items():
            yield from entry(f"--{flag}", text, width)


class _Twistd(twistd.ServerOptions):  # type: ignore[misc, name-defined]
    """twistd's options, with echod as the only command: no plugin is looked for."""

    @property
    def subCommands(self) -> Iterator[tuple[str, None, type[Options], str]]:
        maker = echod_plugin.echod
        self.loadedPlugins = {maker.tapname: maker}
        yield maker.tapname, None, ServeOptions, maker.description


def serve(arguments: Sequence[str]) -> None:
    """Run a handler until a signal ends the process.

    Args:
        arguments: those after `echod serve`.

    Raises:
        SystemExit: it cannot start (one line, exit code 1), or has printed what was asked for.
    """
    echod_plugin.take_signals()
    fill_standard_streams()  # --reactor opens files
    config: Any = _Twistd()
    try:
        with printing():
            config.parseOptions(twistd_arguments(arguments))
    except (usage.UsageError, ServeError) as error:
        said = " ".join(str(error).split())
        raise SystemExit(f"echod: {escape(said)} (see: {COMMAND} --help)") from None
    twistd.runApp(config)


def twistd_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with which twistd does the same.

    Raises:
        ServeError: no handler is named, or more than one.
        UsageError: an option does not exist, or lacks its value.
    """
    options = ServeOptions()
    options.parent = _Twistd()
    own = [flag.partition("=")[:2] for flag in TWISTD]
    options.longOpt += ["".join(flag) for flag in own]
    try:
        refuse_abbreviations(arguments, options.longOpt)
        given, words = getopt.gnu_getopt(arguments, options.shortOpt, options.longOpt)
    except (getopt.GetoptError, usage.UsageError) as error:
        raise usage.UsageError(options.explain(str(error))) from None
    names = {f"--{name}" for name, _ in own}
    before: list[str] = []
    after: list[str] = []
    for flag, value in given:
        takes_value = f"{flag[2:]}=" in options.longOpt
        (before if flag in names else after).extend([flag, value] if takes_value else [flag])
    _check_names(dict(given))
    return ["-n", "--pidfile=", *before, "echod", *_handler(words, dict(given)), *after]


def _check_names(given: dict[str, str]) -> None:
    """Refuse the name of a user or group that does not exist; twistd would show a traceback."""
    for flag, noun, look_up in (
        ("--uid", "user", uidFromString),
        ("--gid", "group", gidFromString),
    ):
        try:
            look_up(given.get(flag, "0"))
        except KeyError:
            raise ServeError(f"{flag} {quoted(given[flag])}: there is no such {noun}") from None


def _handler(words: Sequence[str], given: dict[str, str]) -> list[str]:
    """Return the flag for the handler, which is named without one."""
    if len(words) > 1:
        raise ServeError(f"unexpected argument {quoted(words[1])}: {quoted(words[0])} is served")
    if words and "--handler" in given:
        raise ServeError(
            f"the handler is named twice: {clipped(words[0])} and --handler "
            f"{clipped(given['--handler'])}"
        )
    if not words and not _INSTEAD & given.keys():
        raise ServeError(
            f"name the handler, as in: {COMMAND} module:function, or {COMMAND} echo for the "
            "built-in one"
        )
    return ["--handler", words[0]] if words else []
