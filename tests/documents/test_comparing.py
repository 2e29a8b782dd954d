"""The lines of a page agree with those that were printed, except for the pieces that vary."""

from __future__ import annotations

import pytest

from tests.documents.comparing import agree, difference, match, match_unordered

CONNECTED = "Connected with 127.0.0.1:35758"
GONE = "Disconnected from 127.0.0.1:35758: client closed (5.099 s, messages: 2, bytes in: 1)"


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("happy", "happy"),
        ("1.0 s", "1.3 s"),
        ("(0.007 s, messages: 4)", "(9.123 s, messages: 4)"),
        ("Another twistd server is running, PID 4594", "Another twistd server is running, PID 7"),
        ("VmRSS:\t   45412 kB", "VmRSS:\t   50001 kB"),
        (
            "srw-rw---- 1 root root 0 Nov 25 19:05 echod.sock",
            "srw-rw---- 1 me me 0 Jan  1 00:00 echod.sock",
        ),
        ("[echod#info] Stopped", "2026-11-25T18:44:40.983+00:00 [echod#info] Stopped"),
    ],
)
def test_pieces_that_vary_agree(shown: str, printed: str) -> None:
    assert agree(shown, printed, {}) == {}


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("happy", "birthday"),
        ("happy", "happy!"),
        ("1.0 s", "2.0 s"),
        ("1.0 s", "happy"),
        ("0.0 s", "1.0 s"),
        ("(0.007 s, messages: 4)", "(0.007 s, messages: 5)"),
        ("VmRSS:\t   45412 kB", "VmRSS:\t   99999 kB"),
        ("Threads:\t3", "Threads:\t4"),
        (
            "srw-rw---- 1 root root 0 Nov 25 19:05 echod.sock",
            "srw-rw-rw- 1 root root 0 Nov 25 19:05 echod.sock",
        ),
        ("starting on 8888", "starting on 8889"),
        ("OK...happy", "OK, happy"),
    ],
)
def test_everything_else_differs(shown: str, printed: str) -> None:
    assert agree(shown, printed, {}) is None


def test_a_client_has_one_port_all_through_a_page() -> None:
    ports = agree(CONNECTED, CONNECTED.replace("35758", "40001"), {})
    assert ports == {"35758": "40001"}
    assert agree(GONE, GONE.replace("35758", "40001"), ports) == ports
    assert agree(GONE, GONE.replace("35758", "40002"), ports) is None


def test_lines_agree_if_all_are_there_and_no_others() -> None:
    assert match(["a", "b"], ["a", "b"], {}) == {}
    assert match(["a", "b"], ["a", "b", "c"], {}) is None
    assert match(["a", "b"], ["a", "c", "b"], {}) is None
    assert match(["a", "b"], ["a"], {}) is None
    assert match([], ["a"], {}) is None


def test_three_dots_stand_for_any_lines() -> None:
    assert match(["a", "...", "d"], ["a", "b", "c", "d"], {}) == {}
    assert match(["a", "...", "d"], ["a", "d"], {}) == {}
    assert match(["a", "..."], ["a", "b", "c"], {}) == {}
    assert match(["a", "...", "d"], ["a", "b", "d", "e"], {}) is None
    assert match(["...", "b", "c"], ["b", "a", "b", "c"], {}) == {}


def test_other_lines_of_a_log_may_stand_between() -> None:
    assert match(["a", "c"], ["a", "b", "c", "d"], {}, gaps=True) == {}
    assert match(["c", "a"], ["a", "b", "c", "d"], {}, gaps=True) is None


def test_a_client_of_a_log_is_the_one_of_whom_all_is_true() -> None:
    others = [CONNECTED.replace("35758", str(port)) for port in (40001, 40002)]
    log = [*others, GONE.replace("35758", "40002")]
    assert match([CONNECTED, GONE], log, {}, gaps=True) == {"35758": "40002"}


def test_in_any_order_each_line_is_there_as_often_as_it_is_shown() -> None:
    assert match_unordered(["a", "1.0 s", "b"], ["b", "a", "1.1 s"], {}) == {}
    assert match_unordered(["a", "b"], ["b", "a", "a"], {}) is None
    assert match_unordered(["a", "a", "b"], ["b", "b", "a"], {}) is None
    assert match_unordered(["a", "b"], ["b", "c", "a"], {}, gaps=True) == {}
    assert match_unordered(["a", "b"], ["b", "c"], {}, gaps=True) is None


def test_a_difference_shows_only_what_differs() -> None:
    assert difference(["a", "1.0 s", "c"], ["a", "1.1 s", "d"]).splitlines() == [
        "  a",
        "  1.0 s",
        "- c",
        "+ d",
    ]
