"""The control of a service with workers, which the test plays; and one real daemon."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from echod.cli.control_client import Client
from echod.control.description import describe
from echod.control.site import Call, perform
from echod.web.site import Answer
from echod.workers.child import Child
from echod.workers.control import ANSWER_IN, PAGE, WorkersControl
from tests.support.clients import connect, receive_all
from tests.support.daemon import Daemon, Start
from tests.support.served_workers import ask, wait_until_served, write_handler
from tests.support.spawning import Spawned, SpawningReactor
from tests.support.waiting import block_until
from tests.workers.test_child import Notes

BLOCKS = 8


class Controlling:
    """The control of two workers that serve, and of a third that starts.

    Attributes:
        reactor: its time and its processes.
        control: the control.
        state: of the service.
    """

    def __init__(self, most_bytes: int = 0) -> None:
        self.reactor = SpawningReactor()
        self.state = "ready"
        for number in (1, 2, 3):
            child = Child(Notes(), self.reactor, number, "")
            child.block = number
            child.start({}, [], 50)
        self.one, self.other, self.starting = self.reactor.spawned
        self.one.tell("ready")
        self.other.tell("ready")
        reactor: Any = self.reactor
        self.control = WorkersControl(
            reactor,
            self.live,
            lambda: self.state,
            lambda number: number % BLOCKS,
            (3, most_bytes),
            ["tcp:1", "tcp:2"],
        )

    def live(self) -> list[Child]:
        """Return the workers that have not ended, in no order."""
        return [each.child for each in reversed(self.reactor.spawned) if not each.has_ended]

    def begin(self, method: str, path: str, query: str = "", number: int = 0) -> list[Answer]:
        """Begin a request; the list gets its answer."""
        answers: list[Answer] = []
        operation = self.control.routes[path][method]
        call = Call(query.encode("latin-1"), number)
        Deferred.fromCoroutine(perform(operation, call)).addCallback(answers.append)
        return answers

    def answer(self, process: Spawned, value: object, status: int = 200) -> None:
        """Let a worker answer its latest question."""
        self.answer_to(process, process.orders[-1]["number"], value, status)

    def answer_to(self, process: Spawned, number: int, value: object, status: int = 200) -> None:
        told = {"news": "control", "number": number, "status": status, "body": json.dumps(value)}
        self.control.told(process.child, told)

    def hand_on(self, process: Spawned, connection: dict[str, Any]) -> None:
        self.control.told(process.child, {"news": "ended", "connection": connection})


@pytest.fixture
def two() -> Controlling:
    return Controlling()


def value(answers: list[Answer], status: int = 200) -> Any:
    (answer,) = answers
    assert answer.status == status
    return json.loads(answer.body)


def page(*numbers: int, more: bool = False) -> dict[str, object]:
    return {"connections": [{"id": one, "state": "open"} for one in numbers], "more": more}


def numbers(found: Any) -> list[tuple[int, int]]:
    return [(one["id"], one["worker"]) for one in found["connections"]]


# Lists.


def test_a_list_has_the_connections_of_all_workers_in_the_order_of_their_numbers(
    two: Controlling,
) -> None:
    answers = two.begin("GET", "/connections", "state=open&after=4")
    assert two.one.orders[-1]["query"] == f"state=open&after=4&limit={PAGE}"
    two.answer(two.one, page(9, 25))
    two.answer(two.other, page(10, 18, 34))
    found = value(answers)
    assert numbers(found) == [(9, 1), (10, 2), (18, 2), (25, 1), (34, 2)]
    assert found["more"] is False
    assert found["journal"] == {"most": 3, "bytes": 0}
    assert not two.starting.done
    assert not two.reactor.getDelayedCalls()


def test_a_list_is_cut_at_its_limit_and_says_so(two: Controlling) -> None:
    answers = two.begin("GET", "/connections", "limit=2")
    two.answer(two.one, page(9, 17, 25))
    two.answer(two.other, page(10))
    found = value(answers)
    assert numbers(found) == [(9, 1), (10, 2)]
    assert found["more"] is True


def test_a_list_asks_a_worker_for_its_next_page_only_when_that_is_its_turn(
    two: Controlling,
) -> None:
    answers = two.begin("GET", "/connections")
    two.answer(two.one, page(9, 17, more=True))
    two.answer(two.other, page(10, 26, more=True))
    assert two.one.orders[-1]["query"] == f"after=17&limit={PAGE}"
    assert len(two.other.orders) == 2
    two.answer(two.one, page(33))
    assert two.other.orders[-1]["query"] == f"after=26&limit={PAGE}"
    two.answer(two.other, page())
    assert numbers(value(answers)) == [(9, 1), (10, 2), (17, 1), (26, 2), (33, 1)]


def test_pages_are_shorter_where_first_bytes_are_kept() -> None:
    controlling = Controlling(most_bytes=100_000)
    controlling.begin("GET", "/connections")
    assert controlling.one.orders[-1]["query"] == "after=0&limit=1"


def test_a_wrong_query_is_refused_before_a_worker_is_asked(two: Controlling) -> None:
    assert (
        "limit is a whole number"
        in value(two.begin("GET", "/connections", "limit=x"), 400)["error"]
    )
    assert "no argument" in value(two.begin("POST", "/suspend", "a=b"), 400)["error"]
    for method in ("GET", "DELETE"):
        for query, status, why in (
            ("address=127.0.0.l", 400, "address is an address"),
            ("listener=3", 404, "there is no such listener; there are: 1 (tcp:1), 2 (tcp:2)"),
        ):
            error = value(two.begin(method, "/connections", query), status)["error"]
            assert error.startswith(why)
    assert "how is reset" in value(two.begin("DELETE", "/connections", "how=x"), 400)["error"]
    assert not two.one.done


# The journals of workers that end.


def ended(number: int, listener: str = "tcp:1") -> dict[str, Any]:
    fixed = {"state": "ended", "reason": "drained", "faults": [], "seconds": 1.5}
    return {"id": number, "peer": "127.0.0.1:7", "listener": listener, **fixed}


def test_connections_of_a_worker_that_has_ended_are_in_the_list_with_its_number(
    two: Controlling,
) -> None:
    two.hand_on(two.other, ended(18))
    two.hand_on(two.other, ended(10, "tcp:2"))
    two.other.end(None, signal.SIGKILL)
    two.control.ended(two.other.child)
    for query, expected in (
        ("", [(9, 1), (10, 2), (17, 1), (18, 2)]),
        ("after=10", [(17, 1), (18, 2)]),
        ("listener=2&state=ended", [(9, 1), (10, 2), (17, 1)]),  # the worker would select, too
    ):
        answers = two.begin("GET", "/connections", query)
        two.answer(two.one, page(*(one for one in (9, 17) if one > 10 or "after" not in query)))
        assert numbers(value(answers)) == expected
    assert value(two.begin("GET", "/connections/{id}", number=10)) == {
        "worker": 2,
        **ended(10, "tcp:2"),
    }
    assert value(two.begin("DELETE", "/connections/{id}", number=10), 404)


def test_no_more_of_them_are_kept_than_the_journal_has_room_for(two: Controlling) -> None:
    for number in (2, 10, 18, 26):
        two.hand_on(two.other, ended(number))
    assert [one["id"] for one in two.control._handed_on[two.other.child]] == [10, 18, 26]
    two.control.ended(two.other.child)
    assert not two.control._handed_on
    assert list(two.control._kept) == [10, 18, 26]
    two.hand_on(two.one, ended(33))
    two.control.ended(two.one.child)
    assert list(two.control._kept) == [18, 26, 33]


def test_a_process_that_has_not_ended_is_asked_for_what_it_has_handed_on(
    two: Controlling,
) -> None:
    two.hand_on(two.other, ended(10))
    answers = two.begin("GET", "/connections")
    two.answer(two.one, page(9))
    two.answer(two.other, page(10, 18))
    assert numbers(value(answers)) == [(9, 1), (10, 2), (18, 2)]


# A worker that does not answer, or ends.


def test_a_worker_that_does_not_answer_is_named(two: Controlling) -> None:
    answers = two.begin("DELETE", "/connections")
    two.answer(two.one, {"disconnected": 3})
    two.reactor.advance(ANSWER_IN - 0.01)
    assert not answers
    two.reactor.advance(0.02)
    assert value(answers, 503)["error"] == "worker 2 (process 101) has not answered: ask again"
    two.answer(two.other, {"disconnected": 3})  # too late
    assert len(answers) == 1


def test_a_worker_that_ends_has_no_connections_any_more(two: Controlling) -> None:
    listed = two.begin("GET", "/connections")
    ended = two.begin("DELETE", "/connections")
    two.answer(two.one, {"disconnected": 3})
    two.answer_to(two.one, two.one.orders[1]["number"], page(9))
    two.other.end(1)
    two.control.ended(two.other.child)
    assert value(ended) == {"disconnected": 3}
    assert numbers(value(listed)) == [(9, 1)]


def test_a_stop_ends_each_request(two: Controlling) -> None:
    answers = two.begin("DELETE", "/connections")
    two.control.stop()
    assert "has not answered" in value(answers, 503)["error"]
    assert not two.reactor.getDelayedCalls()


def test_a_client_that_leaves_ends_its_request(two: Controlling) -> None:
    operation = two.control.routes["/connections"]["DELETE"]
    asked: Deferred[Any] = Deferred.fromCoroutine(operation(Call(b"", 0)))
    asked.addErrback(lambda _: None)
    asked.cancel()
    assert not two.reactor.getDelayedCalls()
    assert not two.control._asked


# The other operations.


def test_a_connection_is_asked_of_the_process_that_its_number_names(two: Controlling) -> None:
    answers = two.begin("GET", "/connections/{id}", number=2 * BLOCKS + 2)
    assert not two.one.done
    assert two.other.orders[-1]["id"] == 2 * BLOCKS + 2
    two.answer(two.other, {"id": 18, "state": "open"})
    assert value(answers) == {"worker": 2, "id": 18, "state": "open"}
    answers = two.begin("DELETE", "/connections/{id}", "how=drain", number=BLOCKS + 1)
    assert two.one.orders[-1]["query"] == "how=drain"
    two.answer(two.one, {"disconnected": 1})
    assert value(answers) == {"disconnected": 1}


def test_a_connection_of_a_process_that_has_ended_is_not_found(two: Controlling) -> None:
    for method in ("GET", "DELETE"):
        error = value(two.begin(method, "/connections/{id}", number=7), 404)["error"]
        assert error.startswith("no connection of that number is open")


def test_the_refusal_of_a_worker_is_that_of_the_service(two: Controlling) -> None:
    answers = two.begin("POST", "/suspend")
    for each in (two.one, two.other):
        two.answer(each, {"error": "the daemon drains"}, 409)
    assert value(answers, 409) == {"error": "the daemon drains"}


def test_each_worker_that_serves_is_suspended(two: Controlling) -> None:
    for path, state in (("/suspend", True), ("/resume", False)):
        answers = two.begin("POST", path)
        assert [each.orders[-1]["path"] for each in (two.one, two.other)] == [path] * 2
        assert not two.starting.done  # it accepts when it is told to, once it is ready
        two.answer(two.one, {"state": "suspended"})
        two.answer(two.other, {"state": "suspended"})
        assert value(answers) == {"state": "ready"}  # of the service, as the test plays it
        assert two.control.suspended is state
    two.state = "draining"
    assert value(two.begin("POST", "/suspend"), 409) == {"error": "the daemon drains"}


def test_faults_are_refused_in_one_line(two: Controlling) -> None:
    for method in ("GET", "PUT", "POST", "DELETE"):
        assert value(two.begin(method, "/faults"), 409)["error"].endswith(
            "leave out --workers and --reload"
        )


def test_the_description_is_the_same(two: Controlling) -> None:
    assert value(two.begin("GET", "/openapi.json")) == describe()
    assert set(two.control.routes) == set(describe()["paths"])


# A real one.


def test_one_control_speaks_for_all_workers(daemon: Start, tmp_path: Path) -> None:
    """Fault 186: The control lists, ends and suspends the connections of all workers, and knows
    those of a worker that has ended.
    """
    write_handler(tmp_path)
    running: Daemon = daemon(
        *("--handler", "answers:who", "--workers", "2", "--journal", "100"),
        *("--control", "unix:control.sock"),
    )
    pids = wait_until_served(running, 2)
    control = Client(f"unix:{tmp_path / 'control.sock'}", "", None)
    clients, served = [], []
    for _ in range(12):
        clients.append(connect(running))
        served.append(ask(clients[-1]))
    found = control.ask("GET", "/connections")["connections"]
    # The order of the numbers is that of the connections, whichever worker has them.
    peers = ["{}:{}".format(*each.getsockname()) for each in clients]
    assert [one["peer"] for one in found] == peers
    assert [pids[one["worker"]] for one in found] == served
    first = found[0]["id"]
    assert control.ask("GET", f"/connections/{first}")["peer"] == peers[0]
    assert control.ask("DELETE", f"/connections/{first}") == {"disconnected": 1}
    with pytest.raises(ConnectionResetError):
        clients[0].recv(1)
    assert control.ask("DELETE", "/connections?how=drain") == {"disconnected": 11}
    for each in clients[1:]:
        assert receive_all(each) == b""
    for each in clients:
        each.close()
    block_until(lambda: len(control.ask("GET", "/connections?state=ended")["connections"]) == 12)
    before = control.ask("GET", "/connections")["connections"]
    os.kill(pids[1], signal.SIGTERM)
    pids |= wait_until_served(running, 3)
    block_until(lambda: "has ended" in running.log)
    assert control.ask("GET", "/connections")["connections"] == before
    assert control.ask("POST", "/suspend") == {"state": "suspended"}
    with connect(running) as waiting:
        waiting.sendall(b"hello\n")
        assert control.ask("GET", "/connections?state=open")["connections"] == []
        running.signal(signal.SIGUSR2)  # neither the old workers nor the new ones accept
        renewed = wait_until_served(running, 5)
        block_until(lambda: "The workers have been replaced" in running.log)
        assert control.ask("GET", "/connections?state=open")["connections"] == []
        assert control.ask("POST", "/resume") == {"state": "ready"}
        assert int(waiting.recv(100).split()[0]) in renewed.values()
    assert control.ask("POST", "/suspend") == {"state": "suspended"}
    assert (tmp_path / "control.sock").exists()
    with connect(running) as waiting:  # the drain serves it
        waiting.sendall(b"hello\n")
        waiting.shutdown(socket.SHUT_WR)
        running.stop()
        assert int(receive_all(waiting).split()[0]) in renewed.values()
    assert not (tmp_path / "control.sock").exists()
