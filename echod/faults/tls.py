"""The faults of TLS: in the handshake, in the certificate, and at the end.

Their stages pass the stream on: the layer of TLS asks them, by `echod.connections.meddling`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from echod.faults.items import Act, Direction, Item
from echod.faults.keys import After, key, one_of, parse_seconds
from echod.faults.stage import Fault, Selection, Stage

# The certificates of `echod.tls.mistakes`, without the good one.
MISTAKES = (
    "expired",
    "not-yet",
    "self-signed",
    "wrong-host",
    "untrusted-root",
    "incomplete-chain",
    "no-san",
    "weak-key",
    "wants-client-certificate",
)

# The alerts by which a handshake fails (RFC 8446, 6.2).
ALERTS: Mapping[str, int] = {
    "unexpected_message": 10,
    "bad_record_mac": 20,
    "record_overflow": 22,
    "handshake_failure": 40,
    "bad_certificate": 42,
    "unsupported_certificate": 43,
    "certificate_revoked": 44,
    "certificate_expired": 45,
    "certificate_unknown": 46,
    "illegal_parameter": 47,
    "unknown_ca": 48,
    "access_denied": 49,
    "decode_error": 50,
    "decrypt_error": 51,
    "protocol_version": 70,
    "insufficient_security": 71,
    "internal_error": 80,
    "inappropriate_fallback": 86,
    "missing_extension": 109,
    "unsupported_extension": 110,
    "unrecognized_name": 112,
    "certificate_required": 116,
    "no_application_protocol": 120,
}

# A record of nothing but zeros, and two headers that no record has.
_ZEROS = b"\x17\x03\x03\x01\x00" + bytes(256)
_ENDLESS = b"\x17\x03\x03\xff\xff"
_FOREIGN = b"\x17\x07\x07\x00\x20" + bytes(32)
# Once TLS is open only OpenSSL can encrypt an alert, and it sends one for an error only: by the
# alert, the input that is such an error.
PROVOCATIONS: Mapping[str, bytes] = {
    "bad_record_mac": _ZEROS,
    "record_overflow": _ENDLESS,
    "protocol_version": _FOREIGN,
}


def parse_alert(text: str) -> str:
    """Parse the name of an alert."""
    name = text.replace("-", "_")
    if name not in ALERTS:
        raise ValueError(f"an alert of TLS, as in handshake_failure: {', '.join(ALERTS)}")
    return name


class _OnTLS(Fault):
    """A fault of TLS, which works on what the server sends."""

    directions = (Direction.OUT,)
    needs_tls = True


class _InHandshake(_OnTLS):
    """A fault that begins at a byte of the server's handshake."""

    def objection(self, selection: Selection) -> str:
        if selection.message is not None or selection.after != After(selection.after.size):
            return "it begins in the handshake: after= is a number of its bytes, and message= none"
        return ""


class OfHandshake(Stage):
    """Counts the bytes of the server's handshake, and begins among them.

    Attributes:
        until: when it lets the rest pass, in seconds; inf: never.
    """

    until = math.inf
    # How many bytes of the handshake have passed.
    _sent = 0

    @property
    def room(self) -> int:
        """Return how many bytes may still pass before it begins."""
        return sys.maxsize if self.happened else self._after.size - self._sent

    def passed(self, size: int) -> None:
        """Note that so many bytes have passed."""
        self._sent += size

    def meddle(self, now: float) -> None:
        """Begin."""
        self.happened = True


class StallingHandshake(OfHandshake):
    """Holds the rest of the handshake for a time."""

    fault: StallHandshake

    def meddle(self, now: float) -> None:
        super().meddle(now)
        self.until = now + self.fault.time


@dataclass(frozen=True)
class StallHandshake(_InHandshake):
    """The server's handshake stops, for a time or for ever."""

    name = "stall-handshake"
    stage = StallingHandshake
    time: float = key(math.inf, parse_seconds, "for how long, in seconds; without it, for ever")


class CuttingHandshake(OfHandshake):
    """Ends the connection within the handshake."""

    fault: CutHandshake


@dataclass(frozen=True)
class CutHandshake(_InHandshake):
    """The connection ends within the server's handshake."""

    name = "cut-handshake"
    stage = CuttingHandshake
    end: str = key("fin", one_of("fin", "rst"), "`fin`: by FIN; `rst`: by a reset")


class ExchangingCertificate(Stage):
    """Has another certificate served."""

    fault: WrongCertificate


@dataclass(frozen=True)
class WrongCertificate(_OnTLS):
    """The client gets a certificate with a mistake."""

    name = "wrong-certificate"
    stage = ExchangingCertificate
    # The key is `name`, which is the fault's own name here.
    mistake: str = key("expired", one_of(*MISTAKES), "the mistake; docs/badtls.md lists them")
    ca: str = key("", str, "the file for the certificate of the authority that has signed it")

    def objection(self, selection: Selection) -> str:
        if selection.message is not None or selection.after != After():
            return "it begins with the handshake, so it takes neither after= nor message="
        return ""


class OmittingNotice(Stage):
    """Has TLS leave out the close_notify."""


@dataclass(frozen=True)
class NoCloseNotify(_OnTLS):
    """The stream ends by FIN, without close_notify."""

    name = "no-close-notify"
    stage = OmittingNotice


class Alerting(Stage):
    """Has TLS send a fatal alert: in place of the handshake, or in the stream."""

    fault: Alert
    begins_alone = True
    act = Act.ALERT

    @property
    def is_in_stream(self) -> bool:
        """Whether it stands in the stream, and not in place of the handshake."""
        return self.begins_with_message or self._after != After()

    @property
    def code(self) -> int:
        """The alert's number, in place of the handshake."""
        return ALERTS[self.fault.which or "handshake_failure"]

    @property
    def provocation(self) -> bytes:
        """The input for which OpenSSL sends the alert."""
        return PROVOCATIONS.get(self.fault.which, _ZEROS)

    def begin(self, now: float) -> Iterator[Item]:
        if self.is_in_stream:
            yield self.on_time(now, act=self.act)


@dataclass(frozen=True)
class Alert(_OnTLS):
    """TLS ends by a fatal alert, in the handshake or later."""

    name = "alert"
    stage = Alerting
    which: str = key(
        "", parse_alert, "the alert; without it, handshake_failure, or later bad_record_mac"
    )

    def objection(self, selection: Selection) -> str:
        is_in_stream = selection.message is not None or selection.after != After()
        if is_in_stream and self.which and self.which not in PROVOCATIONS:
            return (
                f"which={self.which} can be sent in the handshake only: leave out after= and "
                f"message=, or take {' or '.join(PROVOCATIONS)}"
            )
        return ""
