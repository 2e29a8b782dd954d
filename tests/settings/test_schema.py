from __future__ import annotations

import contextlib
import enum
import tomllib
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.settings.schema import (
    SettingError,
    Text,
    as_file,
    by_section,
    describe,
    escaped_bytes,
    in_plain_numbers,
    one_of,
    read_file,
    seconds,
    setting,
    whole_number,
)


class Taste(enum.StrEnum):
    SWEET = "sweet"
    SOUR = "sour"


@dataclass(frozen=True)
class Cake:
    """The fields that a settings class may have, and no others."""

    layers: int = setting(3, Text("How many.", whole_number(1, 9), section="Shape"))
    height: float = setting(2.5, Text("How high.", seconds, unit="seconds"))
    rest: float = setting(0.0, Text("How long to let it be.", seconds, unit="seconds"))
    candles: tuple[int, ...] = setting(
        (), Text("Years.", whole_number(0, 99), repeats=True, unset="none")
    )
    taste: Taste = setting(
        Taste.SWEET, Text("What like.", lambda text: Taste(one_of(Taste)(text)), section="Taste")
    )
    writing: bytes | None = setting(None, Text("What on top.", escaped_bytes, unset="nothing"))
    guests: tuple[str, ...] = setting((), Text("Who.", repeats=True, unset="the family"))
    icing: bool = setting(False, Text("Whether glazed."))


CAKE = describe(Cake)


def read(text: str) -> dict[str, Any]:
    return read_file(CAKE, text, "cake.toml", {})


def test_a_field_is_described_by_its_name_type_and_text() -> None:
    assert [one.flag for one in CAKE][:2] == ["--layers", "--height"]
    assert [one.native for one in CAKE] == [int, float, float, int, str, str, str, bool]
    assert {heading: len(ones) for heading, ones in by_section(CAKE).items()} == {
        "Shape": 4,
        "Taste": 4,
    }
    assert [one.placeholder for one in CAKE] == [
        *["N", "SECONDS", "SECONDS", "N"],
        *["TEXT", "TEXT", "TEXT", ""],
    ]
    assert [one.shown_default for one in CAKE] == [
        *["3", "2.5", "0", "none"],
        *["sweet", "nothing", "the family", ""],
    ]


def test_a_file_holds_values_of_tomls_own_types() -> None:
    assert read(
        r"""
        layers = 4
        height = 3
        candles = [1, 2]
        taste = "sour"
        writing = 'Happy\n'
        guests = ["A", "B"]
        icing = true
        """
    ) == {
        "layers": 4,
        "height": 3.0,
        "candles": (1, 2),
        "taste": Taste.SOUR,
        "writing": b"Happy\n",
        "guests": ("A", "B"),
        "icing": True,
    }


def test_one_value_will_do_where_several_may_be_given() -> None:
    assert read("candles = 1\nguests = 'A'") == {"candles": (1,), "guests": ("A",)}


