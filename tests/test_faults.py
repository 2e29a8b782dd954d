"""Faults on purpose, without a connection: the grammar, the choice, and each fault."""

from __future__ import annotations

import itertools
import math
import statistics
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.faults import (
    FAULTS,
    Act,
    Chosen,
    Course,
    Direction,
    FaultError,
    Faults,
    Item,
    Reads,
    parse_fault,
)
from echod.faults.arrival import ConnectTimeout, Refuse, SlowAccept, at_work, next_change

IN, OUT = Direction.IN, Direction.OUT
DATA = bytes(range(256)) * 8


def course(*texts: str, seed: int = 1, direction: Direction = OUT, at: float = 0.0) -> Course:
    chosen = Faults([parse_fault(text) for text in texts], seed, 1, "tcp:0").choose("")
    assert chosen is not None
    return chosen.course(direction, at)


def passed(items: list[Item]) -> list[bytes | Act | None]:
    """The bytes that belong together as one, and acts and ends between them."""
    result: list[bytes | Act | None] = []
    for item in items:
        if item.data and result and isinstance(result[-1], bytes):
            result[-1] += item.data
        else:
            result.append(item.data or item.act)
    return result


def through(one: Course, *pieces: bytes, apart: float = 0.0) -> list[Item]:
    """Return the items that follow from these pieces, and from the end."""
    items = one.start(0.0)
    for number, piece in enumerate(pieces):
        items += one.take(piece, number * apart)
    return items + one.end(len(pieces) * apart)


# The grammar.


def test_keys_are_converted_to_their_types() -> None:
    rule = parse_fault("delay:time=0.5,jitter=.1,p=0.1,from=2001:db8::/32,at-most=5,after=2s")
    assert rule.fault == FAULTS["delay"](time=0.5, jitter=0.1)  # type: ignore[call-arg]
    assert rule.selection.p == 0.1
    assert str(rule.selection.source) == "2001:db8::/32"
    assert rule.selection.at_most == 5
    assert rule.selection.after.seconds == 2.0
    assert str(rule) == "delay:time=0.5,jitter=.1,p=0.1,from=2001:db8::/32,at-most=5,after=2s"


