"""A test that lacks a program or a right fails in CI, and is skipped elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.faults import test_misbehaving
from tests.faults.injection import ACCEPT, injecting
from tests.faults.network import Network, network
from tests.support import needs
from tests.support.daemon import Daemon, Start
from tests.support.needs import needs_root, tool

TESTS = Path(__file__).parents[1]

FAILURE, SKIP = pytest.fail.Exception, pytest.skip.Exception


@pytest.fixture(params=[True, False], ids=["CI", "elsewhere"])
def outcome(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> type[BaseException]:
    """In CI or elsewhere: the outcome of a test that lacks a program or a right."""
    if request.param:
        monkeypatch.setenv("CI", "true")
        return FAILURE
    monkeypatch.delenv("CI", raising=False)
    return SKIP


@pytest.fixture
def instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a program before the one of this name: it prints this, and fails."""

    def put(name: str, said: str) -> None:
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return put


def test_a_program(outcome: type[BaseException]) -> None:
    with pytest.raises(outcome, match="no-such-program is not installed"):
        tool("no-such-program")


def test_root(outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(outcome, match="only root can do so: run the tests as root"):
        needs_root("do so")


def test_a_network_namespace(
    outcome: type[BaseException], instead: Callable[[str, str], None]
) -> None:
    instead("ip", "it is not reached")
    instead("unshare", "unshare: unshare failed: Operation not permitted")
    with pytest.raises(outcome, match=r"no network namespace .* Operation not permitted: run"):
        enter(network())


@pytest.fixture
def made() -> Iterator[Network]:
    """A network, by what is there: not yet as in CI or elsewhere."""
    with network() as made:
        yield made


def test_what_a_network_needs_of_the_kernel(
    made: Network, outcome: type[BaseException], instead: Callable[[str, str], None]
) -> None:
    instead("tc", "Error: Specified qdisc kind is unknown.")
    with pytest.raises(outcome, match="tc qdisc: Error: Specified qdisc"):
        made.run(tool("tc"), "qdisc")


def test_leave_to_trace(
    outcome: type[BaseException], instead: Callable[[str, str], None], daemon: Start
) -> None:
    running: Daemon = daemon()
    instead("strace", "strace: attach: ptrace(PTRACE_SEIZE, 1): Operation not permitted")
    with pytest.raises(outcome, match="permit ptrace"):
        enter(injecting(running, ACCEPT, "error=ENFILE"))


def test_a_control_group(
    outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(test_misbehaving, "CONTROL_GROUPS", (tmp_path / "no" / "no",))
    with pytest.raises(outcome, match=r"no control group .* run the tests as root"):
        enter(test_misbehaving.few_processes(10))


def enter(context: AbstractContextManager[object]) -> None:
    with context:
        pytest.fail("nothing was missing")


def test_all_skips_go_one_way() -> None:
    """Tests call `missing` or `not_here`, which distinguish a fixable lack from others."""
    assert set(skips(TESTS)) == {Path(needs.__file__)}


def test_what_a_test_needs_is_no_decorator_which_would_make_it_none() -> None:
    """With `@needs_root` a test is never run: that is a call, not a way to mark a function."""
    names = "|".join(name for name, value in vars(needs).items() if callable(value))
    decorators = re.compile(rf"^\s*@({names})\b", re.MULTILINE)
    assert [path for path in TESTS.rglob("*.py") if decorators.search(path.read_text())] == []


def skips(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*.py"):
        if path != Path(__file__) and re.search(
            r"pytest\.(skip\b(?!\.Exception)|importorskip|mark\.skip)", path.read_text()
        ):
            yield path
