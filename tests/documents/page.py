"""Run a page: each block of it runs, is checked, or is marked with the reason why not."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from echod.settings.definitions import configure
from echod.settings.schema import SettingError
from tests.documents.comparing import difference, match, match_unordered
from tests.documents.markdown import Block, Mistake, blocks, commands
from tests.documents.terminal import Command, Terminal, terminal, write_programs
from tests.support.needs import needs_root, not_here, tool
from tests.support.paths import ROOT
from tests.support.programs import SCRIPTS

# These commands belong in the terminal of the server, where one ends the one before.
_SERVES = re.compile(
    r"(\w+=\S+ )*((\S*/)?(twistd|echod serve)|make run|systemd-socket-activate|python \w+\.py)\b"
)

_CTRL_C = "^C"

# These pages change the machine: they get folders such as /etc of their own.
_INSTALLING = {"deploy.md"}

# All programs of these pages are executed: a reader's first page, and one whose daemon reads the
# command line of another.
_EXECUTING = {"README.md", "errors.md"}

# Programs that the commands of pages use, and that may be missing.
_TOOLS = (
    *("curl", "haproxy", "jq", "nc", "nft", "openssl"),
    *("promtool", "systemd-analyze", "systemd-socket-activate"),
)


class Differs(Exception):
    """A block is not as the page has it."""


def copy_of_the_project(directory: Path) -> None:
    """Make what a reader has unpacked, with the environment that runs the tests as its .venv."""
    for name in ("etc", "examples"):
        junk = shutil.ignore_patterns("__pycache__", "dropin.cache")
        shutil.copytree(ROOT / name, directory / name, ignore=junk)
    for name in (
        "LICENSE",
        "Makefile",
        "README.md",
        "constraints.txt",
        "pyproject.toml",
        "setup.cfg",
    ):
        shutil.copy2(ROOT / name, directory)
    environment = directory / ".venv"
    environment.mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.suffix != ".stamp" and entry != SCRIPTS:
            (environment / entry.name).symlink_to(entry)
    programs = environment / "bin"
    programs.mkdir()
    for entry in SCRIPTS.iterdir():
        (programs / entry.name).symlink_to(entry)
    activate = programs / "activate"
    activate.unlink()
    activate.write_text((SCRIPTS / "activate").read_text().replace(sys.prefix, str(environment)))
    # The tests run in it, so it has all that the daemon needs.
    for name in ("made", "run", "develop"):
        (environment / f"{name}.stamp").touch()


def ask_for_tools(page: Path) -> None:
    """End the test of a page whose commands need a program that is missing: it says which."""
    for block in blocks(page):
        if block.language in ("console", "sh") and "skip" not in block.marks:
            for name in _TOOLS:
                if re.search(rf"\b{name} ", block.text):
                    tool(name)


# The checks of blocks raise these where a block is wrong.
_WRONG = (Differs, OSError, SettingError, SyntaxError, ValueError, yaml.YAMLError)


class Page:
    """A page that runs.

    Attributes:
        differences: every block that is not as the page has it, with its place.
        left_out: the blocks that only root can run, with their places and what they need it for.
    """

    def __init__(self, path: Path, terminal: Terminal) -> None:
        self.differences: list[str] = []
        self.left_out: list[str] = []
        self._path = path
        self._terminal = terminal
        self._clients: list[Command] = []  # they wait for Ctrl-C
        self._ports: dict[str, str] = {}
        self._until = terminal.until
        self._checks = {
            "console": self._run_commands,
            "ini": self._check_unit,
            "json": lambda block: json.loads(block.text),
            "python": self._run_python,
            "sh": self._run_script,
            "text": self._compare_log,
            "toml": lambda block: configure({}, block.text, self._path.name),
            "yaml": lambda block: list(yaml.safe_load_all(block.text)),
        }

    def run(self) -> None:
        """Run all blocks, one after the other."""
        for block in blocks(self._path):
            try:
                self._run(block)
            except _WRONG as error:
                self.differences.append(f"{self._path.name}:{block.line}: {error}")
        try:
            self._stop_server()
        except TimeoutError as error:
            self.differences.append(f"{self._path.name}: {error}")

    def _run(self, block: Block) -> None:
        if "skip" in block.marks:
            return
        if "root" in block.marks and os.geteuid() != 0:
            self.left_out.append(f"{self._path.name}:{block.line}: {block.marks['root']}")
            return
        if "in" in block.marks:
            self._find_in_file(block)
        elif "file" in block.marks:
            self._save(block)
        elif "log" in block.marks:
            self._compare_log(block)
        elif block.language in self._checks:
            self._checks[block.language](block)
        else:
            known = ", ".join(sorted(self._checks))
            raise Mistake(
                f"a block of {block.language or 'no language'}: say behind the fence what it is "
                f"({known}), or mark it (CONTRIBUTING.md)"
            )

    # Commands.

    def _run_commands(self, block: Block) -> None:
        for command in commands(block):
            try:
                self._run_command(command.text, command.shown, block)
            except (Differs, TimeoutError) as error:
                raise Differs(f"line {command.line}: $ {command.text}\n{error}") from None

    def _run_command(self, text: str, shown: Sequence[str], block: Block) -> None:
        if "typed" in block.marks or _CTRL_C in shown:
            self._talk(text, shown, block.marks.get("typed", "").split(", "))
            return
        serves = _SERVES.match(text) is not None
        if serves and "beside" not in block.marks:
            self._stop_server()
        ran = self._terminal.run(text, serves=serves, executed="executed" in block.marks)
        if ran is self._terminal.server:
            self._wait_for_log(shown)
        else:
            self._compare(ran, shown, block.marks)

    def _compare(self, ran: Command, shown: Sequence[str], marks: Mapping[str, str]) -> None:
        gaps = "prints more" in marks or _SERVES.match(ran.text) is not None
        compare = match_unordered if "any order" in marks else match
        ports: dict[str, str] | None = None

        def agrees() -> bool:
            nonlocal ran, ports
            ports = compare(shown, ran.printed, self._ports, gaps=gaps)
            if ports is None and "eventually" in marks:
                ran = self._terminal.run(ran.text, serves=False)
            return ports is not None

        if not (self._until(agrees) if "eventually" in marks else agrees()):
            raise Differs(difference(shown, ran.printed))
        if not shown:
            self._expect_success(ran)
        assert ports is not None
        self._ports = ports

    def _talk(self, text: str, shown: Sequence[str], typed: Sequence[str]) -> None:
        """Be a client at a keyboard: type a line where the page shows it."""
        client = self._terminal.start(text, subprocess.PIPE)
        to_type = [line for line in typed if line]
        expected: list[str] = []
        for line in shown:
            if line == _CTRL_C:
                self._clients.append(client)
            elif to_type and line == to_type[0]:
                self._wait_for_lines(client, expected)
                client.type(to_type.pop(0))
            else:
                expected.append(line)
        if client not in self._clients and not self._until(lambda: client.ended):
            raise Differs("it has not ended")
        self._wait_for_lines(client, expected)
        if to_type:
            raise Mistake(f"the block does not show this, which is typed: {', '.join(to_type)}")

    def _wait_for_lines(self, client: Command, expected: Sequence[str]) -> None:
        if (
            not self._until(lambda: len(client.printed) >= len(expected))
            or client.printed != expected
        ):
            raise Differs(difference(expected, client.printed))

    def _stop_server(self) -> None:
        self._interrupt_clients()
        self._terminal.stop_server()

    def _interrupt_clients(self) -> None:
        """Press Ctrl-C where a client waits for it, in the last terminal first."""
        while self._clients:
            server = self._terminal.server
            before = len(server.printed) if server else 0
            self._terminal.interrupt(self._clients.pop())
            # The log has their ends in the order in which they were.
            if server:
                self._until(lambda: len(server.printed) > before)  # noqa: B023

    # The log of the server.

    def _compare_log(self, block: Block) -> None:
        self._interrupt_clients()
        shown = [line for line in block.text.splitlines() if not line.startswith("$ ")]
        for number, line in enumerate(shown):
            if line.startswith(_CTRL_C):
                shown[number] = line.removeprefix(_CTRL_C)
                self._wait_for_log(shown[:number])
                server = self._terminal.server
                self._terminal.stop_server()
                self._wait_for_log(shown, server)
                return
        self._wait_for_log(shown)

    def _wait_for_log(self, shown: Sequence[str], server: Command | None = None) -> None:
        """Wait until these lines are in the log of the server, others between them."""
        server = server or self._terminal.server
        if server is None:
            raise Differs("no server is running whose log this could be")
        found: dict[str, str] | None = None

        def is_there_or_cannot_come() -> bool:
            nonlocal found
            ended = server.ended
            found = match(shown, server.printed, self._ports, gaps=True)
            return found is not None or ended

        self._until(is_there_or_cannot_come)
        if found is None:
            raise Differs(difference(shown, server.printed))
        self._ports = found

    # Files and programs.

    def _save(self, block: Block) -> None:
        if block.language == "toml":
            configure({}, block.text, block.marks["file"])
        path = self._terminal.directory / block.marks["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        before = f"{block.marks['before']}\n" if "before" in block.marks else ""
        path.write_text(self._terminal.real(f"{before}{block.text}\n"))

    def _find_in_file(self, block: Block) -> None:
        """Compare with a file of the project; of Python, leave out the file's docstrings."""
        text = (ROOT / block.marks["in"]).read_text()
        if block.language == "python":
            there = {ast.unparse(statement) for statement in _bare(text)}
            for statement in _bare(block.text):
                if (code := ast.unparse(statement)) not in there:
                    raise Differs(f"{block.marks['in']} has not\n{code}")
        elif block.text not in text:
            raise Differs(f"{block.marks['in']} has not these lines")

    def _run_python(self, block: Block) -> None:
        program = f"{block.marks.get('before', '')}\n{block.text}\n"
        ast.parse(program)
        path = self._terminal.directory / "block.py"
        path.write_text(self._terminal.real(program))
        self._expect_success(self._terminal.run(f"python < {shlex.quote(str(path))}"))
        path.unlink()

    def _run_script(self, block: Block) -> None:
        left_out = re.split(r"[, ]+", block.marks.get("without", "").partition(": ")[0])
        # A line that ends with a backslash goes on in the next one.
        lines = re.split(r"(?<!\\)\n", block.text)
        kept = [line for line in lines if line.partition(" ")[0] not in left_out]
        # Another one is not taken for a server while the one before still opens its listeners.
        serves = "twistd -n" in block.text
        if serves:
            self._stop_server()
        self._expect_success(self._terminal.run("\n".join(["set -e", *kept]), serves=serves))

    def _expect_success(self, ran: Command) -> None:
        if ran.process.returncode:
            printed = "\n".join(ran.printed)
            raise Differs(f"exit status {ran.process.returncode}\n{printed}".rstrip())

    def _check_unit(self, block: Block) -> None:
        """Let systemd check a unit of etc/ that has these lines beside its own."""
        name = block.marks.get("unit")
        if name is None:
            raise Mistake("say which unit of etc/systemd these lines are for: <!-- unit: NAME -->")
        verify_unit(name, block.text, self._terminal.directory)


