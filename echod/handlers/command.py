"""`exec`: the handler that is any program, one process for each connection."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from echod.handlers.contract import HandlerError
from echod.handlers.kinds import Kind
from echod.permissions import closed_folder, is_file, user_name
from echod.text import excerpt

# The variables of the daemon that a program gets, besides those about its client.
PASSED_ON = ("PATH", "LANG")


class Command:
    """Runs a program for each connection: its standard input and output are the client's.

    Attributes:
        words: the program's name, as given, and its arguments.
        path: the program's file; an absolute path, because twistd changes directories.
        environment: the part of its environment that is the same for every client.
    """

    __echod_kind__ = Kind.PROGRAM

    def __init__(self, *, command: str) -> None:
        """Look the program up.

        Args:
            command: the program and its arguments, split as a shell does; no shell runs.

        Raises:
            HandlerError: there is no such program, or it cannot be executed.
        """
        try:
            self.words = shlex.split(command)
        except ValueError as error:
            raise HandlerError(
                f"exec:command={_shown(command)}: {str(error).lower()}; quotes and backslashes "
                "are read as a shell reads them"
            ) from None
        if not self.words or not self.words[0]:
            raise HandlerError("exec:command= names no program, as in exec:command=/bin/cat")
        self.environment = _environment(os.environ)
        self.path = self._found()

    def check(self) -> None:
        """Look again whether the program can be executed, now by the user that will run it.

        Raises:
            HandlerError: it cannot.
        """
        _check_executable(self.path)

    def why_not_run(self, error: OSError) -> str:
        """Return in a line why the system did not run the program.

        Args:
            error: the system's, which does not say whether it means a script or its interpreter.
        """
        try:
            self.check()
        except HandlerError as found:
            return str(found)
        return f"exec: {_shown(self.path)}: {error.strerror}"

    def _found(self) -> str:
        name, folders = self.words[0], self.environment["PATH"]
        if "/" in name:
            path = str(Path(name).absolute())
            _check_executable(path)
            return path
        if (found := shutil.which(name, path=folders)) is None:
            for folder in folders.split(os.pathsep):
                if is_file(there := Path(folder, name)):
                    _check_executable(str(there))
            where = excerpt(folders, 200)
            raise HandlerError(f"exec: no program in PATH ({where}) is named {_shown(name)}")
        return str(Path(found).absolute())


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    kept = {name: own[name] for name in PASSED_ON if name in own}
    return {"PATH": os.defpath, **kept}


def _check_executable(path: str) -> None:
    """Check that the current user can run a file, and the interpreter of a script."""
    _check_file(path, "")
    interpreter = _interpreter_of(path)
    if interpreter:
        _check_file(interpreter, f" (the interpreter of {_shown(path)})")


def _check_file(path: str, role: str) -> None:
    shown, user = f"exec: {_shown(path)}{role}", _shown(user_name())
    try:
        is_file = stat.S_ISREG(Path(path).stat().st_mode)
    except PermissionError:
        closed = _shown(closed_folder(path) or str(Path(path).parent))
        raise HandlerError(
            f"{shown} cannot be run by the user {user}, who cannot enter {closed}: see its "
            "permissions, or move the program"
        ) from None
    except (OSError, ValueError) as error:  # a null byte is a ValueError
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise HandlerError(f"{shown}: {why}") from None
    if not is_file:
        raise HandlerError(f"{shown} is not a file")
    if not os.access(path, os.X_OK, effective_ids=True):
        raise HandlerError(f"{shown} is not executable by the user {user}: see its permissions")


def _interpreter_of(path: str) -> str:
    """Return the program that runs a script; "" for any other file, or one that cannot be read."""
    try:
        with Path(path).open("rb") as file:
            first = file.readline(256)
    except OSError:
        return ""
    words = first[2:].split(maxsplit=1) if first.startswith(b"#!") else []
    return os.fsdecode(words[0]) if words else ""


def _shown(text: str) -> str:
    return excerpt(text, 200)
