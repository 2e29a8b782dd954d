from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.settings.definitions import SETTINGS
from echod.settings.toml_errors import explain

UNQUOTED = {one.key: one.unquoted for one in SETTINGS}


def error_of(text: str) -> str:
    with pytest.raises(tomllib.TOMLDecodeError) as caught:
        tomllib.loads(text)
    return explain(str(caught.value), text, UNQUOTED)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("framing = line", ':1: framing: a text needs quotation marks: write framing = "line"'),
        (
            "port = 8888 # so\nframing = line # so",
            ":2: framing: a text needs quotation marks: write",
        ),
        ("port = 1\r\nframing = line\r\n", ":2: framing: a text needs quotation marks: write"),
        ("banner = Good day", 'quotation marks: write banner = "Good day"'),
        ("prefix = \x00", r'quotation marks: write prefix = "\u0000"'),
        (
            "listen = [\n  'a',\n  tcp:80,\n]",
            ':3: listen: a text needs quotation marks: write "tcp:80"',
        ),
        ("threads = 1\n\nthreads = 2\n", ":3: threads: is given twice, first in line 1"),
        ('"port" = 1\nport = 2', ":2: port: is given twice, first in line 1"),
        ("port = 80\n[port]\nx = 1", ":2: port: is given twice, first in line 1"),
        ("a.b = 1\na = 2", ":2: a: is given twice"),
        ("no-banner = True", ":1: no-banner: 'True' is neither true nor false"),
        ("idle-timeout = 10m", ":1: idle-timeout: '10m' is not a number of seconds, 0 or from"),
        ("idle-timeout = 10m", "; write 600"),
        ("max-message = 64k", ":1: max-message: '64k' is not a whole number of bytes from 1 to"),
        ("threads = 1,5", ":1: threads: '1,5' is not a whole number from 1 to 10000"),
        ("slow-handler = .5", ":1: slow-handler: '.5' is not a number of seconds"),
        ("workers = auto", ':1: workers: a text needs quotation marks: write workers = "auto"'),
        ('framing = "line" "x"', ':1: framing: "line" "x" goes on after its end'),
        ("port = ", ":1: port: has no value; write port = VALUE"),
        ("port 3", ":1: port: no = follows the key; write port = VALUE"),
        ("port: 3", ":1: port: no = follows the key; write port = VALUE"),
        ('banner = "x\nport = 1', ":1: banner: the text has no closing quotation mark"),
        ('port = 1\nbanner = """x\n', ":2: banner: the text has no closing quotation mark"),
        ("port = [1, 2\nthreads = 3", ":1: port: the array has no closing bracket: ]"),
        (r'prefix = "C:\x"', r":1: prefix: \ begins an escape within"),
        ("= 3", ":1: this line is no setting: write KEY = VALUE"),
        ("port = 3\n\n@@ = 3", ":3: this line is no setting: write KEY = VALUE"),
        ("port = 3\n[\n", ":2: this line is no setting: write KEY = VALUE"),
    ],
)
def test_a_mistake_names_the_line_the_key_and_the_remedy(text: str, why: str) -> None:
    assert why in error_of(text)


@given(st.text(st.sampled_from("ab =[]\"'\\\r\n#.,1{}\x1b\u2028")))
def test_each_mistake_is_one_printable_line(text: str) -> None:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        said = explain(str(error), text, UNQUOTED)
        assert said.startswith(":")
        assert len(said.splitlines()) == 1
