"""echod installed from real wheels, by pip, in fresh virtual environments.

The dependencies of the wheel, and no other packages, are copied there from the environment of the
tests, with their bytecode: to fetch, install and compile them would take most of the time.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import PathDistribution, distribution, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.clients import BANNER, connect, receive_all
from tests.support.daemon import Daemon, Start
from tests.support.needs import tool
from tests.support.paths import ROOT
from tests.support.programs import SCRIPTS

# The first test that needs an environment waits for pip to make it.
pytestmark = [pytest.mark.long, pytest.mark.timeout(180)]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command that must succeed; return what it printed."""
    done = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, command))} exited {done.returncode}:\n{done.stdout}")
    return done.stdout


def copy_source(to: Path) -> Path:
    """Copy what git knows or would add: a build leaves traces, and they must not be left here."""
    known = ("--cached", "--others", "--exclude-standard")
    listed = run(tool("git"), "ls-files", "-z", *known, cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # not one that is deleted, but not yet in git's eyes
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


def build_wheel(source: Path, to: Path) -> Path:
    """Build a wheel with the setuptools that is here, as pip would call it; return it."""
    # pip would take three times as long, in an environment of its own for each build even more.
    to.mkdir(exist_ok=True)
    program = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    run(sys.executable, "-c", program, to, cwd=source)
    (built,) = to.glob("*.whl")
    return built


def needed(by: Iterable[str], extras: Iterable[str] = ()) -> Iterator[str]:
    """Yield the names of the distributions that these requirements need, and of those they need.

    Args:
        by: the requirements of a distribution.
        extras: its extras that are wanted.
    """
    for one in map(Requirement, by):
        if not one.marker or any(one.marker.evaluate({"extra": each}) for each in ("", *extras)):
            yield one.name
            yield from needed(requires(one.name) or [], one.extras)


def copy_what_is_needed(wheel: Path, packages: Path) -> None:
    """Copy what a wheel needs into the folder of packages of an environment."""
    with zipfile.ZipFile(wheel) as archive:
        folders = zipfile.Path(archive).iterdir()
        (metadata,) = (each for each in folders if each.name.endswith(".dist-info"))
        required = PathDistribution(metadata).requires or []
    for name in set(needed(required)):
        of_it = distribution(name)
        for top in {file.parts[0] for file in of_it.files or []} - {"..", "__pycache__"}:
            found = Path(str(of_it.locate_file(top)))
            if found.is_dir():
                shutil.copytree(found, packages / top, dirs_exist_ok=True)
            else:
                shutil.copy2(found, packages)


class Environment:
    """A fresh virtual environment."""

    def __init__(self, folder: Path, *, wheel: Path | None = None) -> None:
        """Make it.

        Args:
            folder: where.
            wheel: a wheel that finds what it needs there; without one, all packages of the
                environment that runs the tests are found, behind its own.
        """
        self.folder = folder
        self.bin = folder / "bin"
        # A pip of its own would double the time; this one installs there as well.
        run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
        (packages,) = folder.glob("lib/python*/site-packages")
        if wheel is None:
            (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
        else:
            copy_what_is_needed(wheel, packages)
        # As Twisted's wheel brings them: the first line names the environment's Python.
        for name in ("twistd", "twist"):
            _, program = (SCRIPTS / name).read_text().split("\n", 1)
            (self.bin / name).write_text(f"#!{self.bin}/python\n{program}")
            (self.bin / name).chmod(0o755)

    def install(self, *what: str | Path) -> None:
        """Install packages; pip fails where they need what is not there."""
        pip = sys.executable, "-m", "pip", "--python", self.bin / "python"
        run(*pip, "install", "--no-compile", "--no-index", *what, cwd=self.folder)

    def listed(self, what: str) -> dict[str, str]:
        """Return the line of `echod handlers`, or `framings`, for each of them."""
        lines = run(self.bin / "echod", what, cwd=self.folder).splitlines()
        return {name: said.strip() for name, _, said in (line.partition(" ") for line in lines)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for builds and installations, which are too large to be kept by pytest."""
    made = tmp_path_factory.mktemp("packaging")
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    return copy_source(folder / "source")


@pytest.fixture(scope="module")
def wheel(folder: Path, source: Path) -> Path:
    return build_wheel(source, folder / "wheel")


SHOUT = Path("examples") / "echod-shout"
CONTENT_LENGTH = Path("examples") / "services" / "echod-content-length"


@pytest.fixture(scope="module")
def installed(folder: Path, wheel: Path, source: Path) -> Environment:
    """echod's wheel, and packages of handlers and of a framing by other authors."""
    handlers = build_wheel(source / SHOUT, source / "shout")
    framing = build_wheel(source / CONTENT_LENGTH, source / "content-length")
    environment = Environment(folder / "installed", wheel=wheel)
    environment.install(wheel, handlers, framing)
    return environment


@pytest.fixture(scope="module")
def handlers(installed: Environment) -> dict[str, str]:
    """The lines of `echod handlers` there, by name."""
    return installed.listed("handlers")


@pytest.fixture(scope="module")
def editable(folder: Path) -> Environment:
    """A copy of the source, installed as developers do."""
    environment = Environment(folder / "editable")
    edited = copy_source(folder / "edited")
    both = "--editable", edited, "--editable", edited / SHOUT
    environment.install("--no-build-isolation", "--no-deps", "--ignore-installed", *both)
    return environment


def answer(daemon: Daemon, sent: bytes) -> bytes:
    """Return all output of the daemon to a client that sends this and then its end."""
    with connect(daemon) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        return receive_all(client)


def test_the_wheel_has_the_plugin_the_marker_of_types_and_the_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()

    assert "echod/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    # An __init__.py beside it, or above, would stand in for Twisted's own.
    assert [name for name in names if name.startswith("twisted/")] == [
        "twisted/plugins/echod_plugin.py",
        "twisted/plugins/echod_reactor_plugin.py",
    ]


def test_what_an_earlier_build_has_left_is_not_installed_once_that_is_removed(
    folder: Path, wheel: Path
) -> None:
    """As docs/deploy.md has it: without `rm -rf build` the module would be there again."""
    source = copy_source(folder / "upgraded")
    (source / "build" / "lib" / "echod").mkdir(parents=True)
    (source / "build" / "lib" / "echod" / "removed.py").write_text("")
    names = []
    # `wheel` was built where no build was before.
    for built in (build_wheel(source, folder / "upgraded-wheels"), wheel):
        with zipfile.ZipFile(built) as archive:
            names.append(set(archive.namelist()))
    assert names[0] - names[1] == {"echod/removed.py"}


def test_the_wheel_holds_every_module(source: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())

    modules = {str(path.relative_to(source)) for path in source.glob("echod/**/*.py")}
    assert modules
    assert modules <= names


def test_twistd_finds_echod_from_its_wheel(installed: Environment, daemon: Start) -> None:
    started = daemon(twistd=installed.bin / "twistd")

    assert answer(started, b"happy\n") == BANNER + b"OK...happy\n"


def test_twist_finds_echod_from_its_wheel(
    installed: Environment, daemon: Start, tmp_path: Path
) -> None:
    # The fixture says `-n --pidfile=` first, which `twist` does not know: it never daemonizes.
    twist = tmp_path / "twist"
    twist.write_text(f'#!/bin/sh\nshift 2\nexec "{installed.bin}/twist" "$@"\n')
    twist.chmod(0o755)

    started = daemon(twistd=twist)

    assert answer(started, b"happy\n") == BANNER + b"OK...happy\n"


def test_the_echod_command_lists_the_built_in_handlers(handlers: dict[str, str]) -> None:
    assert {"echo", "upper", "reverse", "count"} <= set(handlers)


@pytest.mark.parametrize(
    ("kind", "handler", "reply"),
    [
        ("installed", "shout:marks=3", b"HAPPY!!!\n"),
        ("editable", "whisper", b"happy\n"),
    ],
)
def test_handlers_of_an_installed_package_run_by_name(
    request: pytest.FixtureRequest, daemon: Start, kind: str, handler: str, reply: bytes
) -> None:
    environment = request.getfixturevalue(kind)
    started = daemon("--handler", handler, twistd=environment.bin / "twistd")

    assert answer(started, b"Happy\n") == reply


def test_handlers_of_an_installed_package_are_listed(handlers: dict[str, str]) -> None:
    assert handlers["shout"] == (
        "Sends back what it gets in capital letters, with exclamation marks. "
        "[message; every model] (marks: int = 1)"
    )
    assert (
        handlers["whisper"] == "Sends back what it gets in small letters. [message; every model]"
    )


def test_a_framing_of_an_installed_package_runs_by_name_and_is_listed(
    installed: Environment, daemon: Start
) -> None:
    assert installed.listed("framings")["content-length"] == (
        "A message, and a reply, follows its length in a header: `Content-Length: 5`. "
        "(max_message: int = 1048576)"
    )
    options = ("--framing", "content-length:max_message=10", "--handler", "upper")
    started = daemon(*options, twistd=installed.bin / "twistd")

    sent = b"Content-Length: 5\r\n\r\nhappy"
    assert answer(started, sent) == sent.upper().replace(b"CONTENT-LENGTH", b"Content-Length")
