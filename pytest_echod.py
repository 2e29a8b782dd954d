"""pytest's plugin of echod: the fixture `echod_server`.

This module imports nothing of echod or Twisted, so that test runs that do not use the fixture pay
nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from echod.testing import Server


@pytest.fixture
def echod_server() -> Iterator[Callable[..., Server]]:
    """Return a function that serves a handler until the end of the test.

    It takes the arguments of `echod.testing.serving`, and returns the running server::

        def test_it_shouts(echod_server):
            server = echod_server(shout, framing="line")
            assert server.connect().ask(b"hello") == b"HELLO"
    """
    from echod.testing import serving

    with ExitStack() as servers:

        def serve(handler: object = "echo", **settings: object) -> Server:
            return servers.enter_context(serving(handler, **settings))

        yield serve
