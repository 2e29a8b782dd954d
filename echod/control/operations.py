"""The operations of the control on a running service.

None of them keeps the event loop busy: long ones work in shares, and let a turn of the loop pass
after each.
"""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from echod.control.description import describe
from echod.control.selection import MOST_FAULTS, Selection, arguments, selection
from echod.control.site import JSON, Call, Refused, Routes, told
from echod.errors import UserError
from echod.faults import FaultPlan, Rule, parse_fault
from echod.journal import Journal, Record
from echod.limits import HIGHEST_SEED
from echod.reasons import EndReason
from echod.text import excerpt, plural
from echod.web.site import Answer

if TYPE_CHECKING:
    from echod.connections.factory import EchoFactory
    from echod.connections.lifecycle import ConnectionProtocol
    from echod.connections.owner import Owned
    from echod.listening.listener import Listener

log = Logger("echod")

# How many connections are ended, described or changed in one turn of the event loop.
SHARE = 20

_FILTERS = ("address", "listener")
# The arguments of a list.
LIST = (*_FILTERS, "state", "reason", "fault", "after", "limit")


class Subject(Protocol):
    """The interface of the service."""

    @property
    def listeners(self) -> Sequence[Listener[EchoFactory]]: ...
    @property
    def journal(self) -> Journal[ConnectionProtocol] | None: ...
    @property
    def faults(self) -> FaultPlan | None: ...
    @property
    def suspended(self) -> bool: ...
    @property
    def draining(self) -> bool: ...

    def prepare_faults(self, rules: Iterable[Rule]) -> Awaitable[None]:
        """Make ahead what takes long."""

    def begin_to_change_faults(
        self, rules: Iterable[Rule], seed: int | None = None
    ) -> Iterator[None]:
        """Use these faults from now on: in one more open connection at each step."""

    def suspend(self) -> None:
        """Accept no client until `resume`."""

    def resume(self) -> None:
        """Accept clients again."""


