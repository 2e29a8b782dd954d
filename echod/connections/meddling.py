"""The faults on purpose of a connection's TLS: what `TLSConnection` asks of them.

They are stages of the connection's course out, which pass the stream on. `Meddling` finds them
there when TLS asks: at the client's hello, for each piece of the server's handshake, and at the
end. It works the same whether TLS is below the faults (`tls:`) or above them (`starttls:`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol, TypeVar

from twisted.internet.interfaces import IDelayedCall

from echod.faults import Stage
from echod.faults.tls import (
    Alerting,
    CuttingHandshake,
    ExchangingCertificate,
    OfHandshake,
    OmittingNotice,
)
from echod.timers import cancel_timer

if TYPE_CHECKING:
    from echod.connections.owner import Owner
    from echod.tls import Context, TLSConnection

S = TypeVar("S", bound=Stage)

# The header of an alert's record in clear, and the level that ends TLS (RFC 8446, 6).
ALERT, FATAL = b"\x15\x03\x03\x00\x02", 2


class Meddled(Protocol):
    """A connection with faults."""

    ended: bool

    @property
    def stages(self) -> Iterable[Stage]:
        """Its faults in the direction of the client, the client's nearest first."""

    def asked_for(self, server_name: str | None) -> None:
        """Note the host that the client asks for: faults may depend on it."""

    def reset(self) -> None:
        """Reset the connection, after everything written."""

    def note_faults(self) -> None:
        """Look which faults have happened, and whether something is held."""


class Meddling:
    """Meddles with the TLS of one connection."""

    def __init__(self, connection: Meddled, owner: Owner) -> None:
        """Set up.

        Args:
            connection: the connection.
            owner: its factory.
        """
        self._connection = connection
        self._owner = owner
        self._tls: TLSConnection | None = None
        # The held part of the handshake, the stage that holds it, and the timer that ends it.
        self._held = b""
        self._holder: OfHandshake | None = None
        self._timer: IDelayedCall | None = None

    def _stages(self, kind: type[S]) -> list[S]:
        return [stage for stage in self._connection.stages if isinstance(stage, kind)]

    # Asked by TLS.

    def hello(
        self, tls: TLSConnection, context: Context, server_name: str | None
    ) -> Context | None:
        self._tls = tls
        self._connection.asked_for(server_name)
        if alerts := [stage for stage in self._stages(Alerting) if not stage.is_in_stream]:
            self._end(alerts[0])
            tls.abandon(ALERT + bytes([FATAL, alerts[0].code]))
            return None
        if exchanging := self._stages(ExchangingCertificate):
            exchanging[0].happened = True
            self._connection.note_faults()
            mistakes = self._owner.mistakes()
            mistake = exchanging[0].fault.mistake
            return mistakes.serving(mistake, server_name, getattr(context, "alpn", ()))
        return context

    def handshake(self, data: bytes) -> bytes:
        if self._holder is not None:
            self._held += data
            return b""
        stages = self._stages(OfHandshake)
        stage = min(stages, key=lambda one: one.room, default=None)
        room = len(data) + 1 if stage is None else min(stage.room, len(data) + 1)
        early, late = data[:room], data[room:]
        for one in stages:
            one.passed(len(early))
        if stage is None or room > len(data):
            return early
        return self._meddle(stage, early, late)

    def _meddle(self, stage: OfHandshake, early: bytes, late: bytes) -> bytes:
        """Let a stage begin between these bytes of the handshake; return those that leave."""
        assert self._tls is not None
        now = self._owner.seconds()
        stage.meddle(now)
        if isinstance(stage, CuttingHandshake):
            self._end(stage)
            if stage.fault.end == "rst":
                self._tls.transport.write(early)
                self._connection.reset()
            else:
                self._tls.abandon(early)
            return b""
        self._holder, self._held = stage, late
        if stage.until < math.inf:
            self._timer = self._owner.reactor.callLater(stage.until - now, self.release)
        self._connection.note_faults()
        return early

    def _end(self, stage: Stage) -> None:
        stage.happened = True
        self._connection.ended = True
        self._connection.note_faults()

    def release(self) -> None:
        """Let the handshake go on, if it is held."""
        self.stop()
        if self._holder is None or self._tls is None:
            return
        held, self._held, self._holder = self._held, b"", None
        data = self.handshake(held) if held else b""
        self._connection.note_faults()
        if self._holder is None:
            self._tls.go_on(data)
        elif data:
            self._tls.transport.write(data)

    @property
    def holds(self) -> bool:
        """Whether the handshake is held."""
        return self._holder is not None

    @property
    def notifies(self) -> bool:
        """Whether the end of the stream is told by close_notify."""
        omitting = [stage for stage in self._stages(OmittingNotice) if stage.has_begun]
        for stage in omitting[:1]:
            stage.happened = True
            self._connection.note_faults()
        return not omitting

    # Asked by the connection.

    @property
    def holds_for_ever(self) -> bool:
        """Whether the handshake is held without an end."""
        return self._holder is not None and self._holder.until == math.inf

    def changed(self) -> None:
        """Note that the faults have changed: one that is gone holds nothing more."""
        if self._holder is not None and self._holder not in self._connection.stages:
            self.release()

    def alert(self, tls: TLSConnection) -> None:
        """Send the alert that stands in the stream."""
        for stage in self._stages(Alerting):
            if stage.is_in_stream and stage.has_begun:
                self._end(stage)
                tls.provoke(stage.provocation)
                return

    def stop(self) -> None:
        """Stop the timer."""
        cancel_timer(self._timer)
        self._timer = None
