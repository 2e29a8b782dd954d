"""`echod ctl`: commands to a running daemon, by its control.

The exit code is 0, or 1 if the daemon refuses the command, 2 if the command line makes no sense, 3
if the daemon cannot be reached. An error is one line on standard error.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import quote, urlencode

from echod.cli.control_client import (
    CONTROL,
    REFUSED,
    TOKEN,
    USAGE,
    Client,
    ControlError,
    Values,
)
from echod.printing import printing
from echod.text import escape, excerpt, plural, quoted

# How many connections are asked for at once.
PAGE = 1000


def ctl(arguments: Sequence[str]) -> int:
    """Run a command; return the exit code.

    Args:
        arguments: those after `echod ctl`.
    """
    with printing():
        parsed = _parser().parse_args(arguments, argparse.Namespace(**_DEFAULTS))
    try:
        client = Client.of(parsed)
        with printing():
            for line in parsed.run(client, parsed):
                print(line)
    except ControlError as error:
        print(f"echod ctl: {escape(str(error))}", file=sys.stderr)
        return error.code
    return 0


# The commands: each yields lines.


def connections(client: Client, parsed: argparse.Namespace) -> Iterator[str]:
    """Show one connection, or list those that are selected."""
    if parsed.id is not None:
        one = client.ask("GET", f"/connections/{_number(parsed.id)}")
        yield from [json.dumps(one)] if parsed.json else _in_full(one)
        return
    found = list(_pages(client, parsed))
    if parsed.json:
        yield json.dumps(found)
    else:
        with_workers = any("worker" in one for one in found)
        heads = ("ID", "WORKER", *_HEADS[1:]) if with_workers else _HEADS
        yield from _table(heads, [_row(one, with_workers=with_workers) for one in found])


def _pages(client: Client, parsed: argparse.Namespace) -> Iterator[Values]:
    query = {name: getattr(parsed, name) for name in ("address", "listener", "reason", "fault")}
    query["state"] = parsed.state
    query = {name: value for name, value in query.items() if value is not None}
    left, after, more = parsed.limit, 0, True
    found = 0
    while more and left != 0:
        limit = PAGE if left is None else min(PAGE, left)
        page = client.ask(
            "GET", f"/connections?{urlencode({**query, 'after': after, 'limit': limit})}"
        )
        yield from page["connections"]
        found += len(page["connections"])
        more = page["more"]
        if more:
            after = page["connections"][-1]["id"]
        if left is not None:
            left -= len(page["connections"])
        if parsed.state == "ended" and not found and not page["journal"]["most"]:
            raise ControlError(
                "the daemon remembers no connection that has ended: start it with --journal N",
                REFUSED,
            )


_HEADS = ("ID", "CLIENT", "LISTENER", "SECONDS", "IN", "OUT", "TLS", "FAULTS", "REASON")


def _row(one: Values, *, with_workers: bool) -> tuple[str, ...]:
    return (
        str(one["id"]),
        *([str(one["worker"])] if with_workers else []),
        one["peer"] or "-",
        one["listener"],
        f"{one['seconds']:.3f}",
        str(one["bytes_in"]),
        str(one["bytes_out"]),
        one["tls"]["version"] if one["tls"] else "-",
        ",".join(one["faults"]) or "-",
        one["reason"] or "(open)",
    )


def _in_full(one: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for name, value in one.items():
        if name == "received_base64" or value in (None, [], ""):
            continue
        if isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from _in_full(value, f"{indent}  ")
        elif value and isinstance(value, list) and isinstance(value[0], dict):
            for item in value:
                shown = ", ".join(f"{key} {part}" for key, part in item.items())
                yield f"{indent}{name}: {escape(shown)}"
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"{indent}{name}: {escape(shown)}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table whose columns are as wide as their longest word."""
    lines = [heads, *([excerpt(word, 100) for word in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        words = (f"{word:{width}}" for word, width in zip(line, widths, strict=True))
        yield "  ".join(words).rstrip()


def disconnect(client: Client, parsed: argparse.Namespace) -> Iterator[str]:
    """End connections."""
    selected = {"address": parsed.address, "listener": parsed.listener}
    selected = {name: value for name, value in selected.items() if value is not None}
    if (bool(parsed.ids) + bool(selected) + parsed.all) != 1:
        raise ControlError(
            "say which: numbers of connections, --address or --listener, or --all", USAGE
        )
    how = {"how": "drain"} if parsed.drain else {}
    paths = [f"/connections/{_number(text)}" for text in parsed.ids] or ["/connections"]
    count = 0
    for path in paths:
        query = urlencode({**selected, **how})
        answer = client.ask("DELETE", f"{path}?{query}" if query else path)
        count += answer["disconnected"]
    if parsed.json:
        yield json.dumps({"disconnected": count})
    else:
        yield f"disconnected {count} {plural(count, 'connection', 'connections')}"


def faults(client: Client, parsed: argparse.Namespace) -> Iterator[str]:
    """Show the faults on purpose."""
    yield from _shown_faults(client.ask("GET", "/faults"), parsed)


def fault(client: Client, parsed: argparse.Namespace) -> Iterator[str]:
    """Change the faults on purpose, and show them."""
    chosen = (parsed.add, parsed.remove, parsed.clear)
    if sum(chosen) > 1 or bool(parsed.faults) is parsed.clear:
        raise ControlError(
            "name the faults, as in reset:after=10,first=2: they replace those that are there; "
            "or --add or --remove them, or --clear all",
            USAGE,
        )
    if parsed.seed is not None and any(chosen):
        raise ControlError("--seed needs new faults in place of all", USAGE)
    if parsed.clear:
        answer = client.ask("DELETE", "/faults")
    elif parsed.remove:
        for text in parsed.faults:
            answer = client.ask("DELETE", f"/faults?fault={quote(text, safe='')}")
    elif parsed.add:
        answer = client.ask("POST", "/faults", {"faults": parsed.faults})
    else:
        seed = {} if parsed.seed is None else {"seed": parsed.seed}
        answer = client.ask("PUT", "/faults", {"faults": parsed.faults, **seed})
    yield from _shown_faults(answer, parsed)


def _shown_faults(answer: Values, parsed: argparse.Namespace) -> Iterator[str]:
    if parsed.json:
        yield json.dumps(answer)
        return
    yield f"seed: {answer['seed']}"
    for text in answer["faults"] or ["no faults on purpose"]:
        yield escape(text)
    for name, count in answer["happened"].items():
        if count:
            noun = plural(count, "connection", "connections")
            yield f"happened: {escape(name)}, in {count} {noun}"


def suspend(client: Client, parsed: argparse.Namespace) -> Iterator[str]:
    """Accept no more clients."""
    yield _shown_state(client.ask("POST", "/suspend"), parsed)


def resume(client: Client, parsed: argparse.Namespace) -> Iterator[str]:
    """Accept clients again."""
    yield _shown_state(client.ask("POST", "/resume"), parsed)


def _shown_state(answer: Values, parsed: argparse.Namespace) -> str:
    return json.dumps(answer) if parsed.json else str(answer["state"])


# The command line.


# The options of every command.
_DEFAULTS = {"control": None, "control_token_file": None, "ca": None, "json": False}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose options are written in full."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, **arguments)

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"echod ctl: {escape(message)} (see: {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    # They may stand before the command, too.
    common = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument(
        "--control",
        metavar="ENDPOINT",
        help=f"the daemon's --control: unix:PATH, tcp:PORT, tcp:HOST:PORT, tls:HOST:PORT or a "
        f"URL [default: {CONTROL} in the environment]",
    )
    common.add_argument(
        "--control-token-file",
        metavar="FILE",
        help=f"the file with the token, for tcp: and tls: [default: {TOKEN} in the environment]",
    )
    common.add_argument("--ca", metavar="FILE", help="the certificates to trust, for tls:")
    common.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON, for programs"
    )
    parser = _Parser(
        prog="echod ctl",
        parents=[common],
        description="Control a running daemon: one that was started with --control.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(
        name: str, run: object, text: str, description: str = "", *parents: _Parser
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            parents=[common, *parents],
            help=text,
            description=description or f"{text[0].upper()}{text[1:]}.",
        )
        made.set_defaults(run=run)
        return made

    selecting = _Parser(add_help=False)
    selecting.add_argument(
        "--address", help="only clients of this address, address with port, network, or path"
    )
    selecting.add_argument(
        "--listener", help="only clients of this listener: its number, from 1, or its endpoint"
    )
    listing = add(
        "connections",
        connections,
        "list connections, or show one",
        "List connections, the open ones and those that the daemon remembers (--journal); or show "
        "one by its number.",
        selecting,
    )
    listing.add_argument("id", nargs="?", metavar="ID", help="show this connection")
    listing.add_argument(
        "--open", dest="state", action="store_const", const="open", help="only open ones"
    )
    listing.add_argument(
        "--ended", dest="state", action="store_const", const="ended", help="only ended ones"
    )
    listing.add_argument("--reason", help="only those that ended for this reason")
    listing.add_argument("--fault", help="only those in which this fault has happened")
    listing.add_argument("--limit", type=_limit, metavar="N", help="at most so many")
    ending = add(
        "disconnect",
        disconnect,
        "end connections",
        "End connections: those of these numbers, those that are selected, or all.",
        selecting,
    )
    ending.add_argument("ids", nargs="*", metavar="ID", help="end this connection")
    ending.add_argument("--all", action="store_true", help="end every connection")
    ending.add_argument(
        "--drain",
        action="store_true",
        help="answer what was received, and close, instead of a reset at once",
    )
    add("faults", faults, "show the faults on purpose")
    changing = add("fault", fault, "change the faults on purpose")
    changing.add_argument(
        "faults",
        nargs="*",
        metavar="FAULT",
        help="a fault as for --fault, as in reset:after=10,first=2: they replace all, in this "
        "order",
    )
    changing.add_argument("--add", action="store_true", help="add them to those that are there")
    changing.add_argument("--remove", action="store_true", help="remove them")
    changing.add_argument("--clear", action="store_true", help="remove all")
    changing.add_argument("--seed", type=int, metavar="N", help="use this seed from now on")
    add("suspend", suspend, "accept no more clients, which wait; serve the open connections on")
    add("resume", resume, "accept clients again, those that wait first")
    return parser


def _limit(text: str) -> int:
    try:
        return _number(text)
    except ControlError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _number(text: str) -> int:
    """Return a number; of a connection, only once argparse has refused an unknown option.

    It would take the value of that option for the number of a connection.
    """
    if not re.fullmatch("[1-9][0-9]{0,14}", text):
        raise ControlError(f"{quoted(text)} is not a number from 1", USAGE)
    return int(text)
