"""Handlers of users, checked by mypy as strictly as it can, with echod's types as installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

GOOD = {
    "streams": """
        import asyncio
        from typing import assert_type

        from echod import Client


        async def handle(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, size: int = 5
        ) -> None:
            while data := await reader.read(size):
                writer.write(data)
                await writer.drain()
            client: Client = writer.get_extra_info("client")
            assert_type(client.peer, str)
    """,
    "asyncio_protocol": """
        import asyncio


        class Echo(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.Transport)
                self.transport = transport

            def data_received(self, data: bytes) -> None:
                self.transport.write(data)
    """,
    "maker": """
        import asyncio
        from collections.abc import Callable
        from typing import assert_type

        from echod import EchoFactory, protocol_factory


        class Echo(asyncio.Protocol):
            def __init__(self, size: int) -> None:
                self.size = size


        @protocol_factory
        def make(*, size: int = 5) -> Echo:
            return Echo(size)


        assert_type(make(size=3), Echo)
        by_lambda = protocol_factory(lambda: Echo(3))
        EchoFactory(handler=make)
        EchoFactory(handler=Echo)
    """,
    "twisted_protocols": """
        from twisted.internet.protocol import Factory, Protocol

        from echod import EchoFactory


        class Greeter(Protocol):
            def connectionMade(self) -> None:
                assert self.transport is not None
                self.transport.write(b"hello")


        class Greeters(Factory):
            protocol = Greeter


        def make() -> Greeters:
            return Greeters()


        EchoFactory(handler=Greeter)
        EchoFactory(handler=Greeters)
        EchoFactory(handler=Greeters())
        EchoFactory(handler=make)
    """,
}

WRONG = """
    from echod import protocol_factory

    protocol_factory(7)
"""


@pytest.mark.timeout(300)
def test_a_handler_of_each_kind_passes_the_strictest_check_and_a_wrong_one_does_not(
    tmp_path: Path,
) -> None:
    for name, source in {**GOOD, "wrong": WRONG}.items():
        (tmp_path / f"{name}.py").write_text(dedent(source))
    # Twisted's interfaces are zope's, which mypy knows by this plugin.
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = true\nplugins = mypy_zope:plugin\n")
    command = [sys.executable, "-m", "mypy", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    (found,) = done.stdout.splitlines()[:-1]
    assert found.startswith(
        'wrong.py:4: error: Value of type variable "F" of "protocol_factory" cannot be "int"'
    ), done.stdout + done.stderr
