from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from echod.daemon.file_limit import MOST_OF_A_PROCESS, SPARE, fit, fit_limits, make_room
from echod.handlers.lookup import parse
from echod.settings.definitions import Settings
from tests.support.needs import not_here

SOFT, HARD = resource.getrlimit(resource.RLIMIT_NOFILE)


@pytest.fixture(autouse=True)
def limit_kept() -> Iterator[None]:
    """The limit of this process, as it was."""
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT, HARD))


def soft() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_a_limit_that_is_too_low_is_raised() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, HARD))
    assert make_room(512) == 512
    assert soft() == 512


def test_a_limit_that_is_high_enough_is_left_alone() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, HARD))
    assert make_room(256) == 256
    assert soft() == 512


def test_more_than_the_hard_limit_cannot_be_had() -> None:
    if HARD == resource.RLIM_INFINITY:
        not_here("there is no hard limit")
    assert make_room(HARD + 1) == HARD
    assert soft() == HARD


def test_a_system_that_refuses_is_put_up_with(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("not here")

    resource.setrlimit(resource.RLIMIT_NOFILE, (256, HARD))
    with monkeypatch.context() as patched:
        patched.setattr(resource, "setrlimit", refuse)
        assert make_room(512) == 256


@pytest.mark.parametrize(
    ("allowed", "connections", "threads", "fitting"),
    [
        (1256, 1000, 0, (1000, 0)),
        (1255, 1000, 0, (999, 0)),
        (64, 16_384, 0, (32, 0)),
        (1556, 1000, 100, (1000, 100)),
        (656, 1000, 342, (100, 100)),  # each with the three of its thread
        (1, 10, 10, (1, 0)),
    ],
)
def test_what_fits_leaves_some_for_the_status(
    allowed: int, connections: int, threads: int, fitting: tuple[int, int]
) -> None:
    assert fit(allowed, connections, threads) == fitting


def test_a_process_needs_more_descriptors_than_a_thread() -> None:
    # Of 1000, 256 are kept; each program needs four beside its connection.
    assert fit(1000, 100, 200, MOST_OF_A_PROCESS) == (100, 148)
    assert fit(1000, 2000, 86, MOST_OF_A_PROCESS) == (744 - 4 * 86, 86)


@pytest.mark.parametrize(
    ("handler", "most"), [("exec:command=cat", 86), ("exec:command=cat", 400), ("echo", 400)]
)
def test_there_is_room_for_the_pipes_of_each_program(handler: str, most: int) -> None:
    asked = Settings(handler=parse(handler), max_connections=400, max_processes=most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, HARD))
    assert fit_limits(asked) == asked
    assert soft() == 400 + SPARE + (4 * most if handler != "echo" else 0)


def test_there_is_room_for_both_sides_of_a_forwarded_connection() -> None:
    if HARD < 2 * 400 + SPARE:
        not_here("the hard limit is too low")
    asked = Settings(handler=parse("forward:to=localhost:80"), max_connections=400)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, HARD))
    assert fit_limits(asked) == asked
    assert soft() == 2 * 400 + SPARE
    assert fit(1000, 2000, 0, of_a_connection=2) == (372, 0)
