from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest

from echod.limits import Level
from echod.metrics import Totals
from echod.status.strain import SOON, strains


@dataclass
class Now:
    levels: list[Level] = field(default_factory=lambda: [Level("threads", 0, 16)])
    last_minute: Totals = field(default_factory=Totals)
    worst_lag: float = 0.0
    pool_wait: float = 0.0
    certificate_ends_in: float = math.inf


def test_where_all_is_well_nothing_is_said() -> None:
    now = Now(last_minute=Totals(accepted=1000, ended=1000), worst_lag=0.09, pool_wait=0.9)
    now.levels = [Level("threads", 14, 16), Level("max-connections", 89, 100)]
    assert strains(now) == []


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (Now([Level("threads", 16, 16)]), "threads: 16 of 16 in use"),
        (Now([Level("descriptors", 900, 1000)]), "descriptors: 900 of 1,000 in use"),
        (Now(last_minute=Totals(refused=1)), "1 client was refused in the last minute"),
        (Now(last_minute=Totals(refused=2)), "2 clients were refused in the last minute"),
        (
            Now(last_minute=Totals(handler_errors=3)),
            "3 errors of the handler in the last minute",
        ),
        (Now(last_minute=Totals(lines_lost=1)), "1 line of the log lost in the last minute"),
        (Now(worst_lag=2.04), "the event loop was late by 2.0 s in the last minute"),
        (Now(pool_wait=1.5), "a message waits 1.5 s for a thread"),
        (Now(certificate_ends_in=SOON - 1), "a certificate is valid for 13 days more"),
        (Now(certificate_ends_in=-5), "a certificate is valid for 0 days more"),
    ],
)
def test_each_thing_that_is_short_is_said_in_a_few_words(now: Now, said: str) -> None:
    assert strains(now) == [said]


def test_totals_of_a_minute_are_what_has_come_since() -> None:
    assert Totals(5, 4, 3, 2, 1).since(Totals(1, 1, 1, 1, 1)) == Totals(4, 3, 2, 1, 0)