class Operations:
    """All operations on one service."""

    def __init__(
        self,
        subject: Subject,
        pause: Callable[[], Awaitable[object]],
        state: Callable[[], str],
    ) -> None:
        """Set up.

        Args:
            subject: the service.
            pause: returns an awaitable that ends after a turn of the event loop.
            state: returns the state of the service, as of /readyz.
        """
        self._subject = subject
        self._pause = pause
        self._state = state

    @property
    def routes(self) -> Routes:
        """The operations by path and method."""
        return {
            "/connections": {"GET": self.list, "DELETE": self.disconnect_all},
            "/connections/{id}": {"GET": self.show, "DELETE": self.disconnect},
            "/faults": {
                "GET": self.show_faults,
                "PUT": self.set_faults,
                "POST": self.add_faults,
                "DELETE": self.clear_faults,
            },
            "/suspend": {"POST": self.suspend},
            "/resume": {"POST": self.resume},
            "/openapi.json": {"GET": self.describe},
        }

    # Connections.

    @property
    def _journal(self) -> Journal[ConnectionProtocol]:
        journal = self._subject.journal
        assert journal is not None  # a service with a control has one
        return journal

    def _listeners(self) -> dict[str, str]:
        return {
            str(number): listener.description
            for number, listener in enumerate(self._subject.listeners, 1)
        }

    async def list(self, call: Call) -> Answer:
        """List connections."""
        wanted = selection(arguments(call.query, LIST))
        journal, listeners = self._journal, self._listeners()
        check_listener(wanted, listeners)
        found: list[bytes] = []  # JSON already: all at once would take long
        more = False
        for count, record in enumerate(journal.records(wanted.after), 1):
            if wanted.fits(record, listeners):
                if len(found) == wanted.limit:
                    more = True
                    break
                found.append(json.dumps(shown(record)).encode())
            if count % SHARE == 0:
                await self._pause()
        return listed(found, journal.most, journal.most_bytes, more=more)

    async def show(self, call: Call) -> Answer:
        """Show one connection."""
        arguments(call.query, ())
        record = self._journal.find(call.number)
        if record is None:
            raise Refused(404, "no connection of that number is open, or remembered")
        return told(200, shown(record))

    async def disconnect(self, call: Call) -> Answer:
        """End one connection."""
        gently = _gently(arguments(call.query, ("how",)))
        connection = self._journal.connection(call.number)
        if connection is None:
            raise Refused(404, "no connection of that number is open")
        _end(connection, gently=gently)
        log.info("Control: disconnected connection {number}", number=call.number)
        return told(200, {"disconnected": 1})

    async def disconnect_all(self, call: Call) -> Answer:
        """End the connections that are selected, all by default."""
        journal, listeners, count = self._journal, self._listeners(), 0
        wanted, gently = to_disconnect(call.query, listeners)
        everything = wanted.address is None and wanted.listener is None
        unnumbered = self._unnumbered() if everything else []
        for looked, number in enumerate(journal.open(), 1):
            connection = journal.connection(number)
            if connection is not None:
                client = connection.client
                if wanted.fits_client(client.peer, client.listener, listeners):
                    _end(connection, gently=gently)
                    count += 1
            if looked % SHARE == 0:
                await self._pause()
        for looked, unnamed in enumerate(unnumbered, 1):
            _end(unnamed, gently=gently)
            if looked % SHARE == 0:
                await self._pause()
        count += len(unnumbered)
        noun = plural(count, "connection", "connections")
        log.info("Control: disconnected {count} {noun}", count=count, noun=noun)
        return told(200, {"disconnected": count})

    def _unnumbered(self) -> Sequence[Owned]:
        """Return the connections that have no number yet: their PROXY header has not come."""
        factories = [listener.factory for listener in self._subject.listeners]
        return [one for each in factories for one in each.connections if one not in self._journal]

    # Faults on purpose.

    @property
    def _faults(self) -> FaultPlan:
        faults = self._subject.faults
        assert faults is not None  # a service with a control has a plan
        return faults

    def _shown_faults(self) -> Answer:
        happened: dict[str, int] = {}
        for listener in self._subject.listeners:
            for name, count in listener.factory.metrics.faults.items():
                happened[name] = happened.get(name, 0) + count
        plan = self._faults
        faults = [str(rule) for rule in plan.rules]
        return told(200, {"faults": faults, "seed": plan.seed, "happened": happened})

    async def show_faults(self, call: Call) -> Answer:
        """Show the faults on purpose."""
        arguments(call.query, ())
        return self._shown_faults()

    async def set_faults(self, call: Call) -> Answer:
        """Replace all faults; each begins anew."""
        arguments(call.query, ())
        body = call.body()
        await self._change(_rules(body), _seed(body))
        return self._shown_faults()

    async def add_faults(self, call: Call) -> Answer:
        """Add faults behind those that are there, which go on as they are."""
        arguments(call.query, ())
        body = call.body()
        if "seed" in body:
            raise Refused(400, "seed is for PUT, which begins all faults anew")
        await self._change([*self._faults.rules, *_rules(body)], None)
        return self._shown_faults()

    async def clear_faults(self, call: Call) -> Answer:
        """Remove all faults, or those that are written so."""
        given = arguments(call.query, ("fault",))
        rules = [] if "fault" not in given else self._faults.rules
        left = [rule for rule in rules if str(rule) != given.get("fault")]
        if "fault" in given and len(left) == len(rules):
            there = excerpt(", ".join(map(str, rules)) or "none", 300)
            raise Refused(404, f"no fault is written so; there are: {there}")
        await self._change(left, None)
        return self._shown_faults()

    async def _change(self, rules: Sequence[Rule], seed: int | None) -> None:
        if len(rules) > MOST_FAULTS:
            raise Refused(400, f"there may be {MOST_FAULTS} faults at most")
        await self._subject.prepare_faults(rules)
        try:
            steps = self._subject.begin_to_change_faults(rules, seed)
        except UserError as error:
            raise Refused(400, str(error)) from None
        await _to_its_end(self._go_through(steps))

    async def _go_through(self, steps: Iterator[None]) -> None:
        for count, _ in enumerate(steps, 1):
            if count % SHARE == 0:
                await self._pause()

    # The listeners.

    async def suspend(self, call: Call) -> Answer:
        """Accept no more clients; those that come wait."""
        return self._accept(call, self._subject.suspend)

    async def resume(self, call: Call) -> Answer:
        """Accept clients again, those that wait first."""
        return self._accept(call, self._subject.resume)

    def _accept(self, call: Call, act: Callable[[], None]) -> Answer:
        arguments(call.query, ())
        if self._subject.draining:
            raise Refused(409, "the daemon drains")
        act()
        return told(200, {"state": self._state()})

    async def describe(self, call: Call) -> Answer:
        """Describe the API, as OpenAPI."""
        arguments(call.query, ())
        return told(200, describe())


