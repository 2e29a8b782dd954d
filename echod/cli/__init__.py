"""The `echod` command: run a handler in the foreground, and tools around the daemon."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from twisted.logger import globalLogBeginner

from echod import __version__
from echod.collector import importing
from echod.faults.listing import listing
from echod.handlers.framings import installed_framings
from echod.handlers.lookup import installed
from echod.handlers.naming import Installed
from echod.printing import printing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `echod` command.

    Args:
        arguments: the arguments after its name; None for those of the process.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["serve"]:  # its options are the daemon's, which reads them
        with importing():
            from echod.cli.serve import serve  # it imports the daemon

        serve(words[1:])
        return 0
    if words[:1] == ["ctl"]:
        from echod.cli.ctl import ctl  # rarely needed

        return ctl(words[1:])
    with printing():
        parsed = _parser().parse_args(words)
    # The command itself reports broken plugins, so Twisted's log about them is not shown.
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
    code: int = parsed.run()
    return code


def list_handlers() -> int:
    """Print the handlers that are installed; return 1 if one of them is broken."""
    return _list(installed())


def list_framings() -> int:
    """Print the framings that are installed; return 1 if one of them is broken."""
    return _list(installed_framings())


def list_faults() -> int:
    """Print the faults on purpose, with their keys."""
    with printing():
        for line in listing():
            print(line)
    return 0


def _list(found: Sequence[Installed]) -> int:
    width = max((len(one.name) for one in found), default=0)
    with printing():
        for one in found:
            print(f"{one.name:{width}}  {_description(one)}")
    broken = [one for one in found if one.error]
    for one in broken:
        print(f"echod: {one.name}: {one.origin}: {one.error}", file=sys.stderr)
    return 1 if broken else 0


def _description(one: Installed) -> str:
    if one.error:
        return "broken"  # the error follows, once
    notes = f"[{one.notes}]" if one.notes else ""
    arguments = f"({'; '.join(one.arguments)})" if one.arguments else ""
    return " ".join(filter(None, [one.summary, notes, arguments]))


class _Parser(argparse.ArgumentParser):
    """A parser whose errors name the command that runs the daemon."""

    def error(self, message: str) -> NoReturn:
        super().error(f"{message}; the daemon is run by: echod serve, or twistd -n echod")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="echod",
        description="You write a handler, echod makes it a service. As a daemon: twistd echod",
    )
    parser.add_argument("--version", action="version", version=f"echod {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.add_parser(
        "serve", help="run a handler as a service in the foreground: echod serve module:function"
    )
    commands.add_parser(
        "ctl", help="control a running daemon: list connections, end them, change faults, ..."
    )

    def add(name: str, run: Callable[[], int], summary: str, description: str) -> None:
        command = commands.add_parser(name, help=summary, description=description)
        command.set_defaults(run=run)

    add(
        "handlers",
        list_handlers,
        "list the handlers that --handler can name",
        "List the installed handlers: name, summary, kind, the concurrency models each can run "
        "in, and its arguments with their types and defaults.",
    )
    add(
        "framings",
        list_framings,
        "list the framings that --framing can name",
        "List the installed framings: name, summary, and arguments with their types and defaults.",
    )
    add(
        "faults",
        list_faults,
        "list the faults on purpose that --fault can name",
        "List the faults on purpose: name, summary, and keys with their defaults and meanings. "
        "docs/faults.md says what each does to a client.",
    )
    return parser
