"""Compare the lines that a page shows with those that a program has printed.

`...` on a line of its own stands for any lines. A few pieces of a line differ from one run to the
next: `VARYING` lists them, and how far they may differ. Everything else is the same, or the page
is wrong.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence

# The ports of clients that a page shows, each with the one that it has in this run.
Ports = Mapping[str, str]

ANY_LINES = "..."


def _near(seconds: float) -> Callable[[str, str], bool]:
    return lambda shown, printed: abs(float(shown) - float(printed)) <= seconds


def _within(share: float) -> Callable[[str, str], bool]:
    return lambda shown, printed: abs(float(printed) / float(shown) - 1) <= share


def _any(shown: str, printed: str) -> bool:
    return True


# A piece of a line by its name, with its pattern and a comparison of both texts.
VARYING: dict[str, tuple[str, Callable[[str, str], bool]]] = {
    # How long a client was connected; and how long a call has lasted when it was looked at.
    "duration": (
        (
            r"(?<=\()\d+\.\d{3}(?= s, messages)|(?<=client closed\t)\d+(\.\d+)?"
            r"|(?<=  tcp:8888  )\d+\.\d{3}(?=  )"  # a row of `echod ctl connections`
        ),
        _any,
    ),
    "age": (r"(?<=has lasted )\d+\.\d(?= s)", _any),
    # A second is told from none and from two; a busy machine is forgiven the rest.
    "seconds": (r"\b\d+\.\d+(?= s\b)", _near(0.5)),
    # Memory depends on the version of Python.
    "memory": (r"(?<=VmRSS:\t)\s*\d+(?= kB)", _within(0.4)),
    "process": (r"(?<=PID )\d+", _any),
    # Owner, group, size and date, as `ls -l` has them.
    "file": (r"(?<=[-rwx]{9} )\d+ \w+ +\w+ +\d+ \w{3} [ \d]\d +[\d:]{4,5}", _any),
    # The code of echod and of others moves; that of the examples is on the page.
    "code": (r"(?<=packages/)\S+\", line \d+", _any),
}
_PORT = r"(?<=127\.0\.0\.1:)[1-9]\d{4}\b"
_PIECES = re.compile(
    "|".join(
        [
            *(f"(?P<{name}>{pattern})" for name, (pattern, _) in VARYING.items()),
            f"(?P<port>{_PORT})",
        ]
    )
)
_TIME = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]+[+-]\d\d:\d\d ")


def agree(shown: str, printed: str, ports: Ports) -> dict[str, str] | None:
    """Compare two lines.

    Args:
        shown: on the page.
        printed: by the program.
        ports: the clients' ports that are known already.

    Returns:
        the ports that are known now, or None where the lines differ.
    """
    # Pages leave out the time that opens each line of the log.
    shown, printed = _TIME.sub("", shown), _TIME.sub("", printed)
    if _skeleton(shown) != _skeleton(printed):
        return None
    known = dict(ports)
    for ours, theirs in zip(_PIECES.finditer(shown), _PIECES.finditer(printed), strict=True):
        name = ours.lastgroup
        assert name is not None
        if name == "port":
            if known.setdefault(ours[0], theirs[0]) != theirs[0]:
                return None
        elif not VARYING[name][1](ours[0], theirs[0]):
            return None
    return known


def _skeleton(line: str) -> str:
    return _PIECES.sub(lambda piece: f"<{piece.lastgroup}>", line.rstrip())


def match(
    shown: Sequence[str], printed: Sequence[str], ports: Ports, *, gaps: bool = False
) -> dict[str, str] | None:
    """Compare all lines; with `gaps`, others may stand between those that are shown.

    Returns:
        the ports that are known now, or None where the lines differ.
    """
    if not shown:
        return dict(ports) if gaps or not printed else None
    skips = gaps or shown[0] == ANY_LINES
    if shown[0] == ANY_LINES:
        if len(shown) == 1:
            return dict(ports)
        shown = shown[1:]
    for index, line in enumerate(printed):
        known = agree(shown[0], line, ports)
        if known is not None:
            rest = match(shown[1:], printed[index + 1 :], known, gaps=gaps)
            if rest is not None:
                return rest
        if not skips:
            break
    return None


def match_unordered(
    shown: Sequence[str], printed: Sequence[str], ports: Ports, *, gaps: bool = False
) -> dict[str, str] | None:
    """Compare the lines, in any order; with `gaps`, there may be others."""
    left = list(printed)
    known: dict[str, str] | None = dict(ports)
    for line in shown:
        for other in left:
            now = agree(line, other, known or {})
            if now is not None:
                known = now
                left.remove(other)
                break
        else:
            return None
    return known if gaps or not left else None


def difference(shown: Sequence[str], printed: Sequence[str]) -> str:
    """Show where the lines differ: `-` is on the page, `+` was printed."""
    left = list(shown)

    def as_shown(line: str) -> str:
        # A line that agrees except for varying pieces is shown as on the page.
        for other in left:
            if agree(other, line, {}) is not None:
                left.remove(other)
                return other
        return line

    lines = difflib.ndiff(list(shown), [as_shown(line) for line in printed])
    return "\n".join(line for line in lines if not line.startswith("?"))
