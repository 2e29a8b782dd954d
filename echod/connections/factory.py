"""The factory of one listener: makes a protocol for each connection, and holds their shared state.

`EchoFactory` chooses the class of its protocols once, when it gets its handler: see
`echod.connections.choice`. It works in any Twisted program::

    endpoints.serverFromString(reactor, "tcp:8888").listen(EchoFactory(reactor))
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, cached_property
from threading import get_ident
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from echod.addresses import network_at, shown_address
from echod.awaiting import loop_of
from echod.concurrency.forking import end_child
from echod.concurrency.model import Model
from echod.concurrency.models import InPool, InReactor
from echod.connections.admission import Admission
from echod.connections.choice import protocol_for
from echod.connections.clients import Places, ProxiedAddress, log_failure, shown
from echod.connections.health_check import health_check
from echod.connections.lifecycle import ConnectionProtocol
from echod.connections.outbox import Errands
from echod.connections.owner import Counted, Finished, Owned
from echod.connections.refused import RefusedProtocol
from echod.connections.sweeper import Sweeper, interval_for
from echod.handlers.builtin import Echo
from echod.handlers.client import Client
from echod.handlers.contract import ConcurrencyModel, HandlerError
from echod.handlers.factories import start, stop
from echod.handlers.kinds import KINDS, Kind
from echod.handlers.lookup import ResolvedHandler, adopt
from echod.handlers.remedies import add_remedy
from echod.handlers.standin import StandInServer
from echod.limits import Limits
from echod.log.event import LogLine
from echod.messages.framing import Chunk, Framing
from echod.messages.guarded import guarded
from echod.metrics import Metrics
from echod.reasons import Check, EndReason, Refusal
from echod.turns import Turns

if TYPE_CHECKING:
    from echod.connections.faulty import FaultyConnection
    from echod.connections.starttls import StartTLS
    from echod.connections.traffic import TrafficWatch
    from echod.connections.waiting import Others
    from echod.faults import Faults
    from echod.handlers.command import Command
    from echod.journal import Journal
    from echod.tls import Context as TLSContext
    from echod.tls.mistakes import Mistakes

_refused = LogLine(Logger("echod.connection"), "warn", "Refused {peer}: {limit} ({why})")


class EchoFactory(Factory):
    """Makes a protocol for each accepted connection, and keeps the open ones.

    Attributes:
        connections: the protocols of the open connections.
        urgent: those with a deadline, which the sweeper checks more often.
        metrics: the counters.
        stand_in: the server object of `socketserver` request handlers.
        errands: what other threads ask of the event loop.
        report: gets each exception of a handler, after it is counted; by default it is logged.
        starts_tls: the TLS that handlers may begin, and the connections that wait for it; None if
            there is none.
        journal: the record of connections; None if there is none.
        draining: whether a drain has begun; a connection that comes late is drained, too.
        protocol: the class of the protocols that it makes; may be replaced by a subclass.
    """

    noisy = False
    protocol: type[ConnectionProtocol]

    def __init__(
        self,
        reactor: IReactorTime | None = None,
        *,
        handler: ResolvedHandler | Callable[..., object] | Factory | Command = Echo,
        framing: Framing | None = None,
        model: Model | None = None,
        limits: Limits | None = None,
        banner: bytes | None = None,
        metrics: Metrics | None = None,
        admission: Admission | None = None,
        turns: Turns | None = None,
        listener: str = "",
        starttls: TLSContext | None = None,
        faults: Faults | None = None,
        journal: Journal[Any] | None = None,
        mistakes: Callable[[], Mistakes] | None = None,
    ) -> None:
        """Set up a factory; all arguments are optional.

        Args:
            reactor: the reactor, for its clock and timers; None for Twisted's global one.
            handler: a function or class by the handler contract, or one that is already resolved.
            framing: how input is cut into messages; `Chunk()` by default.
            model: where the handler runs; by default in the event loop. The caller has to stop a
                pool that it uses.
            limits: the limits on clients.
            banner: the greeting as it is sent, b"" for none; None leaves the greeting to the
                handler.
            metrics: the counters; several factories may share them.
            admission: decides which connections are accepted; several factories may share it.
            turns: shares the turns of the event loop; factories in the same loop should share it.
            listener: the endpoint string, for `Client.listener`.
            starttls: the TLS that a handler may begin; None for none.
            faults: the faults on purpose, which choose their connections; None for none.
            journal: the record of connections; several factories may share it; None for none.
            mistakes: returns the certificates for the fault `wrong-certificate`; None for some of
                an authority that no client knows.

        Raises:
            HandlerError: `handler` cannot run in `model`, or is a service that is not open.
        """
        self._reactor = reactor
        self.model = InReactor() if model is None else model
        if not isinstance(handler, ResolvedHandler):
            handler = adopt(handler, self.model.name)
            if handler.kind is Kind.SERVICE:
                raise HandlerError(
                    f"{handler.name} is a service: open it first, as in "
                    f"async with echod.opened({handler.name}) as handler: ..."
                )
        self.report = log_failure
        self.framing = Chunk() if framing is None else guarded(framing)
        self.banner = banner
        self.metrics = Metrics() if metrics is None else metrics
        self.listener = listener
        self.places = Places(listener)
        self.draining = False
        self.starts_tls: StartTLS | None = None
        if starttls is not None:
            from echod.connections.starttls import StartTLS  # only with starttls:

            self.starts_tls = StartTLS(starttls)
        if admission is not None:
            self.admission = admission
        if turns is not None:
            self.turns = turns
        self._faults = faults
        self.journal = journal
        self._mistakes = mistakes
        if faults is not None:
            # Now, because after a chroot it is too late.
            from echod.connections.faulty import FaultyConnection  # rarely needed

            self._faulty = FaultyConnection
            self.metrics.faults.update(dict.fromkeys(faults.names, 0))
        self._sweeper: Sweeper[Owned] = Sweeper(lambda: self.reactor, 0)
        self.connections = self._sweeper.members
        self.urgent = self._sweeper.urgent
        self.limits = Limits() if limits is None else limits
        self.errands = Errands(lambda: self.reactor)
        self._drained: Deferred[None] | None = None
        # The process that listens; any other one is a child that a handler has forked.
        self._process: int | None = None
        self.serve(handler)

    def serve(self, handler: ResolvedHandler) -> None:
        """Use this handler for connections that come from now on.

        Raises:
            HandlerError: it is a program, for which the model starts no process; it needs an
                asyncio event loop, and the reactor has none; or it is a Twisted factory that
                cannot start.
        """
        traits = KINDS[handler.kind]
        if traits.needs_asyncio and self._reactor is not None and loop_of(self._reactor) is None:
            raise HandlerError(
                f"{handler.name} is {traits.words}, which needs an asyncio event loop, as the "
                "uvloop reactor has"
            )
        if handler.kind is Kind.PROGRAM:
            from echod.concurrency.processes import Processes  # only for programs

            if not isinstance(self.model, Processes):
                raise HandlerError(
                    f"{handler.name} is a program, which only --handler exec can run, or a "
                    "factory with the model `Processes`"
                )
        if handler.kind is Kind.TWISTED_PROTOCOL and self.numPorts:
            start(handler.name, handler.target)
        self.handler = handler
        self.stand_in = StandInServer(handler.target)
        self.protocol = protocol_for(
            handler.kind,
            self.model.name,
            type(self.framing),
            may_start_tls=self.starts_tls is not None,
        )
        if self.journal is not None and self.journal.most_bytes:
            from echod.connections.recording import recording  # rarely needed

            self.protocol = recording(self.protocol)
        if handler.service is not None:
            handler.service.add_clients(self._clients)

    def _clients(self) -> list[Client]:
        """Return the clients that are being served."""
        return [
            one.client
            for one in list(self.connections)
            if isinstance(one, ConnectionProtocol) and one.is_served
        ]

    @property
    def limits(self) -> Limits:
        """The limits on clients; new ones also apply to the open connections."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        timeouts = [limits.idle_timeout, limits.first_byte_timeout, limits.handler_timeout]
        if type(self.framing) is not Chunk:
            timeouts.append(limits.message_timeout)
        if self.model.name is ConcurrencyModel.SERIAL:
            timeouts.append(limits.serial_timeout)
        if self.model.name is ConcurrencyModel.THREAD_PER_CONNECTION:
            timeouts.append(limits.write_timeout)
        self._sweeper.look_every(interval_for(timeouts))

    def reconfigure(self, limits: Limits, banner: bytes | None) -> None:
        """Use another banner, and other limits, which hold for the open connections too."""
        self.limits = limits
        self.admission.limits = limits
        self.banner = banner

    @cached_property
    def admission(self) -> Admission:
        """Decides which connections are accepted."""
        return Admission(self.limits, self.seconds)

    @cached_property  # each read of several messages looks at it: no call for that
    def turns(self) -> Turns:
        """Shares the turns of the event loop among connections."""
        return Turns(self.reactor)

    @cached_property
    def others(self) -> Others:
        """The waits of threads that handlers have started."""
        from echod.connections.waiting import Others, threads_of_handlers  # only for threads

        return Others(threads_of_handlers)

    @cached_property
    def traffic_watch(self) -> TrafficWatch:
        """Detects traffic on connections whose bytes the kernel does not count."""
        from echod.connections.traffic import TrafficWatch  # only for threads

        return TrafficWatch()

    @property
    def reactor(self) -> IReactorTime:
        """The reactor, looked up when first needed, so that importing echod installs none."""
        if self._reactor is None:
            from twisted.internet import reactor

            self._reactor = reactor
        return self._reactor

    def mistakes(self) -> Mistakes:
        """Return the certificates with mistakes, for a fault."""
        if self._mistakes is None:
            from echod.tls.mistakes import Mistakes  # slow to import, and rarely needed

            self._mistakes = cache(Mistakes)
        return self._mistakes()

    @cached_property
    def seconds(self) -> Callable[[], float]:
        """Returns the reactor's time, in seconds."""
        return self.reactor.seconds

    # Twisted's type wants an attribute `factory`, which its reactors do not ask for.
    def buildProtocol(  # type: ignore[override]
        self, addr: IAddress | None
    ) -> Protocol | FaultyConnection | None:
        # An exception would leave the accepted socket open; None closes it.
        try:
            if isinstance(addr, ProxiedAddress):  # `admission` was asked before its header came
                return self._accepted(addr.peer, addr)
            refusal = self.admission.accept()
            return self.refused(addr, refusal) if refusal else self._accepted(addr)
        except BaseException:
            peer = addr.peer if isinstance(addr, ProxiedAddress) else addr
            self.handler_failed(Failure(), Client(shown_address(peer)))
            self.metrics.accepted += 1
            self.metrics.end(EndReason.HANDLER_ERROR.value, messages=0, received=0, sent=0)
            return None

    def _accepted(
        self, peer: IAddress | None, proxied: ProxiedAddress | None = None
    ) -> Protocol | FaultyConnection:
        """Return the protocol of a connection that `admission` has accepted."""
        network = network_at(peer)
        if network and (refusal := self.admission.identify(network)):
            self.admission.release()
            return self.refused(peer, refusal)
        try:
            protocol = self.protocol(self) if proxied is None else self._proxied(proxied)
        except BaseException:
            self.admission.release(network)
            raise
        protocol.network = network
        if self._faults is not None:
            chosen = self._faults.choose(getattr(peer, "host", ""))
            if chosen is not None:
                return self._faulty(protocol, chosen, self)
        return protocol

    def _proxied(self, address: ProxiedAddress) -> ConnectionProtocol:
        """Return the protocol of a connection that comes through a proxy."""
        kind = self.protocol
        if address.header.is_local:
            kind = health_check(kind)  # type: ignore[arg-type] # a class has a hash, too
        protocol = kind(self)
        protocol.client = address.client(self.listener)
        return protocol

    def refused(self, addr: IAddress | None, refusal: Refusal) -> Protocol:
        """Return the protocol that tells the client of its refusal, and logs and counts it."""
        return RefusedProtocol(self, refusal, Client(shown_address(addr)))

    def connection_turned_away(self) -> None:
        """Count a client for which no descriptor was left; the port has logged and closed it."""
        self.metrics.refused[Refusal.DESCRIPTORS.value] += 1

    def note_refusal(self, refusal: Refusal, client: Client, why: str) -> None:
        """Count and log the refusal of a client; the caller tells the client."""
        self.metrics.refused[refusal.value] += 1
        if _refused.wanted(client.peer):
            _refused.write(
                peer=shown(client), why=why, limit=refusal.value, listener=self.listener
            )

    def note_check(self, check: Check) -> None:
        """Count a health check that was no conversation."""
        self.metrics.end_check(check.value)

    def note_fault(self, name: str) -> None:
        """Count that a fault on purpose has happened in a connection."""
        self.metrics.faults[name] += 1

    def handler_failed(self, failure: Failure, client: Client) -> None:
        """Count and log an exception of the handler of `client`."""
        if self._process not in (None, os.getpid()):
            end_child(failure)
        self.metrics.handler_errors += 1
        add_remedy(failure.value, self.handler.name, self.handler.target)
        self.report(failure, client)

    def doStart(self) -> None:
        self._process = os.getpid()
        self.errands.thread = get_ident()
        super().doStart()
        if self.handler.kind is Kind.TWISTED_PROTOCOL:
            start(self.handler.name, self.handler.target)

    def doStop(self) -> None:
        super().doStop()
        if self.handler.kind is Kind.TWISTED_PROTOCOL:
            stop(self.handler.target)

    def register(self, connection: Counted) -> None:
        """Register a connection: it is counted from here to `forget`."""
        if not connection.is_check:
            self.metrics.accepted += 1
        self._sweeper.add(connection)
        if self.journal is not None:
            self.journal.begin(connection)

    def watch(self, connection: Owned) -> None:
        """Sweep, drain and abort a connection with the others, from here to `unwatch`."""
        self._sweeper.add(connection)

    def forget(self, connection: Finished, reason: EndReason) -> None:
        """Count the end of a connection."""
        messages, received, sent = connection.figures
        if connection.is_check:
            self.metrics.end_check(
                Check.LOCAL.value, messages=messages, received=received, sent=sent
            )
        else:
            # `value` is a call in Python.
            self.metrics.end(reason._value_, messages=messages, received=received, sent=sent)
        if self.journal is not None:
            self.journal.end(connection, reason.value)
        self.admission.release(connection.network)
        self.unwatch(connection)

    def unwatch(self, connection: Owned) -> None:
        """Forget a connection; after the last one, the sweep's timer stops."""
        self._sweeper.discard(connection)
        if not self.connections and self._drained is not None:
            drained, self._drained = self._drained, None
            self._handlers_done().addCallback(drained.callback)

    def drain(self) -> Deferred[None]:
        """Answer all that was received on every connection, and close it.

        Returns:
            Fires when no connection is left, and no handler code waits in the event loop, such as
            an `async def closed`; it has no deadline (see `abort`, and the model's `stop`).
        """
        self.draining = True
        for connection in list(self.connections):
            connection.drain()
        if not self.connections:
            return self._handlers_done()
        if self._drained is None:
            self._drained = Deferred()
        return self._drained

    def _handlers_done(self) -> Deferred[None]:
        # The owner of a pool waits for its threads.
        return succeed(None) if isinstance(self.model, InPool) else self.model.drain()

    def abort(self) -> None:
        """Close every connection at once."""
        for connection in list(self.connections):
            connection.abort(EndReason.ABORTED)

    def let_go(self) -> None:
        """Wait no longer for handlers that go on although their connections are lost."""
        for connection in list(self.connections):
            connection.let_go()
