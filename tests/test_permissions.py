from __future__ import annotations

import grp
import os
import pwd
import stat
from types import SimpleNamespace
from typing import Any

import pytest

from echod.permissions import others_can_write

ROOT, ANNA, STAFF = 0, 1000, 50
GROUPS = {ROOT: ("root", []), ANNA: ("anna", []), STAFF: ("staff", ["anna", "bert"])}
USERS = {ROOT: "root", ANNA: "anna"}


def found(mode: int, uid: int, gid: int) -> os.stat_result:
    return os.stat_result((stat.S_IFDIR | mode, 0, 0, 0, uid, gid, 0, 0, 0, 0))


@pytest.fixture(autouse=True)
def entries(monkeypatch: pytest.MonkeyPatch) -> None:
    def group(gid: int) -> Any:
        name, members = GROUPS[gid]
        return SimpleNamespace(gr_name=name, gr_mem=members)

    monkeypatch.setattr(grp, "getgrgid", group)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name=USERS[uid]))


@pytest.mark.parametrize(
    ("mode", "owner", "group", "uid", "others"),
    [
        (0o755, ANNA, STAFF, ANNA, False),
        (0o755, ROOT, ROOT, ANNA, False),
        (0o755, ANNA, ANNA, ROOT, True),
        (0o757, ANNA, ANNA, ANNA, True),
        (0o775, ANNA, STAFF, ANNA, True),
        (0o775, ANNA, ANNA, ANNA, False),  # a group of her own
        (0o775, ROOT, ROOT, ROOT, False),
        (0o775, ROOT, STAFF, ROOT, True),
        (0o775, ANNA, 4711, ANNA, True),  # its members are unknown
    ],
)
def test_whoever_else_can_write_is_found(
    mode: int, owner: int, group: int, uid: int, others: bool
) -> None:
    assert others_can_write(found(mode, owner, group), uid) is others
