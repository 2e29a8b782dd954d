"""Handlers of other distributions: none hides another, and none replaces a built-in one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from echod.handlers.builtin import HANDLERS, Echo
from echod.handlers.contract import ConcurrencyModel, HandlerError
from echod.handlers.lookup import check_name, installed, parse, resolve
from tests.support.clients import BANNER, connect, receive
from tests.support.daemon import REACTOR as CHOSEN
from tests.support.daemon import Start
from tests.support.distributions import add_distribution
from tests.support.log import Log
from tests.support.needs import not_here
from tests.support.programs import SCRIPTS

REACTOR = ConcurrencyModel.REACTOR
BUILT_IN = set(HANDLERS)

# Adds a distribution with these entry points to a folder of the path.
Offers = Callable[..., Path]


def add_dropin(folder: Path, module: str, text: str) -> None:
    plugins = folder / "twisted" / "plugins"
    plugins.mkdir(parents=True, exist_ok=True)
    (plugins / f"{module}.py").write_text(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module from which all distributions here offer handlers."""
    folder = tmp_path / "installed"
    folder.mkdir()
    (folder / "offered.py").write_text(
        "def loud(message: bytes) -> bytes:\n    return message.upper()\n\n\n"
        "def quiet(message: bytes) -> bytes:\n    return message.lower()\n"
    )
    return folder


@pytest.fixture
def offers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Offers:
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "offered", raising=False)
    return lambda name, *entries: add_distribution(folder, name, *entries)


def errors() -> dict[str, str]:
    """Return the broken handlers, by name and source."""
    return {f"{each.name} ({each.origin})": each.error for each in installed() if each.error}


def usable() -> set[str]:
    return {each.name for each in installed() if not each.error}


def answer(name: str) -> object:
    return resolve(parse(name), REACTOR).message_handler().received(b"Ab")


# Names.


def test_a_name_that_two_distributions_offer_is_refused_with_both(offers: Offers) -> None:
    """Fault 58: A name that two plugins claim is refused, with the names of both."""
    offers("one", "shout = offered:loud")
    offers("other", "shout = offered:quiet", "calm = offered:quiet")
    with pytest.raises(HandlerError) as caught:
        resolve(parse("shout"), REACTOR)
    assert str(caught.value) == (
        "'shout' is the name of 2 plugins: offered:loud (one), offered:quiet (other); "
        "give module:object"
    )
    with pytest.raises(HandlerError, match="is the name of 2 plugins"):  # as a reload asks
        check_name("shout")
    assert errors() == {
        "shout (offered:loud (one), offered:quiet (other))": "2 plugins have this name; "
        "give module:object"
    }
    with pytest.raises(
        HandlerError, match=f"installed: {', '.join(sorted([*BUILT_IN, 'calm']))} "
    ):
        check_name("nosuch")
    assert answer("calm") == b"ab"


def test_a_dropin_that_a_package_hides_is_named_with_the_file_to_remove(
    folder: Path, offers: Offers
) -> None:
    add_dropin(folder, "calm", "from echod import HandlerPlugin\n")
    package = folder / "twisted/plugins/__init__.py"
    package.touch()
    why = f"{package} hides it: remove that file"
    assert errors() == {f"calm ({package.with_name('calm.py')})": why}
    with pytest.raises(HandlerError) as caught:
        resolve(parse("calm"), REACTOR)
    assert str(caught.value) == f"calm: {why}"
    with pytest.raises(HandlerError, match=r"; `echod handlers` says which plugins are broken$"):
        resolve(parse("quiet"), REACTOR)


