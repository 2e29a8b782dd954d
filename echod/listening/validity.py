"""Says for how long certificates are valid: when they are taken into use, and daily when it is not
for long any more.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from echod.text import escape, plural
from echod.tls import ServedCertificate

log = Logger("echod")

# From how many days before the end on it is worth a line a day: whoever renews certificates every
# three months by a program does it a month ahead.
NEAR = 21

DAY = 86400.0


def tell_validity(certificate: ServedCertificate) -> None:
    """Log until when a certificate is valid: a warning where that is soon, or over."""
    until = certificate.valid_until
    left = until - datetime.datetime.now(datetime.UTC)
    path = escape(certificate.path)
    if left <= datetime.timedelta():
        log.warn(
            "{path} has expired on {date:%Y-%m-%d}, and clients will refuse it: "
            "put a new certificate there and send SIGHUP",
            path=path,
            date=until,
            serial=certificate.serial,
        )
    elif is_near(certificate):
        log.warn(
            "{path} expires in {days} {_days}, on {date:%Y-%m-%d}: "
            "put a new certificate there and send SIGHUP",
            path=path,
            days=left.days,
            _days=plural(left.days, "day", "days"),
            date=until,
            serial=certificate.serial,
        )
    else:
        log.info(
            "{path} is valid until {date:%Y-%m-%d}",
            path=path,
            date=until,
            serial=certificate.serial,
        )


def is_near(certificate: ServedCertificate) -> bool:
    """Return whether a certificate is valid for no more than `NEAR` days, or no more at all."""
    left = certificate.valid_until - datetime.datetime.now(datetime.UTC)
    return left < datetime.timedelta(days=NEAR)


class ValidityWatch:
    """Once a day, says which certificates are not valid for long any more."""

    def __init__(
        self, reactor: IReactorTime, certificates: Callable[[], Iterable[ServedCertificate]]
    ) -> None:
        """Set up, without a timer.

        Args:
            reactor: for the timer.
            certificates: returns those in use.
        """
        self._reactor = reactor
        self._certificates = certificates
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Look a day from now, and each day from then on."""
        self._call = self._reactor.callLater(DAY, self._look)

    def stop(self) -> None:
        """Look no more; again is harmless."""
        if self._call is not None and self._call.active():
            self._call.cancel()

    def _look(self) -> None:
        self.start()
        for certificate in self._certificates():
            if is_near(certificate):
                tell_validity(certificate)
