"""`echod serve --reload`: the policy, with workers that the test plays."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from echod.workers.code_reload import LOOK_AT_FILES, CodeReload
from echod.workers.supervisor import PROVEN
from echod.workers.watch import GONE_AFTER
from tests.support.log import Log
from tests.support.spawning import Spawned
from tests.workers import test_supervisor
from tests.workers.test_supervisor import Make, Supervision, errors

make = test_supervisor.make

LONG_AGO = 1000.0


class Developing:
    """A supervisor whose files the test changes.

    Attributes:
        served: the supervisor, and the test's hold on it.
        module: the handler's module.
    """

    def __init__(self, served: Supervision, folder: Path) -> None:
        self.served = served
        self.folder = folder
        self.module = self.save("app.py")
        os.utime(served.file, (LONG_AGO, LONG_AGO))
        replace = served.supervisor.replace
        served.supervisor.code_reload = CodeReload(served.reactor, served.options, replace)

    def save(self, name: str, text: str = "", when: float = LONG_AGO) -> str:
        path = self.folder / name
        path.write_text(text)
        os.utime(path, (when, when))
        return str(path)

    def start(self) -> Spawned:
        """Start, and return the first worker."""
        self.served.supervisor.privilegedStartService()
        self.served.supervisor.startService()
        self.served.reactor.run()
        return self.latest

    def serve(self, *files: str) -> Spawned:
        """Start, and let the first worker serve."""
        first = self.start()
        first.child.began = math.inf  # the files are older
        first.tell("files", files=[self.module, *files])
        first.tell("ready")
        return first

    @property
    def latest(self) -> Spawned:
        return self.served.processes[-1]

    @property
    def count(self) -> int:
        return len(self.served.processes)

    def look(self, times: int = 2) -> None:
        """Let the files be looked at: once to see a change, and once to see no further one."""
        for _ in range(times):
            self.served.reactor.advance(LOOK_AT_FILES)


@pytest.fixture
def developing(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Developing]]:
    monkeypatch.chdir(tmp_path)
    made: list[Developing] = []

    def develop(count: int = 1, *flags: str) -> Developing:
        made.append(Developing(make(count, "--handler", "app:shout", *flags), tmp_path))
        return made[-1]

    yield develop
    for each in made:
        each.served.supervisor.stopService()
        for process in each.served.processes:
            if not process.has_ended:
                process.end()


Develop = Callable[..., Developing]


def test_a_change_starts_a_new_worker_and_the_old_one_drains_once_that_serves(
    developing: Develop, log: Log
) -> None:
    """Fault 190: New code takes over once it serves; until then the old one goes on."""
    one = developing()
    old = one.serve()
    one.save("app.py", "x = 1")
    one.look()
    assert "app.py changed: reloading" in log.text
    assert one.count == 2
    assert not old.done
    one.latest.tell("ready")
    assert old.done == ["stop"]
    one.look(10)
    assert one.count == 2


def test_several_saves_are_one_reload(developing: Develop, log: Log) -> None:
    one = developing()
    others = [one.save(f"m{number}.py") for number in range(5)]
    one.serve(*others)
    for number in range(5):
        one.save(f"m{number}.py", "x = 1")
        one.look(1)
    one.look()
    assert one.count == 2
    assert "m0.py, m1.py, m2.py and 2 more changed: reloading" in log.text


def test_a_change_while_the_old_one_drains_is_not_held_up(developing: Develop) -> None:
    one = developing()
    one.serve()
    for turn in range(1, 4):
        one.save("app.py", "x" * turn)
        one.look()
        assert one.count == turn + 1
        one.latest.tell("files", files=[one.module])
        one.latest.tell("ready")
    assert [each.done for each in one.served.processes] == [["stop"]] * 3 + [[]]


def test_a_start_that_a_change_overtakes_is_given_up(developing: Develop) -> None:
    one = developing()
    old = one.serve()
    one.save("app.py", "x = 1")
    one.look()
    hangs = one.latest
    one.save("app.py", "x = 22")
    one.look()
    assert hangs.signals == [signal.SIGTERM]
    assert one.count == 3
    hangs.end(None, signal.SIGTERM)
    assert one.count == 3
    assert not old.done
    one.latest.tell("ready")
    assert old.done == ["stop"]


def test_code_that_cannot_start_leaves_the_old_one_and_is_tried_at_the_next_change(
    developing: Develop, log: Log
) -> None:
    """Fault 191: Code that cannot start is told with its error, and the old one serves on."""
    one = developing()
    old = one.serve()
    one.save("app.py", "def")
    one.look()
    broken = one.latest
    helper = str(one.folder / "helper.py")
    broken.tell("files", files=[one.module, helper])
    broken.tell("failed", why="app:shout cannot be imported", traceback="at line 1\nSyntaxError")
    broken.end(1)
    (said,) = errors(log)
    assert said == (
        "app:shout cannot be imported; the next change of a file is tried again, the old code "
        "serves until then:\nat line 1\nSyntaxError"
    )
    one.look(20)
    assert one.count == 2
    assert not old.done
    one.save("helper.py")  # which was missing
    one.look()
    assert one.count == 3
    one.latest.tell("ready")
    assert old.done == ["stop"]


def test_a_first_start_that_fails_waits_for_a_change(developing: Develop, log: Log) -> None:
    """Fault 191: If the first start fails, the port is open, and a change is waited for."""
    one = developing()
    first = one.start()
    first.tell("failed", why="a syntax error")
    first.end(1)
    assert errors(log) == [
        "a syntax error; the next change of a file is tried again, nothing serves until then"
    ]
    one.look(20)
    assert one.count == 1
    assert one.served.sockets._sockets
    one.save("app.py", "x = 1")  # it is watched although no worker has told it
    one.look()
    assert one.count == 2
    one.latest.tell("ready")
    assert one.served.described == "Serving; workers: 1 of 1"


def test_a_crash_waits_longer_each_time_but_not_for_a_change(
    developing: Develop, log: Log
) -> None:
    one = developing()
    one.serve().end(7)
    for _ in range(6):
        one.latest.tell("ready")
        one.latest.end(7)
        one.served.reactor.advance(1.7)
    one.latest.tell("ready")
    one.latest.end(7)
    count = one.count
    assert "starts in 3.2 s" in errors(log)[-1]
    one.save("app.py", "x = 1")
    one.look()
    assert one.count == count + 1
    one.served.reactor.advance(10)
    assert one.count == count + 1
    one.latest.tell("files", files=[one.module])
    one.latest.tell("ready")
    one.look()
    assert one.count == count + 1
    one.served.pass_by(PROVEN)
    one.latest.end(7)
    assert "starts now" in errors(log)[-1]


def test_several_workers_are_replaced_one_after_another(developing: Develop) -> None:
    both = developing(2)
    both.start()
    one, other = both.served.processes
    for each in (one, other):
        each.tell("files", files=[both.module])
        each.tell("ready")
    both.save("app.py", "x = 1")
    both.look()
    assert both.count == 3
    both.latest.tell("ready")
    assert (one.done, other.done) == (["stop"], [])
    one.end()
    assert both.count == 4
    both.latest.tell("ready")
    assert other.done == ["stop"]


def test_only_the_files_of_the_code_that_serves_are_watched(developing: Develop) -> None:
    one = developing()
    old = one.save("old.py")
    one.serve(old)
    new = one.save("new.py")
    one.save("app.py", "import new")
    one.look()
    one.latest.tell("ready")
    one.latest.tell("files", files=[one.module, new])
    one.save("old.py", "x = 1")
    one.look()
    assert one.count == 2
    one.save("new.py", "x = 1")
    one.look()
    assert one.count == 3
    # The worker that drains has nothing to say about that any more.
    one.served.processes[0].tell("files", files=[old])
    one.save("old.py", "x = 22")
    one.look()
    assert one.count == 3


def test_new_settings_are_those_of_new_workers(developing: Develop, log: Log) -> None:
    one = developing()
    old = one.serve()
    one.save("echod.toml", "max-connections = 300\n")
    one.look()
    assert "echod.toml changed: reloading" in log.text
    assert one.latest.orders[0]["text"] == "max-connections = 300\n"
    assert one.latest.orders[0]["first_text"] == "max-connections = 300\n"
    one.latest.tell("ready")
    assert one.latest.done == []
    assert old.done == ["stop"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("max-connections = 'many'\n", "max-connections"),
        ("max-connections = 10\nworkers = 3\n", None),  # a flag has said how many
        ("max-connections = 10\nlog-format = 'json'\n", "log-format: end the program"),
    ],
)
def test_settings_that_cannot_be_used_change_nothing(
    developing: Develop, log: Log, text: str, why: str | None
) -> None:
    one = developing()
    old = one.serve()
    one.save("echod.toml", text)
    one.look()
    if why is None:
        assert one.count == 2
        return
    (said,) = errors(log)
    assert said.startswith("Not reloaded: ")
    assert why in said
    # Another file that changes then does not bring them in.
    one.save("app.py", "x = 1")
    one.look()
    assert why in errors(log)[0]
    assert one.count == 1
    assert not old.done


def test_a_file_of_settings_that_has_gone_is_told(developing: Develop, log: Log) -> None:
    one = developing()
    one.serve()
    one.served.file.unlink()
    one.look(GONE_AFTER + 2)
    assert "No such file" in errors(log)[0]
    assert one.count == 1


def test_a_script_is_code_too(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = Developing(make(1, "--handler", "script:file=talk.txt"), tmp_path)
    one.serve()
    one.save("talk.txt", "S: hello\n")
    one.look()
    assert one.count == 2
    one.served.supervisor.stopService()
    for process in one.served.processes:
        process.end()


def test_nothing_is_looked_at_once_it_drains(developing: Develop) -> None:
    one = developing()
    old = one.serve()
    one.served.supervisor.stopService()
    one.save("app.py", "x = 1")
    one.look(5)
    assert one.count == 1
    old.end()
    assert not one.served.reactor.getDelayedCalls()


# The real command.
