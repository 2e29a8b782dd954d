"""Servers of the standard library that do not listen: echod listens, and they serve a connection.

twistd -n echod --concurrency thread-per-connection --handler servers:web
twistd -n echod --concurrency thread-per-connection --handler servers:rpc
"""

import socket
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, demo_app
from xmlrpc.server import SimpleXMLRPCServer

pages = WSGIServer(("localhost", 8888), WSGIRequestHandler, bind_and_activate=False)
pages.server_close()  # it has opened a socket, which it does not need
pages.server_name, pages.server_port = pages.server_address  # as binding would have set them
pages.setup_environ()
pages.set_app(demo_app)


def web(conn: socket.socket) -> None:
    """Serves the WSGI application of wsgiref's own demonstration."""
    pages.finish_request(conn, conn.getpeername())


procedures = SimpleXMLRPCServer(("localhost", 8888), logRequests=False, bind_and_activate=False)
procedures.server_close()
procedures.register_function(pow)


def rpc(conn: socket.socket) -> None:
    """Answers XML-RPC: `pow`."""
    procedures.finish_request(conn, conn.getpeername())
