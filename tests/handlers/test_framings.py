"""`--framing` finds a framing by its name, and refuses at once what is none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from echod.handlers.framings import (
    FRAMINGS,
    UnusableFraming,
    check_framing,
    installed_framings,
    parse_framing,
    resolve_framing,
)
from echod.messages.framing import Chunk, Fixed, Framing, Line
from echod.messages.guarded import Guarded, guarded
from echod.messages.prefixed import Length, Netstring, Varint
from echod.settings.definitions import Settings
from echod.settings.schema import SettingError
from tests.support.clients import BANNER, connect, receive
from tests.support.daemon import Start
from tests.support.distributions import add_distribution
from tests.support.programs import SCRIPTS

USERS = '''
from dataclasses import dataclass

from echod import Line


@dataclass(frozen=True)
class Own(Line):
    """Lines that end in a semicolon."""

    delimiter: bytes = b";"


def shorter(size: int, *, factor: float = 1.0) -> Line:
    """Lines that are short."""
    return Line(max_message=int(size * factor))


ready = Own(max_message=7)


class Lacking:
    """Lacks two parts."""

    max_message = 5

    def framer(self): ...


class Handler:
    def received(self, message): ...


class Endless:
    max_message = None
    encode = encode_line = framer = lambda *_: None


class Rough(Own):
    def framer(self):
        return object()


class Framer:
    feed = end = next_message = None

    def buffered(self):
        return 0


class Uncounted(Own):
    def framer(self):
        return Framer()


class Textual(Own):
    def encode_line(self, text):
        return "text"


class Failing(Own):
    def framer(self):
        raise KeyError("x\\n")


def choosy(*, size: int = 0):
    raise ValueError("size has to be even,\\nnot " + str(size))


class Fickle:
    encode = encode_line = staticmethod(bytes)
    reads = 0

    def framer(self):
        return Line().framer()

    @property
    def max_message(self):
        Fickle.reads += 1
        if Fickle.reads > 2:
            raise ValueError("no longer")
        return 5


class Hidden(Fickle):
    @property
    def max_message(self):
        raise ValueError("not yet")


class Shy(Fickle):
    max_message = 5

    def encode_line(self, text):
        return {b"": b""}[text]


class Resisting:
    def __getattr__(self, name):
        raise RuntimeError("no good")


class Calling(Resisting):
    def __call__(self): ...


resisting, calling = Resisting(), Calling()
nothing = None
text = "text"
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module of framings."""
    (tmp_path / "users.py").write_text(USERS)
    return tmp_path


@pytest.fixture(autouse=True)
def users(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "users", raising=False)


def resolve(text: str) -> Framing:
    return resolve_framing(parse_framing(text))


@pytest.mark.parametrize(
    ("text", "framing"),
    [
        ("chunk", Chunk()),
        ("chunk:max_message=5", Chunk(5)),
        ("line", Line()),
        (r"line:delimiter=\r\n,max_message=5", Line(b"\r\n", 5)),
        (r"line:delimiter=\,", Line(b",")),
        ("length", Length()),
        (
            "length:bytes=3,order=little,inclusive=true",
            Length(bytes=3, order="little", inclusive=True),
        ),
        ("netstring", Netstring()),
        ("varint:max_message=5", Varint(5)),
        ("fixed:size=5", Fixed(5)),
    ],
)
def test_a_framing_is_found_by_its_name_and_gets_its_arguments(
    text: str, framing: Framing
) -> None:
    assert resolve(text) == framing


@pytest.mark.parametrize(
    ("text", "delimiter", "longest"),
    [
        ("users:Own", b";", 16384),
        ("users:Own:max_message=5", b";", 5),
        (r"users:Own:delimiter=\x00,max_message=5", b"\0", 5),
        ("users:shorter:size=5", b"\n", 5),
        ("users:shorter:size=5,factor=1.7", b"\n", 8),
        ("users:ready", b";", 7),
    ],
)
def test_a_framing_of_ones_own_is_a_class_a_function_that_makes_one_or_an_object(
    text: str, delimiter: bytes, longest: int
) -> None:
    held = resolve(text)
    framing = held.framing if isinstance(held, Guarded) else held
    assert isinstance(framing, Line)
    assert (framing.delimiter, framing.max_message) == (delimiter, longest)


def test_the_greatest_size_is_not_read_again_after_the_check() -> None:
    assert guarded(resolve("users:Fickle")).max_message == 5


def test_a_framing_that_cannot_frame_the_banner_is_named() -> None:
    settings = Settings(framing=parse_framing("users:Shy"), banner=b"Hello")
    with pytest.raises(SettingError) as caught:
        settings.make_banner(resolve("users:Shy"))
    assert str(caught.value).startswith(
        "--banner: users:Shy cannot frame it: KeyError: b'Hello' ("
    )


