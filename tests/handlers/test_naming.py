"""The text of a flag that names an object, by one rule for handlers and framings."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.errors import UserError
from echod.handlers.contract import HandlerError
from echod.handlers.framings import NAMES as FRAMING_NAMES
from echod.handlers.framings import UnusableFraming
from echod.handlers.lookup import NAMES as HANDLER_NAMES
from echod.handlers.naming import Catalogue, Installed, Spec, summary
from echod.handlers.plugins import Offer


class Wrong(UserError):
    """An error of the catalogue here."""


def cups(*, size: int = 1) -> object:
    """Tea in cups.

    Or in mugs.
    """
    return size


OFFERS = [
    Offer("pot", "tests.handlers.test_naming:cups", "one"),
    Offer("cup", "tests.handlers.test_naming:other", "two"),
    Offer("cups", "tests.handlers.test_naming:cups", "again"),
    Offer("torn", "", "three", error="its metadata cannot be read"),
]
NAMES = Catalogue("vessel", "CLASS", {"cups": cups, "cup": cups}, Wrong, lambda: list(OFFERS))
CATALOGUES = [(HANDLER_NAMES, HandlerError), (FRAMING_NAMES, UnusableFraming), (NAMES, Wrong)]


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("echo", "echo", {}),
        ("my.module:object", "my.module:object", {}),
        ("my.module:Class.method", "my.module:Class.method", {}),
        ("echo:prefix=>>", "echo", {"prefix": ">>"}),
        ("echo:banner=Hi: there,prefix=a=b", "echo", {"banner": "Hi: there", "prefix": "a=b"}),
        (r"echo:prefix=a\,b", "echo", {"prefix": "a,b"}),
        (r"echo:prefix=a\:banner=b", "echo", {"prefix": "a:banner=b"}),
        ("echo:prefix=", "echo", {"prefix": ""}),
        ("line:delimiter=:", "line", {"delimiter": ":"}),
        ("m:f:times=2", "m:f", {"times": "2"}),
    ],
)
def test_an_object_is_named_with_its_arguments(
    text: str, name: str, arguments: dict[str, str]
) -> None:
    for names, _ in CATALOGUES:
        assert names.parse(text) == Spec(name, arguments)
        assert str(names.parse(text)) == text


@given(
    st.from_regex(r"[^:=,\\]+(:[^:=,\\]+)?", fullmatch=True),
    st.dictionaries(
        st.from_regex(r"[a-z_]+", fullmatch=True), st.text(st.characters(), max_size=9)
    ),
)
def test_a_spec_is_written_as_it_is_read(name: str, arguments: Mapping[str, str]) -> None:
    given_ = {key: value.replace("\\", "/") for key, value in arguments.items()}
    spec = Spec(name, given_)
    assert NAMES.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not of the form NAME"),
        ("echo:", "not of the form NAME"),
        ("a:b:c", "not of the form NAME"),
        ("echo:prefix=1,banner", "'banner' is not of the form key=value .a comma within a value"),
        ("line:max-message=5", r"'max-message=5' .* \(did you mean max_message\?\)$"),
        ("echo:prefix=1,prefix=2", "'prefix' is given twice"),
        ("\x1b[2J=", r"\\x1b\[2J"),
    ],
)
def test_an_object_that_is_named_wrongly_is_refused(text: str, why: str) -> None:
    for names, error in CATALOGUES:
        with pytest.raises(error, match=why):
            names.parse(text)


def test_an_error_says_which_kind_of_object_is_meant() -> None:
    with pytest.raises(Wrong) as caught:
        NAMES.find("pots")
    assert str(caught.value) == (
        "no vessel is named 'pots'; installed: cup, cups, pot (did you mean pot?); "
        "`echod vessels` says which plugins are broken"
    )
    with pytest.raises(Wrong, match=r"^torn: its metadata cannot be read$"):
        NAMES.check_name("torn")


def test_a_built_in_object_comes_before_a_plugin_and_a_plugin_is_imported_when_it_is_found() -> (
    None
):
    assert NAMES.find("cup") is NAMES.find("pot") is cups
    assert NAMES.find("tests.handlers.test_naming:cups") is cups


def test_the_list_has_each_object_once_with_its_error() -> None:
    described = NAMES.installed(lambda name, target: Installed(name, "Tea.", "here"))
    assert [(one.name, one.origin, one.error) for one in described] == [
        ("cup", "here", ""),
        (
            "cup",
            "tests.handlers.test_naming:other (two)",
            "echod has a built-in vessel cup; give tests.handlers.test_naming:other",
        ),
        ("cups", "here", ""),
        ("pot", "tests.handlers.test_naming:cups (one)", ""),
        ("torn", "three", "its metadata cannot be read"),
    ]


def test_the_documentation_of_a_partial_is_that_of_its_function() -> None:
    def brew(message: bytes, *, cups: int) -> bytes:
        """Brews tea."""
        return message * cups

    assert summary(functools.partial(functools.partial(brew), cups=2)) == "Brews tea."
