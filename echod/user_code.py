"""Which code is the user's own: the line that an error is about, and the files."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from pathlib import Path

from echod.text import escape, told

_OURS = f"{Path(__file__).parent}/"
# The handlers that come with echod are treated like any other handler.
_BUILTIN = f"{_OURS}handlers/builtin.py"
_REFUSALS = (f"{_OURS}handlers/contract.py", f"{_OURS}errors.py")
_STDLIB = Path(os.__file__).parent
_LIBRARY = (str(_STDLIB), str(Path(sys.exec_prefix, sys.platlibdir, _STDLIB.name)))
# Where packages are installed; also within the folders of Python's library.
_INSTALLED = ("/site-packages/", "/dist-packages/")


def told_with_place(error: BaseException) -> str:
    """Return an error of a user's code in one line, with the line that it comes from."""
    return f"{told(error)}{place_of(error)}"


def place_of(error: BaseException) -> str:
    """Return the line of the user's code that raised, as ` (file, line 7)`.

    That is the innermost line outside of echod, of Python's library and of what is installed; or,
    if there is none, because the user's code is installed too, the innermost one outside of the
    first two.

    Returns:
        "" if no such line raised, or the text of the error names it.
    """
    if isinstance(error, SyntaxError):
        return ""
    walked = traceback.walk_tb(error.__traceback__)
    steps = [(frame.f_code.co_filename, line) for frame, line in walked]
    outside = [step for step in steps if not _is_known(step[0])]
    own = [step for step in outside if is_users(step[0])]
    return _shown(*(own or outside)[-1]) if outside else ""


def definition_of(target: object) -> str:
    """Return the line that defines a user's function or class, in the same form; "" if it is not
    known.
    """
    try:
        plain = inspect.unwrap(target) if callable(target) else type(target)
        file = inspect.getsourcefile(plain)
        _, line = inspect.findsource(plain)
    except Exception:  # it has no source, or raises when it is inspected
        return ""
    return "" if file is None or _is_known(file) else _shown(file, line + 1)


def is_ours(file: str) -> bool:
    """Return whether a file is echod's own."""
    return file.startswith(_OURS) and file != _BUILTIN


def refuses(file: str) -> bool:
    """Return whether a file is where echod refuses what the user's code has returned."""
    return file in _REFUSALS


def is_users(file: str) -> bool:
    """Return whether a file is the user's own: not echod's, nor Python's, nor installed."""
    return not _is_known(file) and not any(part in file for part in _INSTALLED)


def _is_known(file: str) -> bool:
    if is_ours(file) or file.startswith("<"):  # such as `<frozen importlib>`
        return True
    return file.startswith(_LIBRARY) and not any(part in file for part in _INSTALLED)


def _shown(file: str, line: int) -> str:
    return f" ({escape(file)}, line {line})"
