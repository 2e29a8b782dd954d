"""The interfaces within the reactor: each part imports these, and none imports the reactor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    import uvloop
    from twisted.internet.address import IPv4Address, IPv6Address
    from twisted.python.failure import Failure


class Stream(Protocol):
    """A connection, as the reactor sees it."""

    @property
    def reading(self) -> bool: ...

    @property
    def writing(self) -> bool: ...

    def connectionLost(self, reason: Failure) -> None: ...


class Port(Protocol):
    """A port, as the reactor and the connections that it has accepted see it."""

    sessionno: int

    @property
    def _realPortNumber(self) -> object: ...


class TCPAddressed(Port, Protocol):
    """A TCP port; its address is None if each connection has to ask for its own."""

    @property
    def address(self) -> IPv4Address | IPv6Address | None: ...


class LoopReactor(Protocol):
    """The reactor, as its parts see it."""

    @property
    def loop(self) -> uvloop.Loop: ...

    @property
    def context(self) -> Context: ...

    @property
    def read_buffer(self) -> memoryview: ...

    @property
    def streams(self) -> set[Stream]: ...

    @property
    def ports(self) -> set[Port]: ...

    def seconds(self) -> float: ...

    def callFromThread(
        self, f: Callable[..., object], *args: object, **kwargs: object
    ) -> None: ...

    def after_due_calls(self, function: Callable[[], None]) -> None: ...
