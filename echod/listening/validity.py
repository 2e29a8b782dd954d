"""Log how long certificates are valid: when they are first used, and daily near their expiry."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from echod.text import escape, plural
from echod.timers import cancel_timer

if TYPE_CHECKING:
    from echod.tls import ServedCertificate

log = Logger("echod")

# The number of days before the expiry from which on a line is logged daily: programs that renew
# certificates every three months do so a month ahead.
NEAR = 21

DAY = 86400.0


def tell_validity(certificate: ServedCertificate) -> None:
    """Log the expiry of a certificate: as a warning if that is soon, or past; so is a beginning
    that is to come.
    """
    now, until = datetime.datetime.now(datetime.UTC), certificate.valid_until
    left = until - now
    path = escape(certificate.path)
    if certificate.valid_from > now:
        log.warn(
            "{path} is not valid before {date:%Y-%m-%d %H:%M} UTC, and until then clients will "
            "refuse it: put another certificate there and send SIGHUP, or set the clock",
            path=path,
            date=certificate.valid_from,
            serial=certificate.serial,
        )
    elif left <= datetime.timedelta():
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
    """Return whether a certificate expires within `NEAR` days, or has expired."""
    left = certificate.valid_until - datetime.datetime.now(datetime.UTC)
    return left < datetime.timedelta(days=NEAR)


class ValidityWatch:
    """Logs once a day which certificates expire soon."""

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
        """Check a day from now, and each day after that."""
        self._call = self._reactor.callLater(DAY, self._look)

    def stop(self) -> None:
        """Stop checking. Calling it again is harmless."""
        cancel_timer(self._call)

    def _look(self) -> None:
        self.start()
        for certificate in self._certificates():
            if is_near(certificate):
                tell_validity(certificate)