INTERFACE = "(see echod.Framing)"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "lenght",
            "no framing is named 'lenght'; installed: "
            + ", ".join(sorted(FRAMINGS))
            + " (did you mean length?)",
        ),
        ("nosuch:Framing", "nosuch:Framing cannot be imported: ModuleNotFoundError: "),
        ("users:Won", "users:Won cannot be imported: AttributeError: "),
        ("line:bytes=2", "line takes no argument 'bytes'; it takes: delimiter, max_message"),
        ("length:byte=2", "length takes no argument 'byte'; it takes: max_message, bytes, order"),
        ("length:bytes=5", "length: bytes=5 is not one of: 1, 2, 3, 4, 8"),
        ("length:bytes=two", "length: bytes=two is not one of: 1, 2, 3, 4, 8"),
        ("length:order=middle", "length: order=middle is not one of: big, little"),
        ("length:inclusive=perhaps", "length: inclusive=perhaps is not of type bool"),
        ("length:bytes=2:order=big", "arguments are separated by commas: length:bytes=2,order="),
        (
            "line:max_message=5:delimiter=x",
            "arguments are separated by commas: line:max_message=5,",
        ),
        (
            "line:max_message=64k",
            "line: max_message=64k is not of type int: write a whole number, as in 65536",
        ),
        ("line:max_message=0", "line: max_message is a number from 1 to 2147483647, not 0"),
        ("line:delimiter=", "line: a delimiter has at least one byte"),
        (
            r"line:delimiter=\x1",
            r"line: delimiter=\x1 is not of type bytes: write text in which \n, \r, \t, \\ and ",
        ),
        ("fixed", "fixed needs the argument 'size': fixed:size=..."),
        (
            "fixed:2",
            (
                "fixed:2 cannot be imported: ModuleNotFoundError: No module named 'fixed'; "
                "write fixed:size=2"
            ),
        ),
        ("fixed:size=-1", "fixed: size is a number from 1 to 2147483647, not -1"),
        (
            "users:ready:max_message=5",
            "users:ready takes no argument 'max_message'; it takes: none",
        ),
        ("users:choosy", r"users:choosy: size has to be even,\nnot 0"),
        (
            "users:Lacking",
            f"users:Lacking is no framing: it lacks encode, encode_line {INTERFACE}",
        ),
        (
            "users:Handler",
            (
                "users:Handler is no framing: it lacks framer, encode, encode_line; "
                "it is a handler: name it with --handler"
            ),
        ),
        (
            "users:text",
            "users:text is no framing: it lacks framer, encode_line, max_message " + INTERFACE,
        ),
        ("users:nothing", "users:nothing is no framing: it lacks framer, encode, "),
        ("users:Endless", "users:Endless is no framing: max_message is a number from 1 to "),
        (
            "users:Rough",
            (
                "the framer of users:Rough is no framer: it lacks feed, end, next_message, "
                "buffered (see echod.Framer)"
            ),
        ),
        (
            "users:Uncounted",
            "the framer of users:Uncounted is no framer: buffered is a number, as of a property",
        ),
        ("users:Textual", "users:Textual is no framing: encode_line gives no bytes"),
        ("users:resisting", "users:resisting cannot be made: RuntimeError: no good"),
        ("users:calling", "users:calling cannot be used: RuntimeError: no good"),
        ("users:Hidden", "users:Hidden: not yet ("),
        ("users:Failing", r"users:Failing cannot be made: KeyError: 'x\n'"),
    ],
)
def test_a_framing_that_cannot_be_used_is_refused_in_one_line(text: str, why: str) -> None:
    with pytest.raises(UnusableFraming) as caught:
        resolve(text)
    assert str(caught.value).startswith(why)
    assert str(caught.value).isprintable()


# Plugins.


Offers = Callable[..., Path]


@pytest.fixture
def offers(folder: Path) -> Offers:
    return lambda name, *entries: add_distribution(folder, name, *entries, group="echod.framings")


def lines() -> dict[str, tuple[str, str]]:
    """Return summary, or error, and arguments of each framing that is not built in."""
    return {
        f"{each.name} {each.origin}": (
            each.error.partition("; nowhere.py has to be in")[0] or each.summary,
            "; ".join(each.arguments),
        )
        for each in installed_framings()
        if each.origin != "echod"
    }


def test_the_list_has_each_framing_with_its_arguments_and_their_types() -> None:
    found = {each.name: each for each in installed_framings()}
    assert list(found) == sorted(FRAMINGS)
    assert not any(each.error or each.notes for each in found.values())
    assert all(each.summary.endswith(".") for each in found.values())
    assert found["fixed"].arguments == ("size: int, required",)
    assert found["length"].arguments == (
        "max_message: int = 32768",
        "bytes: 1|2|3|4|8 = 4",
        "order: big|little = big",
        "inclusive: bool = false",
    )
    assert found["line"].arguments == (r"delimiter: bytes = \n", "max_message: int = 16384")