def test_a_comma_and_a_backslash_in_a_value_have_a_backslash_before_them() -> None:
    assert parse_fault(r"reset:listener=a\,b\\c,first=2").selection.listener == r"a,b\c"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("rest", "no fault is named 'rest'; did you mean reset?"),
        ("xyz", "no fault is named 'xyz'; there are: reset"),
        ("refuse:p=0.1", "refuse takes no key 'p'; it takes: for, after, listener"),
        ("refuse:after=10", "refuse: after=10 is not a number of seconds with an s, as in 2s"),
        ("refuse:direction=in", "refuse takes no key 'direction'; it takes: for, after, listener"),
        ("slow-accept:first=1", "slow-accept takes no key 'first'; it takes: for, time, after"),
        ("endless:kind=word", "endless: kind=word is not line or length"),
        ("endless:direction=in", "endless: direction=in is not out"),
        ("reset:aftr=1", "reset takes no key 'aftr'; did you mean after?"),
        ("reset:time=1", "reset takes no key 'time'; it takes: after, message, p"),
        ("reset:", "'' is not of the form key=value"),
        ("reset:after", "'after' is not of the form key=value"),
        ("delay:200ms", "'200ms' is not of the form key=value; delay takes: time,"),
        ("refuse:3", "'3' is not of the form key=value; refuse takes: for, after,"),
        ("reset,after=10", "named 'reset,after=10'; keys follow a colon, as in reset:after=10"),
        ("delay=2", "no fault is named 'delay=2'; keys follow a colon, as in reset:after=10"),
        ("delayed", "no fault is named 'delayed'; did you mean delay?"),
        ("reset:after=1,", "'' is not of the form key=value"),
        ("reset:first=1,first=2", "reset: first is given twice"),
        ("reset:after=3msgs", "after=3msgs is not a number of bytes, as in 10, or 3msg, 2s or"),
        ("reset:after=hand", "after=hand is not a number of bytes, as in 10, or 3msg, 2s or"),
        ("reset:after=-1msg", "after=-1msg is not a number of bytes, as in 10, or 3msg, 2s or"),
        ("reset:message=(", "message=( is not a regular expression (missing ), unterminated"),
        ("reset:p=0", "p=0 is not a share above 0, up to 1"),
        ("reset:p=2", "p=2 is not a share above 0, up to 1"),
        ("reset:every=0", "every=0 is not a whole number from 1"),
        ("reset:from=10.0.0.1/8", "from=10.0.0.1/8 is not a network"),
        ("reset:direction=up", "direction=up is not out or in"),
        ("never-read:direction=out", "direction=out is not in"),
        ("slice:pause=0", "pause=0 is not a number of seconds from 0.001"),
        ("delay:time=1e9", "time=1e9 is not a number of seconds"),
        ("delay:jitter=1,sigma=1", "delay: jitter and sigma contradict each other"),
        ("delay:time=\x1b[1m", r"delay: time=\x1b[1m is not"),
        (
            "stall-handshake:after=2s",
            "stall-handshake: it begins in the handshake: after= is a num",
        ),
        (
            "cut-handshake:message=x",
            "cut-handshake: it begins in the handshake: after= is a number",
        ),
        ("cut-handshake:end=bye", "cut-handshake: end=bye is not fin or rst"),
        (
            "wrong-certificate:after=1",
            "wrong-certificate: it begins with the handshake, so it take",
        ),
        ("wrong-certificate:name=good", "wrong-certificate: name=good is not expired"),
        ("alert:which=boo", "alert: which=boo is not an alert of TLS, as in handshake_failure"),
        ("alert:which=unknown_ca,after=1", "alert: which=unknown_ca can be sent in the handshake"),
        ("alert:which=unknown_ca,message=x", "alert: which=unknown_ca can be sent in the handsh"),
        ("alert:direction=in", "alert: direction=in is not out"),
        (
            "delay:sni=",
            "delay: sni= is not the name of a host, as in shop.localhost or *.localhost",
        ),
        ("delay:sni=a b", "delay: sni=a b is not the name of a host"),
    ],
)
def test_a_wrong_text_is_refused_in_one_line_with_a_remedy(text: str, why: str) -> None:
    with pytest.raises(FaultError) as caught:
        parse_fault(text)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=40))
def test_no_text_raises_anything_else(text: str) -> None:
    for prefix in ("", "reset:", "delay:time="):
        with suppress(FaultError):
            parse_fault(prefix + text)


# The choice.


def chosen(*texts: str, seed: int = 1, hosts: list[str] | None = None) -> list[list[str]]:
    """The names of the faults of each connection."""
    faults = Faults([parse_fault(text) for text in texts], seed, 2, "tcp:8888")
    every = [faults.choose(host) for host in hosts or [""] * 1000]
    return [one.names if one else [] for one in every]


def numbers(text: str, **options: object) -> list[int]:
    """The connections that it selects, from 1."""
    return [
        number
        for number, names in enumerate(chosen(text, **options), 1)  # type: ignore[arg-type]
        if names
    ]


def test_counts_select_connections_by_their_numbers() -> None:
    assert numbers("reset:first=3") == [1, 2, 3]
    assert numbers("reset:every=300") == [300, 600, 900]
    assert numbers("reset:every=100,at-most=2") == [100, 200]
    assert numbers("reset:every=100,first=250") == [100, 200]


def test_a_host_selects_the_clients_that_ask_for_it() -> None:
    for text, selected in (
        ("shop.localhost", ["shop.localhost", "SHOP.localhost."]),
        ("*.localhost", ["shop.localhost", "SHOP.localhost."]),
        ("Shop.Localhost.", ["shop.localhost", "SHOP.localhost."]),
        ("*.shop.localhost", ["www.shop.localhost"]),
    ):
        selection = parse_fault(f"delay:sni={text}").selection
        asked = ["shop.localhost", "SHOP.localhost.", "www.shop.localhost", "localhost", "", None]
        assert [host for host in asked if selection.is_for(host)] == selected
    assert parse_fault("delay").selection.is_for(None)