def check_page(path: Path, scratch: Path) -> None:
    """Run a page as a test: fail with all that differs.

    Args:
        path: the page.
        scratch: an empty folder.
    """
    if "TEST_REACTOR" in os.environ:
        not_here("the pages show what runs on the default reactor")
    ask_for_tools(path)
    directory = scratch / "echod"
    directory.mkdir()
    copy_of_the_project(directory)
    layer = None
    if path.name in _INSTALLING:
        layer = scratch / "layer"
        layer.mkdir()
    programs = directory / ".venv" / "bin"
    if path.name not in _EXECUTING:
        write_programs(programs)
    with terminal(directory, scratch, layer=layer, programs=programs) as here:
        page = Page(path, here)
        page.run()
    if page.differences:
        pytest.fail("\n\n".join(["", *page.differences]), pytrace=False)
    if page.left_out:
        needs_root(f"run these blocks, and all others are right: {'; '.join(page.left_out)}")


def verify_unit(name: str, lines: str, directory: Path) -> None:
    """Let systemd check a unit of etc/ with these lines in a drop-in.

    The program of the unit is that of the tests, by a path without a space.

    Raises:
        Differs: systemd finds something wrong.
    """
    configparser.ConfigParser(strict=False, interpolation=None).read_string(lines)
    units = directory / "units"
    shutil.copytree(ROOT / "etc" / "systemd", units, dirs_exist_ok=True)
    drop_in = units / f"{name}.d" / "page.conf"
    drop_in.parent.mkdir()
    programs = units / "bin"
    programs.symlink_to(SCRIPTS)
    for unit in units.glob("echod*.*"):
        if unit.is_file():
            unit.write_text(unit.read_text().replace("/opt/echod/bin", str(programs)))
    drop_in.write_text(lines.replace("/opt/echod/bin", str(programs)))
    ran = subprocess.run(
        [tool("systemd-analyze"), "verify", str(units / name)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    shutil.rmtree(units)
    if ran.returncode or ran.stdout:
        raise Differs(ran.stdout)


def _bare(text: str) -> list[ast.stmt]:
    """Return the statements of a program without docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        ) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return tree.body
