from __future__ import annotations

import http.server
import socket
import socketserver
from typing import Any

import pytest
import pytest_twisted

from echod.handlers.standin import StandInServer
from tests.support.log import Log
from tests.support.serving import eventually, serving


class Asking(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server: Any = self.server
        server.count = getattr(server, "count", 0) + 1
        address = (server.server_name, server.server_port, server.count)
        self.wfile.write(repr(address).encode())


@pytest_twisted.ensureDeferred
async def test_all_connections_of_a_listener_find_one_server() -> None:
    async with serving("thread-per-connection", handler=Asking, banner=b"") as server:
        for count in (1, 2):
            client = await server.connect()
            answer = repr(("127.0.0.1", server.number, count)).encode()
            assert await client.receive_all() == answer


class Ending(socketserver.StreamRequestHandler):
    """Ends the connection itself, as published SOCKS servers do."""

    def handle(self) -> None:
        self.wfile.write(b"bye")
        getattr(self.server, self.rfile.readline().decode().strip())(self.request)


@pytest.mark.parametrize("way", ["close_request", "shutdown_request"])
@pytest_twisted.ensureDeferred
async def test_a_handler_may_end_its_connection_through_its_server(way: str) -> None:
    async with serving("thread-per-connection", handler=Ending, banner=b"") as server:
        client = await server.connect()
        client.send(way.encode() + b"\n")
        assert await client.receive_all() == b"bye"
        await eventually(lambda: not server.factory.connections)
        assert server.factory.metrics.ended == {"handler closed": 1}


class Needy(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert self.server.get_app()  # type: ignore[attr-defined]


@pytest_twisted.ensureDeferred
async def test_what_is_not_there_is_an_error_that_says_what_to_do(log: Log) -> None:
    async with serving("thread-per-connection", handler=Needy, banner=b"") as server:
        client = await server.connect()
        assert await client.receive_all() == b""
    [error] = log.take_errors()
    assert "self.server has no 'get_app' here" in error
    assert "for Needy: 'A server that does not listen' in docs/handlers.md" in error


@pytest.mark.parametrize(
    ("address", "family", "name", "port"),
    [
        (("127.0.0.1", 8888), socket.AF_INET, "127.0.0.1", 8888),
        (("::1", 8888, 0, 0), socket.AF_INET6, "::1", 8888),
        ("/run/echod.sock", socket.AF_UNIX, "/run/echod.sock", 0),
    ],
)
def test_the_server_is_where_its_first_client_connected_to(
    address: Any, family: socket.AddressFamily, name: str, port: int
) -> None:
    server = StandInServer(http.server.BaseHTTPRequestHandler)
    server.meet(address)
    server.meet(("192.0.2.1", 1))
    assert (server.server_address, server.address_family) == (address, family)
    assert (server.server_name, server.server_port) == (name, port)
    assert server.RequestHandlerClass is http.server.BaseHTTPRequestHandler


def test_what_the_standard_library_says_of_a_server_holds_here() -> None:
    stand_in, real = StandInServer(Asking), http.server.HTTPServer
    for name in ("socket_type", "request_queue_size", "allow_reuse_address", "timeout"):
        assert getattr(stand_in, name) == getattr(real, name)
