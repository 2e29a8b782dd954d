"""Copies of keys, for a process that may not read them: the kernel refuses it here, too."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from echod.tls import Copies, Files, FilesError, ServerContext
from tests.support.certificates import Authority
from tests.support.tls_peer import reread

NOBODY = 65534


@contextlib.contextmanager
def forbidden(*paths: Path) -> Iterator[None]:
    """Let this process read these files no more."""
    for path in paths:
        path.chmod(0)
    as_root = os.geteuid() == 0
    try:
        if as_root:
            os.seteuid(NOBODY)
        yield
    finally:
        if as_root:
            os.seteuid(0)
        for path in paths:
            path.chmod(0o600)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder where others may look: each pytest that starts forbids that in its own."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def pair(folder: Path) -> tuple[Path, Path]:
    """The files of a certificate and of its key."""
    authority = Authority()
    certificate, key = folder / "certificate", folder / "key"
    certificate.write_bytes(authority.certificate)
    key.write_bytes(authority.key)
    return certificate, key


def handed_on(copies: Copies) -> Copies:
    """Return the copies that another process gets."""
    return Copies(**json.loads(json.dumps({"texts": copies.texts, "folders": copies.folders})))


def test_a_key_that_must_not_be_read_any_more_is_that_of_the_copies(
    pair: tuple[Path, Path],
) -> None:
    certificate, key = pair
    files, copies = Files(str(certificate), str(key)), Copies()
    first = copies.load(files)
    with forbidden(key):
        later = handed_on(copies).load(files)
        with pytest.raises(FilesError, match=f"cannot read {key}: Permission denied"):
            Copies().load(files)
    assert later.served == first.served


def test_a_renewed_certificate_is_not_mixed_with_the_key_of_the_copies(
    pair: tuple[Path, Path],
) -> None:
    certificate, key = pair
    files, copies = Files(str(certificate), str(key)), Copies()
    first = copies.load(files)
    renewed = Authority()
    certificate.write_bytes(renewed.certificate)
    key.write_bytes(renewed.key)
    with forbidden(key):
        later = handed_on(copies).load(files)
    assert later.served == first.served
    assert handed_on(copies).load(files).served != first.served


def test_a_folder_that_must_not_be_listed_is_that_of_the_copies(
    pair: tuple[Path, Path], folder: Path
) -> None:
    inner = folder / "inner"
    inner.mkdir()
    shutil.copy(pair[0], inner / "one.pem")
    shutil.copy(pair[1], inner / "one.key")
    (inner / "two.pem").write_bytes(Authority().issue("two", hosts=["two.example"]))
    files, copies = Files(str(inner)), Copies()
    first = copies.load(files)
    with forbidden(inner):
        later = handed_on(copies).load(files)
    assert later.served == first.served
    assert later.by_host.keys() == first.by_host.keys()
    folder.chmod(0o700)


def test_a_file_that_the_copies_lack_is_named(pair: tuple[Path, Path]) -> None:
    certificate, key = pair
    copies = Copies({"other": ""})
    with (
        forbidden(key),
        pytest.raises(FilesError, match="it was not there when the daemon started"),
    ):
        copies.load(Files(str(certificate), str(key)))


def test_files_that_are_damaged_are_not_replaced_by_the_copies(pair: tuple[Path, Path]) -> None:
    certificate, key = pair
    files, copies = Files(str(certificate), str(key)), Copies()
    copies.load(files)
    key.write_text("no key")
    with pytest.raises(FilesError, match="holds no private key"):
        handed_on(copies).load(files)


def test_to_read_them_again_takes_no_copies(pair: tuple[Path, Path]) -> None:
    """As without workers, a reload says that the key cannot be read, and changes nothing."""
    certificate, key = pair
    files, copies = Files(str(certificate), str(key)), Copies()
    copies.load(files)
    with forbidden(key):
        context = ServerContext(files, handed_on(copies).load)
        with pytest.raises(FilesError, match="Permission denied"):
            reread(context)
    reread(context)()