def test_an_installed_framing_is_found_by_its_name(offers: Offers) -> None:
    offers("sound", "semicolons = users:Own", "short = users:shorter", "seven = users:ready")
    framing = resolve("semicolons:max_message=5")
    assert (framing.max_message, framing.encode(b"x")) == (5, b"x;")
    assert resolve("seven").max_message == 7
    check_framing("short")
    lined = "delimiter: bytes = ;; max_message: int = 16384"
    assert lines() == {
        "semicolons users:Own (sound)": ("Lines that end in a semicolon.", lined),
        "seven users:ready (sound)": ("Lines that end in a semicolon.", ""),
        "short users:shorter (sound)": (
            "Lines that are short.",
            "size: int, required; factor: float = 1.0",
        ),
    }


def test_a_handler_and_a_framing_may_have_one_name(folder: Path, offers: Offers) -> None:
    offers("framings", "upper = users:Own")
    add_distribution(folder, "handlers", "line = users:Own", "own = users:Own")
    assert isinstance(resolve("line"), Line)
    assert resolve("upper").encode(b"x") == b"x;"
    with pytest.raises(UnusableFraming, match="no framing is named 'own'"):
        resolve("own")


def test_a_broken_framing_and_one_that_wants_the_name_of_another_are_named_and_hide_no_other(
    offers: Offers,
) -> None:
    """Fault 58: A framing that comes with echod keeps its name beside any plugin, too."""
    offers("greedy", "line = users:Own")
    offers("one", "own = users:Own", "lost = nowhere:Own", "lacking = users:Lacking")
    offers("other", "own = users:shorter", "failing = users:Failing", "fine = users:ready")
    assert type(resolve("line")) is Line
    # Without the file of the user's code; tests/test_user_code.py is about that.
    assert {where: said.partition(" (/")[0] for where, (said, _) in lines().items()} == {
        "failing users:Failing (other)": r"failing cannot be made: KeyError: 'x\n'",
        "fine users:ready (other)": "Lines that end in a semicolon.",
        "lacking users:Lacking (one)": (
            f"lacking is no framing: it lacks encode, encode_line {INTERFACE}"
        ),
        "line users:Own (greedy)": "echod has a built-in framing line; give users:Own",
        "lost nowhere:Own (one)": (
            "lost cannot be imported: ModuleNotFoundError: No module named 'nowhere'"
        ),
        "own users:Own (one), users:shorter (other)": (
            "2 plugins have this name; give module:object"
        ),
    }
    with pytest.raises(UnusableFraming, match=r"'own' is the name of 2 plugins: .*; give module:"):
        check_framing("own")


def test_the_daemon_starts_as_ever_beside_framings_that_want_the_names_of_its_own(
    folder: Path, offers: Offers, daemon: Start
) -> None:
    """Fault 58: The daemon starts, and serves the echo, beside any plugins."""
    (folder / "failing.py").write_text("raise SystemExit(3)\n")
    offers("greedy", "chunk = failing:Own", "line = users:Own")
    (offers("damaged", "netstring = users:Own") / "METADATA").write_bytes(b"\xff\xfe\0")
    for options in ([], ["--framing", "line"]):
        started = daemon(*options, env={"PYTHONPATH": str(folder)})
        with connect(started) as client:
            client.sendall(b"happy\n")
            assert receive(client, len(BANNER) + 11) == BANNER + b"OK...happy\n"


def test_the_command_lists_framings_and_names_the_broken_ones(
    folder: Path, offers: Offers
) -> None:
    offers("one", "own = users:Own", "lost = nowhere:Own")
    command = [SCRIPTS / "echod", "framings"]
    options = {"capture_output": True, "text": True, "timeout": 60}
    sound = subprocess.run(command, check=True, env={}, **options)
    assert [line.split()[0] for line in sound.stdout.splitlines()] == sorted(FRAMINGS)
    assert (
        "fixed      A message, and a reply, has always the same number of bytes, `size`. "
        "(size: int, required)\n"
    ) in sound.stdout
    assert sound.stderr == ""
    broken = subprocess.run(command, env={"PYTHONPATH": str(folder)}, **options)
    assert broken.returncode == 1
    assert "lost       broken\n" in broken.stdout
    assert "own        Lines that end in a semicolon. (delimiter: bytes = ;; " in broken.stdout
    why = "lost cannot be imported: ModuleNotFoundError: No module named 'nowhere'; "
    assert broken.stderr.startswith(f"echod: lost: nowhere:Own (one): {why}")
    assert broken.stderr.count("\n") == 1
