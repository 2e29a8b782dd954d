"""docs/errors.md: each error of its tables exists, in these words.

Those of the start are caused. Of the others the words are looked up in the code.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import REACTOR
from tests.support.paths import ROOT
from tests.support.programs import SCRIPTS, run

PAGE = (ROOT / "docs" / "errors.md").read_text()

# The modules of the causes, beside examples/handlers.py.
MODULES = {
    "h.py": """
import echod
def shout(message: bytes) -> bytes: return message
def need(message: bytes, *, key: str) -> bytes: return message
class Store: pass
class Stored(echod.Handler):
    def __init__(self, *, store: Store): pass
    def received(self, message): return message
class Lines(echod.Handler):
    def opened(self): pass
    def received(self, message): return message
class Nothing: pass
class Misspelt(echod.Handler):
    def recieved(self, message): return message
@echod.message_handler(framing=echod.Line())
def by_object(message): return message
class Pool(echod.Handler):
    def __init__(self, *, size: int = 0):
        if size < 1: raise ValueError("size must be at least 1")
    def look(self, message): return message
    def received(self, message): return message
def f(): return b""
three = 3
def loop(conn, addr): pass
def talk(reader, writer): pass
async def main(): pass
""",
    "fr.py": """
import echod
def make(): return echod.Line(100)
class Own:
    def framer(self): pass
    def encode(self, reply): pass
    def encode_line(self, line): pass
""",
    "noguard.py": """
from twisted.internet import reactor
reactor.callLater(0.01, reactor.stop)
reactor.run()
def handle(message): return message
""",
    "program.py": """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--size", required=True)