def test_an_empty_file_says_nothing() -> None:
    assert read("# nothing\n") == {}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("layers = 10", ":1: layers: '10' is not a whole number from 1 to 9"),
        ("\nlayers = -1", ":2: layers: '-1' is not a whole number"),
        (f"layers = {'9' * 3000}", ":1: layers: "),
        (f"layers = {'9' * 5000}", "cake.toml: a number in it has thousands of digits"),
        (f"layers = 0x{'f' * 4000}", f"layers: '0x{'f' * 16}...{'f' * 18}' is not a whole number"),
        (
            f"height = 0x{'f' * 4000}",
            f"height: '0x{'f' * 16}...{'f' * 18}' is not a number of sec",
        ),
        (f"candles = [1, 0x{'f' * 4000}]", f"candles: '0x{'f' * 16}...{'f' * 18}' is not a whole"),
        (
            f"taste = 0x{'f' * 4000}",
            f"taste: 0x{'f' * 16}...{'f' * 18} is a whole number, but this",
        ),
        (f"layers = [0x{'f' * 4000}]", f"layers: [0x{'f' * 16}...{'f' * 18}] is an array, but"),
        (f"layers = {'[' * 300}{']' * 300}", "layers: [[[[[[[...]]]]]]] is an array, but this"),
        (
            f"layers.{'.'.join('a' * 5000)} = 1",
            "layers: there are no tables: put every key at the top level",
        ),
        (f"taste = '{'x' * 9000}'", f"taste: '{'x' * 27}...{'x' * 28}' is not one of: sweet"),
        (f"{'x' * 9000} = 1", f": {'x' * 57}...: there is no such key"),
        ("layers = '3'", ":1: layers: '3' is a string: write 3, without quotation marks"),
        ("layers = 'x'", ":1: layers: 'x' is not a whole number from 1 to 9"),
        ("height = '2 m'", "is not a number of seconds, 0 or from 0.001 to 10000000, as in 90 or"),
        ("height = '2 m'", "; write 120"),
        ("height = 2h", "; write 7200"),
        ("height = [1]", "[1] is an array, but this takes a number of seconds"),
        ("layers = 3.5", "3.5 is a number, but this takes a whole number"),
        ("layers = true", "true is true or false, but this takes a whole number"),
        ("layers = [3]", "[3] is an array, but this takes a whole number"),
        ("height = true", "this takes a number"),
        ("height = nan", "'nan' is not a number of seconds, 0 or from 0.001 to 10000000"),
        ("height = -inf", "'-inf' is not a number of seconds, 0 or from 0.001"),
        ("candles = [1, 100]", "'100' is not a whole number from 0 to 99"),
        ("candles = [[1]]", "[1] is an array"),
        ("taste = 'salty'", "taste: 'salty' is not one of: sweet, sour"),
        ("taste = 'sweets'", "is not one of: sweet, sour; did you mean sweet?"),
        ("taste = 1979-05-27", "is a date or a time, but this takes a string"),
        ("taste = 9464", '9464 is a whole number, but this takes a string: write "9464"'),
        ("writing = '\\x1'", "is not text in which"),
        ("icing = 'true'", "'true' is a string: write true, without quotation marks"),
        ("icing = 'yes'", "'yes' is neither true nor false"),
        ("icing = 1", "1 is a whole number, but this takes true or false"),
        ("\n\nlayer = 3", "cake.toml:3: layer: there is no such key; did you mean layers?"),
        ("Layers = 3", "did you mean layers?"),
        ("'zzz' = 3", ":1: zzz: there is no such key; there are: layers, height, rest, candles,"),
        ("[shape]\nlayers = 3", ":1: shape: there are no tables: put every key at the top level"),
        ("[cake]\ntaste = 'sour'", ":1: cake: there are no tables"),
        ("[heights]\nheight = 1", ":1: heights: there are no tables"),
        ("layers 3", "cake.toml:1: layers: no = follows the key; write layers = VALUE"),
        ("layers = " + "[" * 5000, "cake.toml: too many brackets within each other"),
    ],
)
def test_what_is_wrong_names_file_line_key_and_what_is_accepted(text: str, why: str) -> None:
    with pytest.raises(SettingError) as caught:
        read(text)
    assert why in str(caught.value)
    assert str(caught.value).startswith("cake.toml")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0", "'0' is not a whole number from 1 to 9"),
        ("10", "'10' is not a whole number from 1 to 9"),
        ("05", "'05' is not a whole number from 1 to 9, without zeros before it"),
        (f"{'0' * 20}5", "is not a whole number from 1 to 9, without zeros before it"),
        ("+5", r"'\+5' is not a whole number from 1 to 9"),
        ("1_0", "'1_0' is not"),
        (" 5", "' 5' is not"),
        ("5\n", r"'5\\n' is not"),
        ("5.0", "'5.0' is not"),
        ("0x5", "'0x5' is not"),
        ("\u0665", "is not a whole number"),  # an Arabic-Indic five
        ("", "'' is not"),
        ("9" * 9000, "'9999.*[.][.][.]9999.*' is not"),
    ],
)
def test_a_whole_number_is_decimal_digits_and_nothing_else(text: str, why: str) -> None:
    with pytest.raises(SettingError, match=why) as caught:
        CAKE[0].from_flag(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["0", "0.0", "0.001", "90", "0.5", "10000000", "1.50"])
