"""Ask the machine for the programs and rights that a test needs; a test that lacks one says so."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
from collections.abc import Iterator
from typing import NoReturn

import pytest


def tool(name: str) -> str:
    """Return the path of a program that a test needs; a missing one fails in CI, else skips."""
    # An ordinary user's PATH lacks what is for root.
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if path is None:
        missing(f"{name} is not installed (.ci/run installs on Debian what the tests need)")
    return path


def missing(what: str) -> NoReturn:
    """End a test that lacks what it needs: a failure in CI, else a skip.

    Args:
        what: what is missing, and how to get it: what to install or to permit.
    """
    (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


def needs_root(why: str) -> None:
    """End a test where only root can do what it does: a failure in CI, else a skip."""
    if os.geteuid() != 0:
        missing(f"only root can {why}: run the tests as root, with sudo for instance")


@contextlib.contextmanager
def more_descriptors(more: int) -> Iterator[None]:
    """Let this process open this many descriptors besides its own; a hard limit ends the test."""
    count = len(os.listdir("/dev/fd")) + more  # noqa: PTH208 - names are enough
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count and hard < count:
        missing(f"{count} descriptors are needed, and {hard} allowed: raise `ulimit -Hn`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def not_here(why: str) -> NoReturn:
    """Skip a test, in CI as well, that has nothing to say about what runs here.

    Args:
        why: what here is other than what the test is about; nothing that could be installed.
    """
    pytest.skip(why)
