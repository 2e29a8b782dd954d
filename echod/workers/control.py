"""The control of a service with workers: the supervisor serves it, and asks the workers.

Each request goes to the workers that it is about. Each performs it for its own connections, as a
daemon without workers does, and the supervisor adds their answers. The numbers of connections are
unique over all workers (`AdmissionTable.numbers`), and name the process.

Guarantees:

* The supervisor holds no more of a list than its answer and one page of each worker.
* A worker has `ANSWER_IN` seconds for each answer: one that does not answer is an error that names
  it, and no part of a list is left out in silence.
"""

from __future__ import annotations

import itertools
import json
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from twisted.web.http import OK

from echod.control.description import describe
from echod.control.operations import LIST, check_listener, listed, to_disconnect
from echod.control.selection import Selection, arguments, selection
from echod.control.site import Call, Refused, Routes, told
from echod.journal import Record
from echod.web.site import Answer
from echod.workers.child import Child
from echod.workers.handover import few
from echod.workers.link import Message
from echod.workers.question import Question

if TYPE_CHECKING:
    from echod.interfaces import Reactor

# How long workers may take to answer, in seconds: one ends ten thousand connections in less.
ANSWER_IN = 10.0

# How many connections a page has at most, and how many bytes it may have roughly.
PAGE, PAGE_BYTES = 100, 1 << 18

# How many connections of processes that have ended are kept at most.
KEPT = 10_000

Values = dict[str, Any]


