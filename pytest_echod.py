"""pytest's plugin of echod: the fixture `echod_server`, a server that misbehaves on demand.

This module imports nothing of echod or Twisted, so that test runs that do not use the fixture pay
nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from echod.testing import Server


@pytest.fixture
def echod_server() -> Iterator[Callable[..., Server]]:
    """Return a function that serves a handler until the end of the test.

    It takes the arguments of `echod.testing.serving`, and returns the running server. `with` ends
    it earlier::

        def test_my_client_tries_again(echod_server):
            with echod_server("echo").fault("reset:after=10,first=2") as server:
                assert my_client(server.port).fetch() == b"..."
                reasons = [c.reason for c in server.connections]
                assert reasons == ["fault", "fault", "client closed"]
    """
    from echod.testing import serving

    with ExitStack() as servers:

        def serve(handler: object = "echo", **settings: Any) -> Server:
            return servers.enter_context(serving(handler, **settings))

        yield serve