def test_twisteds_own_plugins_are_not_hidden_nor_are_folders_with_nothing_to_hide(
    folder: Path, offers: Offers, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_dropin(folder, "calm", "")
    monkeypatch.syspath_prepend(folder / "missing")
    assert errors() == {}
    with pytest.raises(HandlerError, match=r"give module:object\)$"):
        resolve(parse("quiet"), REACTOR)


def test_an_entry_point_and_a_dropin_of_one_name_are_two_plugins(
    folder: Path, offers: Offers, monkeypatch: pytest.MonkeyPatch
) -> None:
    from twisted import plugins

    offers("one", "shout = offered:loud")
    dropin = "from echod import HandlerPlugin\nshout = HandlerPlugin('shout', 'offered:quiet')\n"
    add_dropin(folder, "offered_plugin", dropin)
    monkeypatch.setattr(plugins, "__path__", [*plugins.__path__, str(folder / "twisted/plugins")])
    monkeypatch.delitem(sys.modules, "twisted.plugins.offered_plugin", raising=False)
    with pytest.raises(HandlerError) as caught:
        resolve(parse("shout"), REACTOR)
    assert str(caught.value).endswith(
        "offered:loud (one), offered:quiet (twisted.plugins.offered_plugin); give module:object"
    )


def test_two_distributions_that_offer_one_object_by_one_name_agree(offers: Offers) -> None:
    offers("one", "shout = offered:loud")
    offers("other", "shout = offered : loud [extra]")
    assert answer("shout") == b"AB"
    assert not errors()
    assert sorted(each.name for each in installed()) == sorted([*BUILT_IN, "shout"])


def test_a_plugin_does_not_take_the_name_of_a_built_in_handler(offers: Offers) -> None:
    """Fault 58: A built-in handler keeps its name beside any plugin."""
    offers("greedy", "echo = offered:loud", "upper = offered:nothing")
    assert resolve(parse("echo"), REACTOR).target is Echo
    assert answer("upper") == b"AB"
    assert errors() == {
        "echo (offered:loud (greedy))": "echod has a built-in handler echo; give offered:loud",
        "upper (offered:nothing (greedy))": "echod has a built-in handler upper; "
        "give offered:nothing",
    }
    assert usable() == BUILT_IN


@pytest.mark.parametrize("name", ["offered:loud", "a,b", "loud:times", "with: colon"])
def test_a_name_that_handler_would_not_take_for_one_is_said(offers: Offers, name: str) -> None:
    offers("odd", f"{name} = offered:loud")
    assert list(errors().values()) == ["--handler cannot name it so; give offered:loud"]
    assert usable() == BUILT_IN


def test_a_name_with_dots_is_a_name(offers: Offers) -> None:
    offers("dotted", "offered.loud = offered:loud")
    assert answer("offered.loud") == b"AB"


def test_no_control_character_of_a_name_reaches_the_terminal(offers: Offers) -> None:
    offers("odd", "a\x1b[2Jb = offered:loud")
    assert r"a\x1b[2Jb" in {each.name for each in installed()}
    with pytest.raises(HandlerError) as caught:
        resolve(parse("nosuch"), REACTOR)
    assert "\x1b" not in str(caught.value)


# Metadata.


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("offered", "'offered' is not module:object"),
        ("offered:", "'offered:' is not module:object"),
        ("", "'' is not module:object"),
        ("no words:at all", "'no words:at all' is not module:object"),
    ],
)
def test_an_entry_point_that_is_no_object_is_said(offers: Offers, value: str, error: str) -> None:
    offers("wrong", f"shout = {value}", "calm = offered:quiet")
    assert list(errors().values()) == [error]
    assert answer("calm") == b"ab"
    with pytest.raises(HandlerError, match=f"^shout: {error}$"):
        resolve(parse("shout"), REACTOR)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("METADATA", b"\xff\xfe"),
        ("entry_points.txt", b"\xff\xfe"),
        ("entry_points.txt", b"[echod.handlers]\nshout\n"),
    ],
)
def test_broken_metadata_is_said_and_hides_no_other(
    offers: Offers, file: str, content: bytes
) -> None:
    """Fault 58: The error names the plugin and the reason, and other plugins are found."""
    (offers("damaged", "shout = offered:loud") / file).write_bytes(content)
    offers("sound", "calm = offered:quiet")
    (where, error), *others = errors().items()
    assert not others
    assert where.startswith("damaged")
    assert "cannot be read: " in error or "is not module:object" in error
    assert usable() == BUILT_IN | {"calm"}
    assert answer("calm") == b"ab"
    assert answer("upper") == b"AB"