class WorkersControl:
    """The operations on all workers.

    Attributes:
        suspended: whether clients wait.
    """

    def __init__(
        self,
        reactor: Reactor,
        children: Callable[[], Collection[Child]],
        state: Callable[[], str],
        block_of: Callable[[int], int],
        journal: tuple[int, int],
        listeners: Sequence[str] = (),
    ) -> None:
        """Set up.

        Args:
            reactor: for deadlines.
            children: returns the processes that have not ended.
            state: returns the state of the service.
            block_of: returns the block of the process that has given a connection its number.
            journal: how many connections that have ended are kept, and how many bytes of each.
            listeners: their endpoint strings.
        """
        self.suspended = False
        self._reactor = reactor
        self._children = children
        self._state = state
        self._block_of = block_of
        self._journal = journal
        self._page = few(PAGE, PAGE_BYTES, journal[1])
        self._listeners = {str(number): one for number, one in enumerate(listeners, 1)}
        # The part of its journal that each process has handed on, which serves once it has ended.
        self._handed_on: dict[Child, deque[Values]] = {}
        # Of the journals of processes that have ended, by the numbers of the connections.
        self._kept: OrderedDict[int, Values] = OrderedDict()
        self._room = min(journal[0], KEPT)
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[Question, dict[Child, tuple[int, Values]]]] = {}

    @property
    def routes(self) -> Routes:
        """The operations by path and method."""
        refused = dict.fromkeys(("GET", "PUT", "POST", "DELETE"), self.refuse_faults)
        return {
            "/connections": {"GET": self.show_all, "DELETE": self.disconnect_all},
            "/connections/{id}": {"GET": self.show, "DELETE": self.disconnect},
            "/faults": refused,
            "/suspend": {"POST": self.suspend},
            "/resume": {"POST": self.resume},
            "/openapi.json": {"GET": self.describe},
        }

    # News of workers.

    def told(self, child: Child, news: Message) -> None:
        """Take a worker's answer, or a connection of its journal, which it hands on."""
        if news["news"] == "ended":
            handed_on = self._handed_on.setdefault(child, deque(maxlen=self._room))
            handed_on.append(_named(child, news["connection"]))
        elif asked := self._asked.get(news["number"]):
            question, answers = asked
            if child in question.waiting:
                answers[child] = news["status"], json.loads(news["body"])
                question.told(child)

    def ended(self, child: Child) -> None:
        """Keep what a worker that has ended has handed on, and wait for it no longer.

        The oldest connections make room.
        """
        for one in self._handed_on.pop(child, ()):
            self._kept[one["id"]] = one
        while len(self._kept) > self._room:
            self._kept.popitem(last=False)
        for question, _ in list(self._asked.values()):
            question.told(child)

    def stop(self) -> None:
        """Wait for no worker any more."""
        for question, _ in list(self._asked.values()):
            question.end()

    # The operations.

    async def show_all(self, call: Call) -> Answer:
        """List connections, by their numbers."""
        given = arguments(call.query, LIST)
        wanted = selection(given)
        check_listener(wanted, self._listeners)
        sources = [_Source(each, wanted.after) for each in self._serving()]
        sources.append(_Source(None, wanted.after, self._of_ended(wanted)))
        found: list[bytes] = []  # JSON already: all at once would take long
        last = 0
        while (first := await self._next(sources, given)) and len(found) < wanted.limit:
            one = first.page.popleft()
            if one["id"] != last:  # its process may have ended between two pages
                last = one["id"]
                found.append(json.dumps(one).encode())
        return listed(found, *self._journal, more=first is not None)

    def _of_ended(self, wanted: Selection) -> list[Values]:
        """Return the selected connections of processes that have ended, by their numbers."""
        kept = (self._kept[number] for number in sorted(self._kept))
        return [one for one in kept if wanted.fits(_record(one), self._listeners)]

    async def _next(self, sources: Sequence[_Source], given: Values) -> _Source | None:
        """Return the source that has the connection with the lowest number; None for none left."""
        for each in sources:
            if each.child is not None and each.has_more and not each.page:
                query = urlencode({**given, "after": each.after, "limit": self._page})
                answers = await self._ask([each.child], "GET", "/connections", query)
                each.take(answers.get(each.child))
        left = [each for each in sources if each.page]
        return min(left, key=lambda each: int(each.page[0]["id"]), default=None)

    async def show(self, call: Call) -> Answer:
        """Show one connection."""
        arguments(call.query, ())
        why = "no connection of that number is open, or remembered"
        return await self._of_one(call, "GET", why)

    async def disconnect(self, call: Call) -> Answer:
        """End one connection."""
        return await self._of_one(call, "DELETE", "no connection of that number is open")

    async def _of_one(self, call: Call, method: str, otherwise: str) -> Answer:
        if method == "GET" and (kept := self._kept.get(call.number)):
            return told(200, kept)
        block = self._block_of(call.number)
        owner = [each for each in self._serving() if each.block == block]
        query = call.query.decode("latin-1")
        answers = await self._ask(owner, method, "/connections/{id}", query, call.number)
        for child, answer in answers.items():
            return told(200, _named(child, answer) if "id" in answer else answer)
        raise Refused(404, otherwise)

    async def disconnect_all(self, call: Call) -> Answer:
        """End the connections that are selected, all by default."""
        to_disconnect(call.query, self._listeners)
        query = call.query.decode("latin-1")
        answers = await self._ask(self._serving(), "DELETE", "/connections", query)
        return told(200, {"disconnected": sum(one["disconnected"] for one in answers.values())})

    async def refuse_faults(self, call: Call) -> Answer:
        """Refuse faults on purpose."""
        raise Refused(409, "this changes faults of one process: leave out --workers and --reload")

    async def suspend(self, call: Call) -> Answer:
        """Accept no more clients; those that come wait."""
        return await self._accept(call, "/suspend", suspended=True)

    async def resume(self, call: Call) -> Answer:
        """Accept clients again, those that wait first."""
        return await self._accept(call, "/resume", suspended=False)

    async def _accept(self, call: Call, path: str, *, suspended: bool) -> Answer:
        arguments(call.query, ())
        if self._state() == "draining":
            raise Refused(409, "the daemon drains")
        self.suspended = suspended
        # A worker that drains leaves its queue to its successor; one that starts is told to accept
        # once it is ready, if the service is not suspended then.
        await self._ask([one for one in self._children() if one.state == "ready"], "POST", path)
        return told(200, {"state": self._state()})

    async def describe(self, call: Call) -> Answer:
        """Describe the API, as OpenAPI."""
        arguments(call.query, ())
        return told(200, describe())

    # Questions.

    def _serving(self) -> list[Child]:
        found = (each for each in self._children() if each.state in ("ready", "draining"))
        return sorted(found, key=lambda each: (each.number, each.pid))

    async def _ask(
        self, children: Sequence[Child], method: str, path: str, query: str = "", number: int = 0
    ) -> dict[Child, Values]:
        """Return the answer of each worker that has not ended; wait for those that serve.

        Raises:
            Refused: a worker refuses, or has not answered in time.
        """
        key = next(self._numbers)
        serving = [each for each in children if each.state in ("ready", "draining")]
        question = Question(self._reactor, serving, ANSWER_IN)
        answers: dict[Child, tuple[int, Values]] = {}
        self._asked[key] = question, answers
        try:
            for each in children:
                each.order(
                    do="control", number=key, method=method, path=path, query=query, id=number
                )
            await question.answered
        finally:
            del self._asked[key]
            question.forget()
        for each in serving:
            if each in question.waiting:
                raise Refused(503, f"{each} has not answered: ask again")
        for status, value in answers.values():
            if status != OK:
                raise Refused(status, value["error"])
        return {child: value for child, (_, value) in answers.items()}


class _Source:
    """The connections of a worker, by pages.

    Attributes:
        child: the worker; None if all are known.
        after: the last number of the pages so far.
        page: the connections that are left of the last page.
        has_more: whether there may be further pages.
    """

    def __init__(self, child: Child | None, after: int, page: Iterable[Values] = ()) -> None:
        self.child = child
        self.after = after
        self.page = deque(page)
        self.has_more = child is not None

    def take(self, answer: Values | None) -> None:
        """Take the next page; None if the worker has ended."""
        self.has_more = False
        if answer is not None and self.child is not None:
            self.page.extend(_named(self.child, one) for one in answer["connections"])
            self.has_more = answer["more"]
        if self.page:
            self.after = self.page[-1]["id"]


def _named(child: Child, connection: Values) -> Values:
    """Return a connection with the number of its worker."""
    return {"worker": child.number, **connection}


def _record(connection: Values) -> Record:
    """Return as much of a connection as a selection looks at."""
    return Record(
        number=connection["id"],
        peer=connection["peer"],
        listener=connection["listener"],
        reason=connection["reason"],
        faults=tuple(connection["faults"]),
        began=0.0,
        seconds=connection["seconds"],
    )