def test_a_fault_that_needs_a_host_is_counted_once_a_client_has_asked_for_it() -> None:
    faults = Faults([parse_fault("delay:sni=shop.localhost,at-most=1")], 1, 1, "tls:0")
    first, second, third = (faults.choose("") for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    assert not second.picks[0].armed.hit("other.localhost")
    assert first.picks[0].armed.hit("shop.localhost")
    assert not third.picks[0].armed.hit("shop.localhost")


def test_a_network_selects_its_clients_alone() -> None:
    hosts = ["10.1.2.3", "192.0.2.1", "::ffff:10.0.0.1", "2001:db8::1", "", "fe80::1%eth0"]
    assert numbers("reset:from=10.0.0.0/8", hosts=hosts) == [1, 3]
    assert numbers("reset:from=2001:db8::/32", hosts=hosts) == [4]
    assert numbers("reset:from=fe80::/10", hosts=hosts) == [6]


def test_a_listener_is_named_by_its_number_or_its_endpoint() -> None:
    assert numbers("reset:listener=2,first=1") == [1]
    assert numbers("reset:listener=tcp:8888,first=1") == [1]
    assert numbers("reset:listener=1") == []


def test_the_same_seed_selects_the_same_thousand_connections_and_another_others() -> None:
    texts = ("reset:p=0.1", "delay:p=0.5", "close:p=0.1")
    assert chosen(*texts) == chosen(*texts)
    assert chosen(*texts) != chosen(*texts, seed=2)
    resets = numbers("reset:p=0.1")
    assert 60 < len(resets) < 140
    assert resets != numbers("reset:p=0.1", seed=2)


def test_faults_are_chosen_independently_of_each_other() -> None:
    both = [names for names in chosen("reset:p=0.5", "close:p=0.5") if len(names) == 2]
    assert 180 < len(both) < 320


# The faults of a listener.


def test_the_first_fault_of_a_listener_that_is_at_work_counts() -> None:
    texts = ("refuse:after=1s,for=2", "connect-timeout:after=2s,for=3", "slow-accept:for=1")
    rules = [parse_fault(text) for text in texts]
    barriers = [at_work(rules, elapsed, Refuse, ConnectTimeout) for elapsed in range(7)]
    first, second = rules[:2]
    assert barriers == [None, first, first, second, second, None, None]
    slow = [at_work(rules, elapsed, SlowAccept) for elapsed in (0.0, 0.9, 1.0)]
    assert slow == [rules[2], rules[2], None]
    assert next_change(rules, 0.0) == 1.0
    assert next_change(rules, 2.5) == 0.5
    assert next_change(rules, 5.0) == math.inf
    assert next_change([parse_fault("refuse")], 0.0) == math.inf


def test_a_fault_of_a_listener_selects_no_connections_and_is_the_listeners() -> None:
    faults = Faults([parse_fault("refuse"), parse_fault("refuse:listener=2")], 1, 1, "tcp:0")
    assert faults.choose("") is None
    assert [str(rule) for rule in faults.arrivals] == ["refuse"]
    assert faults.names == ["refuse"]
    changes: list[int] = []
    faults.arrivals_changed = lambda: changes.append(len(faults.arrivals))
    faults.change([(0, parse_fault("reset")), (1, parse_fault("slow-accept:time=2s"))])
    assert changes == [1]
    assert faults.names == ["reset", "slow-accept"]


# Each fault.


@pytest.mark.parametrize(
    ("text", "act"),
    [("reset", Act.RESET), ("close", Act.CLOSE), ("half-close", Act.HALF_CLOSE)],
)
def test_an_end_comes_after_exactly_so_many_bytes(text: str, act: Act) -> None:
    assert passed(through(course(f"{text}:after=10"), DATA)) == [DATA[:10], act]
    assert passed(through(course(text), DATA)) == [act]
    assert passed(through(course(f"{text}:after=5000"), DATA)) == [DATA, None]


def test_an_end_at_the_last_byte_waits_for_no_other() -> None:
    one = course("reset:after=10")
    assert passed(one.take(b"0123456789", 1.0)) == [b"0123456789", Act.RESET]


def test_an_end_by_time_comes_although_nothing_moves() -> None:
    one = course("reset:after=2s", at=10.0)
    assert one.wake_at == 12.0
    assert one.wake(11.9) == []
    assert one.wake(12.0) == [Item(12.0, act=Act.RESET_NOW)]
    assert one.wake_at == math.inf
    assert one.take(DATA, 13.0) == []


def test_a_close_by_time_does_not_wait_for_what_a_stall_behind_it_holds() -> None:
    one = course("close:after=1s", "stall")
    assert one.start(0.0) + one.take(b"abc", 0.5) == [Item(1.0, act=Act.CLOSE)]


def test_a_close_by_time_stays_in_time_when_the_stall_behind_it_is_taken_away() -> None:
    both, alone = [parse_fault("close:after=1s"), parse_fault("stall")], Faults([], 1, 1, "")
    alone.change(enumerate(both))
    chosen = alone.choose("")
    assert chosen is not None
    before = chosen.course(OUT, 0.0)
    items = before.start(0.0) + before.take(b"abc", 0.5)
    (pick, _) = chosen.picks
    left = Chosen((pick,), alone, "").course(OUT, 0.7, before)
    assert left.release(items, 0.7) == [Item(1.0, act=Act.CLOSE)]


def test_an_input_stops_after_exactly_so_many_bytes() -> None:
    one = course("never-read:after=3", direction=IN)
    items = one.take(b"abcdef", 0.0)
    assert passed(items) == [b"abc", Act.STOP_READING, b"def"]
    assert items[-1].due == math.inf  # held, in case that the fault is taken away
    assert one.take(b"ghi", 0.0) == [Item(math.inf, b"ghi")]


def test_a_delay_delays_data_and_the_end_by_as_much() -> None:
    items = through(course("delay:time=0.5"), b"a", b"b", apart=1.0)
    assert items == [Item(0.5, b"a"), Item(1.5, b"b"), Item(2.5)]


@pytest.mark.parametrize("spread", ["jitter=0.25", "sigma=0.5"])
def test_a_delay_varies_and_keeps_the_order(spread: str) -> None:
    one = course(f"delay:time=0.5,{spread}")
    items = [one.take(bytes(64), 10.0 * number)[0] for number in range(400)]
    delays = [item.due - 10.0 * number for number, item in enumerate(items)]
    assert 0.4 < statistics.median(delays) < 0.6
    assert len(set(delays)) > 300
    if spread.startswith("jitter"):
        assert 0.25 <= min(delays) < 0.3 < 0.7 < max(delays) <= 0.75
    burst = course(f"delay:time=0.5,{spread}").take(DATA, 0.0)
    assert [item.due for item in burst] == sorted(item.due for item in burst)


def test_a_stall_holds_all_that_follows_for_its_time() -> None:
    one = course("stall:after=2,time=90")
    assert one.take(b"abcd", 1.0) == [Item(1.0, b"ab"), Item(91.0, b"cd")]
    assert one.end(50.0) == [Item(91.0)]
    assert one.take(b"e", 100.0) == [Item(100.0, b"e")]
    assert course("stall").start(0.0) == []
    assert course("stall:after=1").take(b"ab", 0.0)[1].due == math.inf


def test_bandwidth_is_never_exceeded() -> None:
    items = through(course("bandwidth:rate=1000"), DATA)
    arrived = 0
    for item in items:
        arrived += len(item.data)
        assert arrived <= 1000 * item.due + 1e-6
    assert items[-1] == Item(pytest.approx(len(DATA) / 1000))  # type: ignore[arg-type]


def test_slices_have_their_size_and_a_pause_between_them() -> None:
    items = course("slice:size=100,pause=0.5").take(DATA[:250], 1.0)
    assert [(item.due, len(item.data)) for item in items] == [(1.0, 100), (1.5, 100), (2.0, 50)]
    sizes = {len(item.data) for item in course("slice:size=100,jitter=20").take(DATA, 0.0)[:-1]}
    assert len(sizes) > 5
    assert min(sizes) >= 80
    assert max(sizes) <= 120


def test_a_drip_is_byte_by_byte() -> None:
    items = course("drip").take(b"abc", 0.0)
    assert [item.data for item in items] == [b"a", b"b", b"c"]
    assert [item.due for item in items] == pytest.approx([0.0, 0.1, 0.2])


def test_corruption_changes_bytes_and_their_number_not() -> None:
    (item,) = course("corrupt:rate=0.1").take(DATA, 0.0)
    changed = sum(a != b for a, b in zip(item.data, DATA, strict=True))
    assert 130 < changed < 290
    assert course("corrupt:rate=1").take(DATA, 0.0)[0].data.translate(None) != DATA
    every = course("corrupt:rate=1").take(DATA, 0.0)[0].data
    assert all(a != b for a, b in zip(every, DATA, strict=True))


def test_bytes_are_left_out_or_come_twice() -> None:
    (short,) = course("drop:rate=0.1").take(DATA, 0.0)
    (long,) = course("duplicate:rate=0.1").take(DATA, 0.0)
    assert 130 < len(DATA) - len(short.data) < 290
    assert 130 < len(long.data) - len(DATA) < 290
    assert course("drop:rate=1").take(DATA, 0.0) == []
    assert course("duplicate:rate=1").take(b"ab", 0.0) == [Item(0.0, b"aabb")]


def test_a_truncated_stream_still_ends() -> None:
    assert passed(through(course("truncate:after=3"), b"abcdef")) == [b"abc", None]


def test_garbage_stands_at_its_place() -> None:
    (result, end) = passed(through(course("garbage:after=3,size=100"), b"abcdef"))
    assert isinstance(result, bytes)
    assert end is None
    assert result[:3] + result[103:] == b"abcdef"
    assert len(set(result[3:103])) > 50


def test_an_endless_line_has_an_end_only_once_it_is_stopped() -> None:
    one = course("endless:after=2")
    assert not one.generates
    assert passed(one.take(b"abcd", 0.0)) == [b"ab"]
    assert one.generates
    assert one.end(0.0) == []
    (piece,) = one.generate(1.0)
    assert piece.data.startswith(b"endless ")
    assert one.stop_generating(2.0) == [Item(2.0)]
    assert not one.generates
    lying = course("endless:kind=length")
    assert passed(lying.start(0.0)) == [b"\x7f\xff\xff\xff"]
    assert lying.stop_generating(0.0) == []
    assert lying.end(1.0) == [Item(1.0)]


def test_a_greeting_and_answers_are_told_apart_by_the_client_s_first_byte() -> None:
    for text, expected in [("never-answer", b"hello"), ("no-banner", b"answer")]:
        one = course(text)
        items = one.take(b"hello", 0.0)
        one.client_spoke()
        items += one.take(b"answer", 0.0) + one.end(0.0)
        assert passed(items) == [expected, None]


def test_an_end_may_never_come() -> None:
    assert passed(through(course("never-close"), b"abc")) == [b"abc"]
    assert passed(through(course("never-close", "reset:after=3"), b"abc")) == [b"abc", Act.RESET]
    late = through(course("never-close:time=1.5"), b"abc", apart=1.0)
    assert late == [Item(0.0, b"abc"), Item(2.5)]


def test_the_first_fault_is_nearest_to_the_client() -> None:
    late = course("delay:time=1", "reset:after=3").take(b"abc", 0.0)
    assert late[-1] == Item(1.0, act=Act.RESET)
    early = course("reset:after=3", "delay:time=1").take(b"abc", 0.0)
    assert early == [Item(1.0, b"abc"), Item(1.0, act=Act.RESET)]
    twice = course("duplicate:rate=1", "truncate:after=2").take(b"abc", 0.0)
    assert passed(twice) == [b"aabb"]
    once = course("truncate:after=2", "duplicate:rate=1").take(b"abc", 0.0)
    assert passed(once) == [b"aa"]


def test_a_reset_passes_by_an_early_end() -> None:
    one = course("half-close:after=1", "reset:after=3")
    assert passed(one.take(b"abc", 0.0)) == [b"a", Act.HALF_CLOSE, Act.RESET]


def test_a_fault_has_happened_once_it_has_changed_something() -> None:
    one = course("reset:after=5", "delay:after=2", "corrupt:rate=1,after=9")
    one.take(b"ab", 0.0)
    assert one.fresh() == []
    one.take(b"c", 0.0)
    assert one.fresh() == ["delay"]
    one.take(b"defg", 0.0)
    assert one.fresh() == []  # until the connection is reset indeed
    one.acted(Act.RESET)
    assert one.fresh() == ["reset"]


def test_an_act_that_another_fault_hides_has_not_happened() -> None:
    one = course("close:after=1", "reset:after=3")
    assert passed(one.take(b"abc", 0.0)) == [b"a", Act.CLOSE]
    one.acted(Act.CLOSE)
    assert one.fresh() == ["close"]
    never = course("stall:after=1", "reset:after=3")
    assert never.take(b"abc", 0.0)[-1] == Item(math.inf, act=Act.RESET)
    assert never.fresh() == ["stall"]


def test_the_reset_nearest_to_the_client_is_the_one_that_has_happened() -> None:
    chosen = Faults([parse_fault(f"reset:after={n}") for n in (5, 3)], 1, 1, "").choose("")
    assert chosen is not None
    one = chosen.course(OUT, 0.0)
    assert passed(one.take(b"abcdefg", 0.0)) == [b"abc", Act.RESET]


# The client's messages.


class Lines:
    """Cuts a stream into lines: a part that ends in no line feed is held."""

    def __init__(self) -> None:
        self._held = b""

    def take(self, data: bytes) -> list[tuple[bytes, bytes | None]]:
        *lines, self._held = (self._held + data).split(b"\n")
        return [(line + b"\n", line) for line in lines]

    def end(self) -> list[tuple[bytes, bytes | None]]:
        held, self._held = self._held, b""
        return [(held, held)] if held else []

    def rest(self) -> list[bytes]:
        held, self._held = self._held, b""
        return [held] if held else []


def client_s(text: str, cutter: Any = Lines) -> Course:
    """The client's stream, with a fault in it."""
    chosen = Faults([parse_fault(f"{text},direction=in")], 1, 1, "").choose("")
    assert chosen is not None
    return chosen.course(IN, 0.0, cutter=cutter)


LINES = b"one\ntwo\nthree\nfour\nfive"


BEGINNINGS: list[tuple[str, list[bytes | Act | None]]] = [
    ("truncate:after=2msg", [b"one\ntwo\n", None]),
    ("truncate:message=^t", [b"one\n", None]),
    ("truncate:after=2msg,message=^t", [b"one\ntwo\n", None]),
    ("truncate:after=3msg,message=^t", [LINES, None]),
    ("reset:message=three", [b"one\ntwo\n", Act.RESET]),
    ("truncate:message=five", [b"one\ntwo\nthree\nfour\n", None]),
    ("truncate:message=six", [LINES, None]),
    ("truncate:after=4msg", [b"one\ntwo\nthree\nfour\n", None]),
]


@given(case=st.sampled_from(BEGINNINGS), cuts=st.lists(st.integers(0, len(LINES)), max_size=8))
def test_a_fault_begins_with_a_message_of_the_client_however_reads_fall(
    case: tuple[str, list[bytes | Act | None]], cuts: list[int]
) -> None:
    text, expected = case
    places = sorted({0, *cuts, len(LINES)})
    pieces = [LINES[start:end] for start, end in itertools.pairwise(places)]
    assert passed(through(client_s(text), *pieces)) == expected


def test_a_read_is_a_message_where_there_are_no_others() -> None:
    one = client_s("truncate:after=2msg", Reads)
    assert passed(through(one, b"one\ntwo", b"three", b"four")) == [b"one\ntwothree", None]


def test_the_other_direction_is_told_of_messages() -> None:
    one = course("truncate:after=1msg,message=^q")
    assert one.awaits_message
    items = [*one.heard(b"quit", 0.0), *one.take(b"1", 0.0)]
    assert one.begins_with(b"quit", 0.0)
    assert not one.begins_with(b"other", 0.0)
    items += [*one.heard(b"other", 0.0), *one.take(b"2", 0.0)]
    items += [*one.heard(b"quit", 0.0), *one.take(b"3", 0.0)]
    assert not one.awaits_message
    assert passed(items + one.end(0.0)) == [b"12", None]


def test_a_message_and_a_place_have_to_hold_both() -> None:
    by_size = course("reset:after=4,message=x")
    assert by_size.heard(b"x", 0.0) == []
    by_size.take(b"abcd", 0.0)
    assert by_size.heard(b"y", 0.0) == []
    assert by_size.heard(b"x", 0.0) == [Item(0.0, act=Act.RESET)]
    by_time = course("reset:after=2s,message=x", at=1.0)
    assert by_time.wake_at == math.inf
    assert by_time.heard(b"x", 2.9) == []
    assert by_time.heard(b"x", 3.0) == [Item(3.0, act=Act.RESET)]


def test_a_fault_begins_with_the_end_of_the_handshake() -> None:
    one = course("reset:after=handshake")
    assert one.start(0.0) == []
    assert one.take(b"a", 0.0) == [Item(0.0, b"a")]
    assert one.handshaken(1.0) == [Item(1.0, act=Act.RESET)]
    assert one.handshaken(2.0) == []


def test_another_direction_is_left_alone() -> None:
    assert passed(through(course("reset", direction=IN), DATA)) == [DATA, None]
    assert passed(through(course("reset:direction=in", direction=IN), DATA)) == [Act.RESET]


# Decisions do not depend on how reads fall.

TEXTS = [
    "corrupt:rate=0.2",
    "drop:rate=0.2,after=7",
    "duplicate:rate=0.3",
    "slice:size=10,jitter=5",
    "delay:jitter=0.1",
    "garbage:after=50",
    "bandwidth",
    "truncate:after=150",
    "reset:after=180",
    "half-close:after=90",
    "never-close",
]


@given(
    texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 255), max_size=12),
    seed=st.integers(0, 5),
)
def test_bytes_and_acts_are_the_same_however_reads_fall(
    texts: list[str], cuts: list[int], seed: int
) -> None:
    data, places = DATA[:256], sorted({0, *cuts, 256})
    pieces = [data[start:end] for start, end in itertools.pairwise(places) if end > start]
    whole = passed(through(course(*texts, seed=seed), data))
    assert passed(through(course(*texts, seed=seed), *pieces, apart=0.3)) == whole


@pytest.mark.parametrize("text", ["corrupt", "drop", "duplicate", "garbage"])
def test_another_seed_or_connection_gives_other_bytes(text: str) -> None:
    first = passed(through(course(text, seed=1), DATA))
    assert passed(through(course(text, seed=1), DATA)) == first
    assert passed(through(course(text, seed=2), DATA)) != first
    faults = Faults([parse_fault(text)], 1, 1, "")
    several = [faults.choose("") for _ in range(3)]
    assert len({str(passed(through(one.course(OUT, 0.0), DATA))) for one in several if one}) == 3