def test_a_distribution_without_a_name_has_handlers_all_the_same(offers: Offers) -> None:
    (offers("nameless", "shout = offered:loud") / "METADATA").unlink()
    (offers("nameless-too", "calm = offered:quiet") / "METADATA").write_text("")
    assert usable() == BUILT_IN | {"shout", "calm"}
    assert answer("shout") == b"AB"


def test_a_finder_of_distributions_that_fails_hides_no_built_in_handler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Finder:
        @staticmethod
        def find_distributions(*_: object) -> None:
            raise ZeroDivisionError("no good")

        @staticmethod
        def find_spec(*_: object) -> None:
            return None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert usable() == BUILT_IN
    assert [error for error in errors().values() if "ZeroDivisionError: no good" in error]


# Importing.


def test_a_plugin_whose_module_is_missing_is_named_and_hides_no_other(offers: Offers) -> None:
    """Fault 58: The error names the plugin and the reason, and other plugins are found."""
    offers("lost", "shout = nowhere:loud")
    offers("sound", "calm = offered:quiet")
    (error,) = errors().values()
    assert error.startswith("shout cannot be imported: ModuleNotFoundError: No module named")
    assert usable() == BUILT_IN | {"calm"}
    with pytest.raises(HandlerError, match=r"^shout cannot be imported: Module"):
        resolve(parse("shout"), REACTOR)


@pytest.mark.parametrize(
    "line",
    [
        "raise ValueError('no good')",
        "raise SystemExit('no good')",
        "raise GeneratorExit('no good')",
        "import asyncio\nraise asyncio.CancelledError('no good')",
    ],
)
def test_a_module_may_raise_anything_when_it_is_imported(
    folder: Path, offers: Offers, line: str
) -> None:
    """Fault 58: The error names the plugin and the reason, and other plugins are found."""
    (folder / "failing.py").write_text(f"{line}\n")
    offers("failing", "shout = failing:loud")
    (error,) = errors().values()
    assert error.startswith("shout cannot be imported: ")
    assert f": no good ({folder / 'failing.py'}, line " in error
    assert usable() == BUILT_IN


def test_an_object_that_resists_being_looked_at_is_said(folder: Path, offers: Offers) -> None:
    (folder / "resisting.py").write_text(
        "class Resisting:\n"
        "    def __getattr__(self, name):\n        raise RuntimeError('no good')\n\n\n"
        "resisting = Resisting()\n"
    )
    offers("resisting", "shout = resisting:resisting")
    (error,) = errors().values()
    place = f" ({folder / 'resisting.py'}, line 3)"
    assert error == f"shout cannot be used: RuntimeError: no good{place}"