parser.parse_args()
def handle(message): return message
""",
    "talk.sh": "",
}

# The words of a row, and the arguments that cause its error.
CAUSES = {
    "no handler is named 'nosuch'": ["nosuch"],
    "has no attribute 'nosuch'": ["handlers:nosuch"],
    "No module named 'nosuch'": ["nosuch:shout"],
    "handlers.py:shout cannot": ["handlers.py:shout"],
    "echo:prefix cannot": ["echo:prefix"],
    "exec:tr a-z A-Z": ["exec:tr a-z A-Z"],
    "is not of the form key=value": ["echo:prefix=a,b"],
    "arguments are separated by commas": ["echo:prefix=a:banner=b"],
    "'prefix' is given twice": ["echo:prefix=a,prefix=b"],
    "echo takes no argument 'prefx'": ["echo:prefx=a"],
    "h:need needs": ["h:need"],
    "h:Stored needs": ["h:Stored"],
    "/home/me/h.py:shout": ["/home/me/h.py:shout"],
    "handlers:shuot": ["handlers:shuot"],
    "times=x is not of type int": ["handlers:repeat:times=x"],
    "handlers:Lines is a connection handler": ["handlers:Lines"],
    "handlers:later is an async": ["handlers:later", "--concurrency=defer-to-thread"],
    "3 is not callable": ["h:three"],
    "f takes no message": ["h:f"],
    "`opened` takes no client": ["h:Lines"],
    "has run the reactor": ["noguard:handle"],
    "SystemExit: 2": ["program:handle"],
    "its framing is the object": ["h:by_object"],
    "Pool.look needs": ["h:Pool.look"],
    "it takes a socket": ["h:loop"],
    "no handler is named 'talk.sh'": ["talk.sh"],
    "handler of asyncio streams": ["h:talk"],
    "main: it takes no message": ["h:main"],
    "the class Nothing": ["h:Nothing", "--concurrency=thread-per-connection"],
    "the class Misspelt": ["h:Misspelt"],
    "Pool cannot be made": ["h:Pool"],
    "make takes no argument 'max_message'": ["echo", "--framing=fr:make", "--max-message=9"],
    "Own is no framing": ["echo", "--framing=fr:Own"],
}

# Rows whose causes need more than a module: other tests cause them.
ELSEWHERE = {
    "is the name of 2 plugins": "tests/handlers/test_plugins.py",
    "who cannot enter": "tests/faults/test_exec.py",
    "is not executable by": "tests/handlers/test_command.py",
    "the interpreter of": "tests/handlers/test_command.py",
    "is still being imported": "tests/handlers/test_importing.py",
}

# Errors of other programs, and of Python itself.
FOREIGN = {
    "twistd: command not found",
    "No module named echod",
    "No module named 'twisted.scripts'",
    "AttributeError: 'bytes' object has no attribute 'sendall'",
    "TypeError: can't concat ConnectionSocket to bytes",
    "NotImplementedError",
}


def rows(heading: str) -> list[list[str]]:
    """Return the texts of each row of the table below a heading."""
    table = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    cells = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if "`" in line]
    found = [re.findall(r"(`{1,2})(.+?)\1(?!`)", cell) for cell in cells if cell[0] == "`"]
    return [[text.strip() for _, text in texts] for texts in found]


STARTS = [text for text, *_ in rows("At the start") if not text.endswith("--handler:")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the modules of the causes."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copy(ROOT / "examples" / "handlers.py", folder)
    for name, text in MODULES.items():
        (folder / name).write_text(text)
    return folder


def test_each_error_of_the_start_has_a_cause() -> None:
    matched = {key: [text for text in STARTS if key in text] for key in {**CAUSES, **ELSEWHERE}}
    assert all(len(found) == 1 for found in matched.values()), matched
    assert {text for (text,) in matched.values()} == set(STARTS)


@pytest.mark.parametrize("key", CAUSES)
def test_an_error_of_the_start_is_as_the_page_has_it(home: Path, key: str) -> None:
    (said,) = [text for text in STARTS if key in text]
    (elsewhere := home.parent / "elsewhere").mkdir(exist_ok=True)
    handler, *flags = (each.replace("/home/me", str(home)) for each in CAUSES[key])
    ended = run(
        elsewhere if key.startswith("/") else home,
        *(SCRIPTS / "twistd", "-n", "--pidfile=", *REACTOR, "echod", "--port=0"),
        *("--handler", handler, *flags),
    )
    assert ended.returncode == 1
    # The page names one module where the causes have their own.
    wanted = re.escape(said).replace(r"\.\.\.", ".*").replace("/home/me", re.escape(str(home)))
    wanted = re.sub(r"line\\ \d+", r"line\\ \\d+", wanted)
    wanted = re.sub(r"handlers(?=\\\.py,|:(f|Lines|loop|talk|main|made|Pool)\b)", r"\\w+", wanted)
    assert re.search(wanted, ended.stderr), f"{wanted}\n{ended.stderr}"


@pytest.mark.parametrize(("key", "file"), ELSEWHERE.items())
def test_an_error_that_needs_more_is_caused_elsewhere(key: str, file: str) -> None:
    assert key.strip("()") in (ROOT / file).read_text()


def literals() -> Iterator[str]:
    """Yield each text in the code; NUL stands for a value in one."""
    for path in [*ROOT.glob("echod/**/*.py"), ROOT / "twisted/plugins/echod_plugin.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else 0 for part in node.values
                )
                yield "".join(part if isinstance(part, str) else "\0" for part in parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@functools.cache
def code() -> str:
    """Return all texts in the code."""
    return "\n".join(literals())


def is_said(text: str) -> bool:
    """Return whether the code has the words of a text, in phrases."""
    pieces = re.split(r" ?(?:\b\d+\b|\.\.\.|\bstr$|\bint$|\bDeferred$) ?", text)
    return all(_covered(piece.split()) for piece in pieces)


def _covered(words: list[str], single: int = 1) -> bool:
    """Return whether words are a row of phrases, each of which is in the code.

    Args:
        words: the words.
        single: how many of the phrases may have one word.
    """
    return not words or any(
        " ".join(words[:end]) in code() and _covered(words[end:], single - (end == 1))
        for end in range(len(words), 0 if single else 1, -1)
    )


TEXTS = [
    text
    for heading in ("While it runs", "Sent to clients", "When the daemon does not start")
    for texts in rows(heading)
    for text in texts
    if text not in FOREIGN
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_code_has_the_words_of_an_error(text: str) -> None:
    assert is_said(re.sub(r"^\w+Error: ", "", text)), text


def test_words_that_the_code_does_not_have_are_found() -> None:
    assert not is_said("Server busy: too many connections for today, try again later")
    assert not is_said("a handler returns bytes or numbers, not str")


def test_each_foreign_error_stands_on_the_page() -> None:
    texts = itertools.chain.from_iterable(
        rows("While it runs") + rows("When the daemon does not start")
    )
    assert set(texts) >= FOREIGN
