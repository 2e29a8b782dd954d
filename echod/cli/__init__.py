"""The `echod` command: tools for operators and programmers, besides the daemon itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from twisted.logger import globalLogBeginner

from echod import __version__
from echod.handlers.contract import ConcurrencyModel
from echod.handlers.lookup import InstalledHandler, installed
from echod.printing import printing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `echod` command.

    Args:
        arguments: the arguments after its name; None for those of the process.

    Returns:
        The exit code.
    """
    with printing():
        parsed = _parser().parse_args(arguments)
    # The command itself reports broken plugins, so Twisted's log about them is not shown.
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
    code: int = parsed.run()
    return code


def list_handlers() -> int:
    """Print the handlers that are installed; return 1 if one of them is broken."""
    handlers = list(installed())
    width = max((len(handler.name) for handler in handlers), default=0)
    with printing():
        for handler in handlers:
            print(f"{handler.name:{width}}  {_description(handler)}")
    broken = [handler for handler in handlers if handler.error]
    for handler in broken:
        print(f"echod: {handler.origin}: {handler.error}", file=sys.stderr)
    return 1 if broken else 0


def _description(handler: InstalledHandler) -> str:
    if handler.error:
        return f"broken: {handler.error}"
    every = len(handler.models) == len(ConcurrencyModel)
    models = "every model" if every else ", ".join(handler.models)
    return f"{handler.summary} [{models}]"


class _Parser(argparse.ArgumentParser):
    """A parser whose errors name the command that runs the daemon."""

    def error(self, message: str) -> NoReturn:
        super().error(f"{message}; the daemon is run by: twistd -n echod")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="echod", description="Tools around the daemon, which is run by: twistd -n echod"
    )
    parser.add_argument("--version", action="version", version=f"echod {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    handlers = commands.add_parser(
        "handlers",
        help="list the handlers that --handler can name",
        description="List the installed handlers: name, summary, and the concurrency models "
        "each can run in.",
    )
    handlers.set_defaults(run=list_handlers)
    return parser
