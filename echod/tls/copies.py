"""Copies of the files of TLS, for a process that may not read them itself.

A daemon reads its keys as root, and then becomes another user. A process that it executes later
cannot read them, so it gets the copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from echod.tls.files import Disk, Files, Loaded, Pair
from echod.tls.pem import FilesError


class Copies:
    """The content of files when they were loaded last.

    Attributes:
        texts: the content by path.
        folders: for each folder of certificates the files of each.
    """

    def __init__(
        self,
        texts: Mapping[str, str] | None = None,
        folders: Mapping[str, Sequence[tuple[str, str | None]]] | None = None,
    ) -> None:
        """Set up; see above, both may come from JSON."""
        self.texts = dict(texts or {})
        self.folders = dict(folders or {})

    def load(self, files: Files) -> Loaded:
        """Load files from the disk, and keep what they hold; or else all of them from the copies.

        Raises:
            FilesError: they cannot be used; or this process may not read one, and has no copies.
        """
        copied = _Copying()
        try:
            loaded = files.load(copied)
        except FilesError as error:
            if not self.texts or not isinstance(error.__cause__, PermissionError):
                raise
            return files.load(_Kept(self))
        self.texts |= copied.texts
        self.folders |= copied.folders
        return loaded


class _Copying(Disk):
    """The files as they are now, which copies what is read."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.folders: dict[str, list[tuple[str, str | None]]] = {}

    def read(self, path: str) -> str:
        self.texts[path] = super().read(path)
        return self.texts[path]

    def pairs_of(self, pair: Pair) -> Iterable[Pair]:
        found = list(super().pairs_of(pair))
        if found != [pair]:
            self.folders[pair.certificate] = [(one.certificate, one.key) for one in found]
        return found


class _Kept:
    """The copies alone."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies

    def read(self, path: str) -> str:
        if path not in self._copies.texts:
            raise FilesError(f"cannot read {path}: it was not there when the daemon started")
        return self._copies.texts[path]

    def pairs_of(self, pair: Pair) -> Iterable[Pair]:
        kept = self._copies.folders.get(pair.certificate)
        return [pair] if kept is None else [Pair(path, key) for path, key in kept]