def _to_its_end(work: Coroutine[Any, Any, None]) -> Deferred[None]:
    """Do work that goes on if the client of the control leaves: half of it would be odd."""
    awaited: Deferred[None] = Deferred()

    def tell(result: Any) -> None:
        if not awaited.called:  # otherwise it is cancelled
            awaited.callback(result)
        elif isinstance(result, Failure):
            log.failure("Changing the faults on purpose failed", result)

    Deferred.fromCoroutine(work).addBoth(tell)
    return awaited


def _end(connection: Owned, *, gently: bool) -> None:
    if gently:
        connection.drain()
    else:
        connection.abort(EndReason.DISCONNECTED)


def to_disconnect(query: bytes, listeners: Mapping[str, str]) -> tuple[Selection, bool]:
    """Return the connections that a request ends, and whether gently.

    Args:
        query: of the request.
        listeners: the endpoint strings by their numbers.

    Raises:
        QueryError, Refused: the request makes no sense.
    """
    given = arguments(query, (*_FILTERS, "how"))
    gently = _gently(given)
    wanted = selection({name: given[name] for name in _FILTERS if name in given})
    check_listener(wanted, listeners)
    return wanted, gently


def check_listener(wanted: Selection, listeners: Mapping[str, str]) -> None:
    """Check that there is the listener that a request names.

    Args:
        wanted: what the request selects.
        listeners: the endpoint strings by their numbers.

    Raises:
        Refused: there is none.
    """
    if wanted.listener not in (None, *listeners, *listeners.values()):
        known = ", ".join(f"{number} ({one})" for number, one in listeners.items())
        raise Refused(404, f"there is no such listener; there are: {known}")


def _gently(given: dict[str, str]) -> bool:
    how = given.get("how", "reset")
    if how not in ("reset", "drain"):
        raise Refused(400, "how is reset or drain")
    return how == "drain"


def _rules(body: Any) -> list[Rule]:
    if unknown := body.keys() - {"faults", "seed"}:
        raise Refused(400, f"the body has {len(unknown)} keys too many: it has faults and seed")
    texts = body.get("faults")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused(400, 'faults is a list of texts, as in ["reset:after=10,first=2"]')
    if len(texts) > MOST_FAULTS:
        raise Refused(400, f"there may be {MOST_FAULTS} faults at most")
    rules = []
    for text in texts:
        try:
            rules.append(parse_fault(text))
        except UserError as error:
            raise Refused(400, str(error)) from None
    return rules


def _seed(body: Any) -> int | None:
    seed = body.get("seed")
    if "seed" in body and (type(seed) is not int or not 0 <= seed <= HIGHEST_SEED):
        raise Refused(400, f"seed is a whole number from 0 to {HIGHEST_SEED}")
    return seed if type(seed) is int else None


def listed(found: Iterable[bytes], most: int, most_bytes: int, *, more: bool) -> Answer:
    """Return the answer to `GET /connections`.

    Args:
        found: the connections, as JSON.
        most: how many connections that have ended are kept.
        most_bytes: how many bytes of each.
        more: whether there are others.
    """
    rest = json.dumps({"more": more, "journal": {"most": most, "bytes": most_bytes}})[1:]
    parts = (b'{"connections": [', b", ".join(found), f"], {rest}\n".encode())
    return Answer(200, JSON, b"".join(parts))


def shown(record: Record) -> dict[str, object]:
    """Return a connection for JSON."""
    tls, proxy = record.tls, record.proxy
    began = datetime.datetime.fromtimestamp(record.began, datetime.UTC)
    return {
        "id": record.number,
        "state": "open" if record.is_open else "ended",
        "reason": record.reason,
        "peer": record.peer,
        "local": record.local,
        "listener": record.listener,
        "began": began.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "seconds": round(record.seconds, 3),
        "messages": record.messages,
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "tls": None
        if tls is None
        else {
            "version": tls.version,
            "cipher": tls.cipher,
            "server_name": tls.server_name,
            "alpn": tls.alpn,
            "common_name": tls.common_name,
            "resumed": tls.resumed,
        },
        "proxy": None
        if proxy is None
        else {
            "through": proxy.through,
            "version": proxy.version,
            "command": proxy.command,
            "source": proxy.source,
            "destination": proxy.destination,
        },
        "received": _text(record.received),
        "received_base64": base64.b64encode(record.received).decode(),
        "faults": list(record.faults),
        "mismatches": [
            {"line": one.line, "expected": one.expected, "got": one.got}
            for one in record.mismatches
        ],
    }


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
