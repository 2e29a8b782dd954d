"""Objects of which each thread has one of its own, such as a connection to a database."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from twisted.logger import Logger

log = Logger("echod.handlers")

T = TypeVar("T")


class _Local(threading.local):
    """The objects of this thread, in the order in which they were made."""

    def __init__(self) -> None:
        self.objects: dict[PerThread[object], object] = {}


_local = _Local()


class PerThread(Generic[T]):
    """One object for each thread in which a handler runs.

    It is made in that thread when it is first needed there, and closed in that thread: when the
    pool ends, after the drain, within the drain's deadline. In the event loop there is one.
    """

    def __init__(
        self, connect: Callable[[], T], close: Callable[[T], object] | None = None
    ) -> None:
        """Set up, without an object.

        Args:
            connect: makes an object.
            close: closes one; None: nothing has to be closed.
        """
        self._connect = connect
        self._close = close

    def get(self) -> T:
        """Return the object of this thread."""
        objects = _local.objects
        key = cast("PerThread[object]", self)
        if key not in objects:
            objects[key] = self._connect()
        return cast("T", objects[key])

    def close(self, one: T) -> None:
        """Close `one`; an error is logged."""
        if self._close is not None:
            try:
                self._close(one)
            except BaseException:
                log.failure("Closing an object of a thread failed")


def close_objects_of_this_thread() -> None:
    """Close the objects of this thread, the last one first."""
    objects = _local.objects
    while objects:
        maker, one = objects.popitem()
        maker.close(one)
