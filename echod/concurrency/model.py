"""The interface of a concurrency model, which runs the code of handlers.

Guarantees of every model (they are in `echod.concurrency.models`):

* A model is used from the reactor thread only; handler code runs where the model says.
* `call` either returns the result, or raises, or returns a `Pending` and calls `done` later, once,
  in the reactor thread, never before `call` has returned.
* No call waits for a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import CancelledError, Deferred

from echod.concurrency.fairness import may_have_another
from echod.handlers.contract import ConcurrencyModel
from echod.limits import Level, Limits
from echod.reasons import Refusal

# Called in the reactor thread with the handler's result, or a Failure.
Done = Callable[[object], None]


class Busy(Exception):
    """A connection or a message is refused for now; the text may be sent to the client.

    Attributes:
        refusal: the limit that refuses it.
    """

    def __init__(self, text: str, refusal: Refusal) -> None:
        super().__init__(f"Server busy: {text}")
        self.refusal = refusal


class Abandoned(CancelledError):
    """echod has given up waiting, because the connection is lost or the service ends.

    If the handler itself cancels something, the error is Twisted's or asyncio's.
    """


class Dropped(Abandoned):
    """A message of a lost connection was not handled, because too many of these wait already."""


class Pending:
    """The return value of `call` if the result comes through `done`.

    Attributes:
        handle: the argument for `abandon`.
    """

    __slots__ = ("handle",)

    def __init__(self, handle: object) -> None:
        self.handle = handle


class Model(Protocol):
    """Where a handler runs."""

    @property
    def name(self) -> ConcurrencyModel:
        """Its name for `--concurrency`."""

    @property
    def greets(self) -> bool:
        """Whether clients get a greeting."""

    @property
    def max_messages(self) -> int | None:
        """How many messages of a connection are answered; None: all."""

    @property
    def levels(self) -> Sequence[Level]:
        """The model's limits, and how much of each is in use."""

    @property
    def lost_waiting(self) -> int:
        """How many calls for lost connections wait to run."""

    def enter(self, connection: object, start: Callable[[], None]) -> None:
        """Let a new connection start: call `start` now, or when its turn comes.

        Raises:
            Busy: it is refused.
        """

    def leave(self, connection: object) -> None:
        """Release the place of a connection that entered. Calling it again is harmless."""

    def overdue(self, connection: object, now: float) -> bool:
        """Whether a silent connection has kept its place too long.

        Args:
            connection: one that has started, and has sent nothing yet.
            now: the reactor's time, in seconds.
        """

    def put_off(self, connection: object, seconds: float) -> None:
        """Let a connection keep its place for so many seconds longer: a fault has held it."""

    def call(self, done: Done, function: Callable[..., object], *arguments: object) -> object:
        """Run handler code: see the module's guarantees.

        Raises:
            Busy: too much is waiting already.
        """

    def finish(self, done: Done, function: Callable[..., object], *arguments: object) -> object:
        """Do the same as `call` for a lost connection: this is never refused."""

    def abandon(self, handle: object) -> None:
        """Note that the connection is lost for which `call` has returned a `Pending`.

        `done` may be called at once, with a Failure.

        Args:
            handle: the `Pending`'s.
        """

    def has_begun(self, handle: object) -> bool:
        """Return whether the handler's code runs, or has run, and does not wait for a thread.

        Args:
            handle: the `Pending`'s.
        """

    def reconfigure(self, limits: Limits) -> None:
        """Use other limits from now on."""

    def under_way(self) -> list[UnderWay]:
        """Return the calls that have begun and are not over."""

    def drain(self) -> Deferred[None]:
        """Return a Deferred that fires once no handler code runs or waits to run, or at `stop`."""

    def end(self) -> Deferred[None]:
        """Run no more handler code; the Deferred fires when the threads have let go of what
        belongs to them.
        """

    def drop(self) -> None:
        """Give up the messages: cancel those that wait in the event loop, and begin no more.

        Threads call `closed`, and close generators, and coroutines run their `finally`; the
        Deferred of `drain` waits for those, and for the code that runs, until `stop`.
        """

    def stop(self) -> None:
        """Stop running handler code, and wait for none."""


class UnderWay(NamedTuple):
    """A call of handler code that has not returned, or has not given its result yet.

    Attributes:
        key: distinguishes it from all others.
        owner: the connection it is for; another object if it is for none.
        age: how long it is known to have lasted, in seconds.
        thread: the `threading.get_ident` of its thread; None if it only waits.
        coroutine: the waiting coroutine, if there is one.
        gone: whether the connection is lost, though it still counts.
    """

    key: object
    owner: object
    age: float = 0.0
    thread: int | None = None
    coroutine: Coroutine[object, Any, object] | None = None
    gone: bool = False


def owner_of(done: object) -> object:
    """Return the object whose method takes a result."""
    while isinstance(done, partial):
        done = done.func
    return getattr(done, "__self__", None)


def address_of(connection: object) -> str:
    """Return the network that a connection belongs to; "" if it has no address."""
    address: str = getattr(connection, "network", "")
    return address


def check_share(held: int, free: int, refusal: Refusal) -> None:
    """Raise `Busy` if an address already has its share."""
    if not may_have_another(held, free):
        raise Busy("too many connections from your address, try again later", refusal)
