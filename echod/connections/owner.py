"""The interface between a connection and its owner, the factory that has made it.

Connections import this file, never the factory, so imports point one way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress, IReactorTime
    from twisted.internet.protocol import Protocol as TwistedProtocol
    from twisted.python.failure import Failure

    from echod.concurrency.model import Model
    from echod.connections.admission import Admission
    from echod.connections.clients import Places
    from echod.connections.outbox import Errands
    from echod.connections.starttls import StartTLS
    from echod.connections.traffic import TrafficWatch
    from echod.connections.waiting import Others
    from echod.handlers.client import Client
    from echod.handlers.lookup import ResolvedHandler
    from echod.handlers.standin import StandInServer
    from echod.journal import Journal
    from echod.limits import Limits
    from echod.messages.framing import Framing
    from echod.reasons import Check, EndReason, Refusal
    from echod.tls.mistakes import Mistakes
    from echod.turns import Turns


class Owned(Protocol):
    """A connection, as its owner sees it."""

    def sweep(self, now: float) -> None:
        """Close if a deadline has passed; `now` is the reactor's time, in seconds."""

    def drain(self) -> None:
        """Answer all that was received, and close."""

    def abort(self, reason: EndReason) -> None:
        """Close at once."""

    def let_go(self) -> None:
        """Wait no longer for a handler that goes on although its connection is lost."""


class Counted(Owned, Protocol):
    """A connection that counts, as its owner sees it."""

    @property
    def is_check(self) -> bool:
        """Whether it is a load balancer's own, and no client's."""


class Finished(Counted, Protocol):
    """A connection that has ended, as its owner sees it."""

    @property
    def figures(self) -> tuple[int, int, int]:
        """Messages, bytes received, bytes sent."""

    @property
    def network(self) -> str:
        """The network that the connection counts under; "" if it has no address."""


class Owner(Protocol):
    """The owner, as its connections see it."""

    @property
    def reactor(self) -> IReactorTime: ...

    @property
    def handler(self) -> ResolvedHandler: ...

    @property
    def stand_in(self) -> StandInServer: ...

    @property
    def framing(self) -> Framing: ...

    @property
    def model(self) -> Model: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def banner(self) -> bytes | None: ...

    @property
    def listener(self) -> str: ...

    @property
    def places(self) -> Places: ...

    @property
    def starts_tls(self) -> StartTLS | None:
        """The TLS that handlers may begin; None if this listener offers none."""

    @property
    def admission(self) -> Admission: ...

    @property
    def turns(self) -> Turns: ...

    @property
    def errands(self) -> Errands: ...

    @property
    def others(self) -> Others: ...

    @property
    def traffic_watch(self) -> TrafficWatch: ...

    @property
    def connections(self) -> set[Owned]: ...

    @property
    def journal(self) -> Journal[Any] | None:
        """The record of connections; None if there is none."""

    @property
    def draining(self) -> bool: ...

    @property
    def urgent(self) -> set[Owned]:
        """The connections that have a deadline soon."""

    def mistakes(self) -> Mistakes:
        """Return the certificates with mistakes, for a fault."""

    def seconds(self) -> float:
        """Return the reactor's time, in seconds."""

    def register(self, connection: Counted) -> None:
        """Register a connection: it is counted from here to `forget`."""

    def forget(self, connection: Finished, reason: EndReason) -> None:
        """Count the end of a connection."""

    def watch(self, connection: Owned) -> None:
        """Sweep, drain and abort a connection with the others, from here to `unwatch`."""

    def unwatch(self, connection: Owned) -> None:
        """Forget a connection."""

    def refused(self, addr: IAddress | None, refusal: Refusal) -> TwistedProtocol:
        """Return the protocol that tells the client of its refusal, and logs and counts it."""

    def note_refusal(self, refusal: Refusal, client: Client, why: str) -> None:
        """Count and log the refusal of a client; the caller tells the client."""

    def note_check(self, check: Check) -> None:
        """Count a health check that was no conversation."""

    def note_fault(self, name: str) -> None:
        """Count that a fault on purpose has happened in a connection."""

    def handler_failed(self, failure: Failure, client: Client) -> None:
        """Count and log an exception of the handler of `client`."""