@pytest.mark.parametrize(
    "declaration",
    ["HandlerPlugin(3, 'offered:loud')", "HandlerPlugin('shout', None)"],
)
def test_a_dropin_that_declares_no_texts_is_said(
    folder: Path, offers: Offers, declaration: str, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    from twisted import plugins

    add_dropin(folder, "odd_plugin", f"from echod import HandlerPlugin\nodd = {declaration}\n")
    monkeypatch.setattr(plugins, "__path__", [*plugins.__path__, str(folder / "twisted/plugins")])
    monkeypatch.delitem(sys.modules, "twisted.plugins.odd_plugin", raising=False)
    (error,) = errors().values()
    assert error == "its name and its target have to be texts"


def test_a_dropin_that_is_no_source_code_is_named(
    folder: Path, offers: Offers, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    from twisted import plugins

    add_dropin(folder, "binary_plugin", "\0")
    monkeypatch.setattr(plugins, "__path__", [*plugins.__path__, str(folder / "twisted/plugins")])
    (error,) = errors().items()
    path = folder / "twisted" / "plugins" / "binary_plugin.py"
    assert error[0] == f"binary_plugin ({path})"
    assert error[1].startswith("cannot be imported: ")
    assert "null bytes" in log.take_errors()[0]


# The programs.


@pytest.fixture
def hostile(folder: Path) -> Path:
    """A folder with all of the above."""
    (folder / "failing.py").write_text("raise SystemExit(3)\n")
    add_distribution(folder, "one", "shout = offered:loud", "echo = offered:loud")
    add_distribution(folder, "other", "shout = offered:quiet", "echo = failing:echo")
    add_distribution(folder, "odd", "echo:prefix = offered:loud", "x = failing:x", "y = z")
    for file in ("METADATA", "entry_points.txt"):
        damaged = add_distribution(folder, f"no-{file}", "echo = offered:quiet")
        (damaged / file).write_bytes(b"\xff\xfe\0")
    for number, line in enumerate(["raise SystemExit(3)", "1 / 0", "(", "import no_such_module"]):
        add_dropin(folder, f"broken{number}", f"{line}\n")
    declared = "HandlerPlugin('echo', 'offered:loud'), HandlerPlugin(None, None)"
    add_dropin(folder, "taking", f"from echod import HandlerPlugin\na, b = {declared}\n")
    return folder


@pytest.mark.parametrize("options", [[], ["--handler", "echo:prefix=OK...", "--framing", "line"]])
def test_the_daemon_starts_as_ever_beside_plugins_that_are_broken_or_want_its_handlers_name(
    hostile: Path, daemon: Start, options: list[str]
) -> None:
    """Fault 58: The daemon starts, and serves the echo, beside any plugins."""
    started = daemon(*options, env={"PYTHONPATH": str(hostile)})
    with connect(started) as client:
        client.sendall(b"happy\n")
        assert receive(client, len(BANNER) + 11) == BANNER + b"OK...happy\n"


def test_a_plugin_that_imports_the_reactor_is_named(folder: Path, daemon: Start) -> None:
    """Fault 58: A plugin that imports the reactor, and so chooses it, is named in the log."""
    if CHOSEN:
        not_here("--reactor chooses before any plugin does")
    add_dropin(folder, "hasty_plugin", "from twisted.internet import reactor\n")
    warning = (
        r"echod#warn\] Running on the \w+ reactor: twisted\.plugins\.hasty_plugin imports "
        r"twisted\.internet\.reactor before echod can choose one$"
    )
    env = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    started = daemon(env=env)
    started.wait_for(warning)
    with connect(started) as client:
        assert receive(client, len(BANNER)) == BANNER
    # Twisted keeps a list of what plugins declare, and does not import them again.
    again = daemon(env=env)
    assert again.port
    assert "#warn] Running on" not in again.log


def test_the_daemon_refuses_a_name_of_two_plugins_in_one_line(
    hostile: Path, daemon: Start
) -> None:
    started = daemon("--handler", "shout", env={"PYTHONPATH": str(hostile)})
    started.wait()
    assert started.process.returncode == 1
    assert started.lines[-1] == (
        "echod: --handler: 'shout' is the name of 2 plugins: "
        "offered:loud (one), offered:quiet (other); give module:object"
    )


def test_the_command_says_each_plugin_that_cannot_be_named(hostile: Path) -> None:
    done = subprocess.run(
        [SCRIPTS / "echod", "handlers"],
        env={"PYTHONPATH": str(hostile)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    names = [line.split("  ")[0] for line in lines]
    assert names == sorted(names)
    sound = [line.split()[0] for line in lines if not line.endswith("  broken")]
    assert sound == sorted(BUILT_IN)
    assert names.count("echo") == 3  # the built-in one, and two objects that want its name
    assert names.count("shout") == 1
    assert done.stderr.count("offered:loud (one), offered:quiet (other): 2 plugins have") == 1
    assert len(done.stderr.splitlines()) == len(lines) - len(sound)
    assert "Traceback" not in done.stderr
