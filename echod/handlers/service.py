"""Services: handlers that open something before the first client, and close it after the last one.

A service is a generator, or an async generator, that yields its handler once::

    @echod.service
    async def lookups(service, *, path: str, size: int = 4):
        async with await open_pool(path, size) as pool:
            yield partial(answer, pool)

The part before `yield` runs before the first client is served, and the part after it when the last
one has gone.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

from echod.errors import UserError
from echod.handlers.contract import ConcurrencyModel, HandlerError
from echod.handlers.kinds import IN_THE_LOOP, Defaults, Kind

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from echod.handlers.client import Client

Check = TypeVar("Check", bound=Callable[..., None])


class SettingError(UserError):
    """An argument of a service has a value that it cannot use.

    Attributes:
        argument: its name.
        why: what it has to be, as in "must be at least 1".
    """

    def __init__(self, argument: str, why: str) -> None:
        super().__init__(f"{argument} {why}")
        self.argument = argument
        self.why = why


class Service:
    """A service in operation, as its own function sees it.

    Attributes:
        name: the name by which `--handler` has asked for it.
    """

    def __init__(self, name: str) -> None:
        """Set up, without clients."""
        self.name = name
        self._metrics: CollectorRegistry | None = None
        self._sources: list[Callable[[], Iterable[Client]]] = []

    @property
    def clients(self) -> tuple[Client, ...]:
        """The clients of all open connections."""
        return tuple(client for clients in self._sources for client in clients())

    def add_clients(self, clients: Callable[[], Iterable[Client]]) -> None:
        """Add a source of clients, such as a listener."""
        self._sources.append(clients)

    @property
    def metrics(self) -> CollectorRegistry:
        """A registry for metrics of its own: `--status` shows them in `/metrics`."""
        if self._metrics is None:
            from prometheus_client import CollectorRegistry  # slow to import, and rarely needed

            self._metrics = CollectorRegistry()
        return self._metrics

    @property
    def own_metrics(self) -> CollectorRegistry | None:
        """The same, if it is in use."""
        return self._metrics


class ServiceDefinition:
    """A generator function that `@service` has made a service.

    Attributes:
        function: the generator function.
        is_async: whether it is an `async def`.
    """

    __echod_kind__ = Kind.SERVICE

    def __init__(self, function: Callable[..., Any], defaults: Defaults) -> None:
        """Set up.

        Raises:
            HandlerError: `function` is no generator function.
        """
        self.is_async = inspect.isasyncgenfunction(function)
        if not self.is_async and not inspect.isgeneratorfunction(function):
            name = getattr(function, "__name__", repr(function))
            raise HandlerError(f"the service {name} has no `yield`: let it yield its handler once")
        self.function = function
        self._checks: list[Callable[..., None]] = []
        functools.update_wrapper(self, function)
        self.__echod_defaults__ = defaults

    @property
    def models(self) -> tuple[ConcurrencyModel, ...]:
        """The concurrency models that it can run in."""
        if self.is_async:
            return IN_THE_LOOP
        return tuple(ConcurrencyModel)

    def check(self, function: Check) -> Check:
        """Let `function` check the arguments before anything is opened: a decorator.

        It gets the arguments by name, with the defaults of those that are not given. It raises
        `SettingError` if the service cannot run with them.
        """
        self._checks.append(function)
        return function

    def run_checks(self, arguments: Mapping[str, object]) -> None:
        """Check the arguments.

        Raises:
            SettingError: one of them has a value that cannot be used.
        """
        if self._checks:
            bound = inspect.signature(self.function).bind(None, **arguments)
            bound.apply_defaults()
            _, *names = bound.arguments
            values = {name: bound.arguments[name] for name in names}
            for check in self._checks:
                check(**values)

    def __call__(self, service: Service, **arguments: object) -> Any:
        """Return the generator."""
        return self.function(service, **arguments)


@overload
def service(function: Callable[..., Any], /) -> ServiceDefinition: ...


@overload
def service(
    *,
    framing: str | None = None,
    concurrency: str | None = None,
    banner: bytes | None = None,
) -> Callable[[Callable[..., Any]], ServiceDefinition]: ...


def service(
    function: Callable[..., Any] | None = None,
    /,
    *,
    framing: str | None = None,
    concurrency: str | None = None,
    banner: bytes | None = None,
) -> ServiceDefinition | Callable[[Callable[..., Any]], ServiceDefinition]:
    """Make a service of a generator function that yields a handler once.

    Args:
        function: the generator function; its first parameter takes a `Service`.
        framing: the text of `--framing` that it asks for.
        concurrency: the text of `--concurrency` that it asks for.
        banner: the greeting that it asks for; b"" for none.
    """
    defaults = Defaults(framing, concurrency, banner)
    if function is not None:
        return ServiceDefinition(function, defaults)
    return lambda function: ServiceDefinition(function, defaults)
