from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.control.token import TokenError, check, is_right, read_token
from tests.support.log import Log

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize("text", [TOKEN, f" {TOKEN}\n", "A-._~+/zA-._~+/z=="])
def test_a_token_is_taken_without_the_space_around_it(text: str) -> None:
    assert check(text) == text.strip().encode()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has 0 characters, and needs at least 16"),
        ("short", "has 5 characters"),
        ("x" * 1025, "1024 at most"),
        ("0123456789 abcdef", "consists of letters"),
        ("0123456789abcdeé", "consists of letters"),
    ],
)
def test_a_token_that_cannot_be_used_says_why(text: str, why: str) -> None:
    with pytest.raises(TokenError, match=why):
        check(text)


def test_a_file_has_a_token(tmp_path: Path, log: Log) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o640)
    assert read_token(str(file)) == TOKEN.encode()
    assert not log.events
    file.chmod(0o644)
    read_token(str(file))
    assert "Every user can read the token" in log.text


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    for content, why in ((b"short", "5 characters"), (b"\xff" * 20, "no text")):
        file = tmp_path / "token"
        file.write_bytes(content)
        with pytest.raises(TokenError, match=f"^{file}: .*{why}"):
            read_token(str(file))
    with pytest.raises(TokenError, match="No such file"):
        read_token(str(tmp_path / "none"))
    with pytest.raises(TokenError, match="directory"):
        read_token(str(tmp_path))
    with pytest.raises(TokenError, match="no text"):
        read_token("a\0b")


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}", f"bearer  {TOKEN}"])
def test_the_right_header_is_right(header: str) -> None:
    assert is_right(header, TOKEN.encode())
    assert not is_right(header, None)


@given(st.none() | st.text(st.characters(max_codepoint=255)) | st.just("Bearer \0"))
def test_every_other_header_is_wrong(header: str | None) -> None:
    """Fault 145: No header opens a control that has no token, and no wrong one any control."""
    assert not is_right(header, TOKEN.encode())
    assert not is_right(header, None)