def test_a_duration_is_digits_and_a_fraction(text: str) -> None:
    assert CAKE[1].from_flag(text) == float(text)


@pytest.mark.parametrize(
    "text",
    [
        *["1_0", "\u096a", "1e3", "1e-7", "0.0001", "0." + "0" * 5000 + "1", "-0", "+1"],
        *[".5", "5.", " 5", "5\n", "nan", "inf", "Infinity", "0x10", "007", "10000000.1"],
        *["9" * 9000, "1,5", ""],
    ],
)
def test_a_duration_is_nothing_else(text: str) -> None:
    with pytest.raises(SettingError, match=r"not a number of seconds, 0 or from 0") as caught:
        CAKE[1].from_flag(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "unit", "plain"),
    [
        ("10m", "seconds", "600"),
        ("500ms", "seconds", "0.5"),
        ("1.5 H", "seconds", "5400"),
        ("1d", "seconds", "86400"),
        ("64k", "bytes", "65536"),
        ("1 MiB", "bytes", "1048576"),
        ("2GB", "bytes", "2147483648"),
        ("10m", "", ""),
        ("soon", "seconds", ""),
        ("10", "seconds", ""),
        ("1 month", "seconds", ""),
        ("9" * 99 + "m", "seconds", ""),
    ],
)
def test_a_quantity_in_another_unit_is_answered_by_what_to_write(
    text: str, unit: str, plain: str
) -> None:
    assert in_plain_numbers(text, unit) == plain


def test_no_quantity_out_of_range_is_proposed() -> None:
    with pytest.raises(SettingError, match=r"as in 90 or 0\.5$"):
        CAKE[1].from_flag("1000d")


def test_a_whole_sentence_of_a_parser_is_left_as_it_is() -> None:
    def refuse(text: str) -> str:
        raise SettingError(f"no {text} today")

    @dataclass(frozen=True)
    class Shop:
        ware: str = setting("bread", Text("What.", refuse))

    with pytest.raises(SettingError, match=r"^no milk today$"):
        describe(Shop)[0].from_flag("milk")


WRITABLE = st.text(st.characters(codec="utf-8"))

CAKES = st.builds(
    Cake,
    layers=st.integers(1, 9),
    height=st.just(0.0) | st.floats(0.001, 10**7),
    candles=st.lists(st.integers(0, 99)).map(tuple),
    taste=st.sampled_from(Taste),
    writing=st.none() | st.binary() | WRITABLE.map(str.encode),
    guests=st.lists(WRITABLE).map(tuple),
    icing=st.booleans(),
)


@given(CAKES)
def test_what_is_written_is_read_again(cake: Cake) -> None:
    written = as_file(CAKE, cake)
    tomllib.loads(written)
    assert Cake(**read(written)) == cake


@given(CAKES)
def test_a_flag_and_a_file_mean_the_same(cake: Cake) -> None:
    for one in CAKE:
        value = getattr(cake, one.name)
        if one.text.repeats or one.native is bool or value is None:
            continue
        native = tomllib.loads(f"it = {one.in_file(value)}")["it"]
        assert one.from_flag(str(native)) == value


@given(st.text())
def test_no_file_can_do_worse_than_be_refused_in_a_line(text: str) -> None:
    with contextlib.suppress(SettingError):
        read(text)


def test_a_value_that_no_file_can_hold_is_refused() -> None:
    with pytest.raises(SettingError, match=r"--guests: .* is not UTF-8"):
        as_file(CAKE, Cake(guests=("\udc80",)))


def test_what_is_unset_is_said_to_be() -> None:
    written = as_file(CAKE, Cake())
    assert "# writing is unset: nothing" in written
    assert "# candles is unset: none" in written
    assert "[]" not in written
    assert 'guests = ["Ada"]' in as_file(CAKE, Cake(guests=("Ada",)))
