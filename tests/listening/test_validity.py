from __future__ import annotations

from datetime import UTC, datetime, timedelta

from twisted.internet.task import Clock
from twisted.logger import LogLevel

from echod.listening.validity import DAY, NEAR, ValidityWatch, tell_validity
from echod.tls import ServedCertificate
from tests.support.log import Log


def valid_for(days: float, path: str = "server.pem") -> ServedCertificate:
    return ServedCertificate(path, "0A1B", datetime.now(UTC) + timedelta(days=days, minutes=1))


def test_a_certificate_that_is_near_its_end_is_named_once_a_day(log: Log) -> None:
    clock = Clock()
    watch = ValidityWatch(clock, lambda: [valid_for(NEAR + 5, "long.pem"), valid_for(3)])
    watch.start()
    clock.advance(DAY - 1)
    assert "expires" not in log.text
    clock.advance(1)
    assert log.text.count("server.pem expires in 3 days, on ") == 1
    clock.advance(DAY)
    assert log.text.count("server.pem expires in 3 days") == 2
    assert "long.pem" not in log.text
    watch.stop()
    watch.stop()
    assert not clock.getDelayedCalls()


def test_what_is_said_is_what_is_to_do(log: Log) -> None:
    for days, said in {
        NEAR + 1: "server.pem is valid until ",
        1: "server.pem expires in 1 day, on ",
        -1: "server.pem has expired on ",
    }.items():
        tell_validity(valid_for(days))
        assert said in log.text.splitlines()[-1]
        assert ("put a new certificate there" in log.text.splitlines()[-1]) == (days < NEAR)
        assert log.events[-1]["serial"] == "0A1B"


def test_a_certificate_that_is_not_valid_yet_is_named(log: Log) -> None:
    begin = datetime.now(UTC) + timedelta(hours=1)
    tell_validity(ServedCertificate("server.pem", "0A1B", begin + timedelta(days=90), begin))
    assert f"server.pem is not valid before {begin:%Y-%m-%d %H:%M} UTC" in log.text
    assert log.events[-1]["log_level"] is LogLevel.warn
    tell_validity(ServedCertificate("server.pem", "0A1B", begin + timedelta(days=90)))
    assert "server.pem is valid until " in log.text
