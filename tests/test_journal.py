"""The journal by itself, with connections that are only facts."""

from __future__ import annotations

import tracemalloc
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from echod.journal import Facts, Journal, Mismatch

OPEN, ENDED = "open", "ended"


class Connection:
    """One that knows its peer."""

    def __init__(self, peer: str = "127.0.0.1:1") -> None:
        self.facts = Facts(peer=peer, bytes_in=3)


def journal(most: int = 3, most_bytes: int = 0) -> Journal[Connection]:
    ticks = count(100)
    return Journal(
        most,
        most_bytes,
        facts_of=lambda one: one.facts,
        now=lambda: 1_700_000_000.5,
        seconds=lambda: float(next(ticks)),
    )


def test_a_connection_is_there_from_its_beginning_and_after_its_end() -> None:
    kept, one = journal(), Connection("10.0.0.1:7")
    kept.begin(one)
    assert kept.open() == [1]
    found = kept.find(1)
    assert found is not None and found.is_open
    assert (found.peer, found.began, found.bytes_in) == ("10.0.0.1:7", 1_700_000_000.5, 3)
    assert kept.connection(1) is one
    kept.end(one, "served")
    assert kept.open() == []
    assert kept.connection(1) is None
    found = kept.find(1)
    assert found is not None and (found.reason, found.is_open) == ("served", False)
    assert found.seconds > 0
    assert kept.find(2) is None


@given(st.lists(st.sampled_from([OPEN, ENDED]), max_size=60), st.integers(0, 5))
def test_it_keeps_those_that_are_open_and_the_last_that_ended_in_order(
    steps: list[str], most: int
) -> None:
    kept, alive, gone = journal(most), [], []
    for number, step in enumerate(steps, 1):
        one = Connection(str(number))
        kept.begin(one)
        if step == OPEN:
            alive.append(number)
        else:
            kept.end(one, "client closed")
            gone.append(number)
    gone = gone[-most:] if most else []
    assert kept.open() == alive
    assert [one.number for one in kept.ended()] == gone
    assert kept.has_ended == steps.count(ENDED)
    for latest in range(most + 2):
        assert [one.number for one in kept.latest(latest)] == gone[max(0, len(gone) - latest) :]
    assert [one.number for one in kept.records()] == sorted(alive + gone)
    assert all(one.peer == str(one.number) for one in kept.records())


def test_a_connection_that_ends_while_records_are_read_is_not_read_twice() -> None:
    kept, connections = journal(), [Connection(str(number)) for number in range(4)]
    for one in connections:
        kept.begin(one)
    numbers = []
    for record in kept.records():
        numbers.append(record.number)
        if record.number == 2:
            kept.end(connections[2], "served")
            kept.begin(Connection("new"))
    assert numbers == [1, 2, 3, 4]


@given(st.lists(st.binary(max_size=20)), st.integers(0, 50))
def test_the_first_bytes_are_kept_however_they_come(pieces: list[bytes], most: int) -> None:
    kept, one = journal(most_bytes=most), Connection()
    kept.begin(one)
    for piece in pieces:
        kept.hear(one, piece)
    kept.end(one, "served")
    found = kept.find(1)
    assert found is not None and found.received == b"".join(pieces)[:most]


def test_what_comes_after_the_end_is_not_kept() -> None:
    kept, one = journal(most_bytes=10), Connection()
    kept.begin(one)
    kept.end(one, "fault")
    kept.hear(one, b"late")
    kept.note(one, 1, "a", "b")
    kept.end(one, "served")
    (found,) = kept.ended()
    assert (found.received, found.mismatches, found.reason) == (b"", (), "fault")


def test_a_mismatch_is_kept() -> None:
    kept, one = journal(), Connection()
    kept.begin(one)
    kept.note(one, 3, "HELO", "'EHLO'")
    kept.end(one, "handler closed")
    found = kept.find(1)
    assert found is not None and found.mismatches == (Mismatch(3, "HELO", "'EHLO'"),)


def test_memory_is_bounded() -> None:
    """Fault 144: Memory stops growing, however many they are and however much they send."""
    kept = journal(most=100, most_bytes=1000)

    def serve(times: int) -> None:
        for _ in range(times):
            one = Connection()
            kept.begin(one)
            for _ in range(20):
                kept.hear(one, bytes(400))
            kept.end(one, "client closed")

    tracemalloc.start()
    try:
        serve(200)
        before, _ = tracemalloc.get_traced_memory()
        serve(2000)
        after, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after < before + 10_000
    assert most < before + 20_000
    assert len(kept.ended()) == 100
