"""A fake PostgreSQL server: it lets every client in, and answers each query with one row.

https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from struct import pack, unpack

from echod import connection_handler

ASKS_FOR_TLS = 80877103
TEXT = 25  # the type of the only column
ROW = b"happy"


@connection_handler
def postgres(conn):
    file = conn.makefile("rb")

    def take(size):
        """Return bytes of the client."""
        data = file.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def take_body():
        """Return the body of a message, which its length goes ahead of."""
        return take(unpack("!I", take(4))[0] - 4)

    def message(kind, body):
        return kind + pack("!I", len(body) + 4) + body

    ready = message(b"Z", b"I")
    try:
        while unpack("!I", take_body()[:4])[0] == ASKS_FOR_TLS:
            conn.sendall(b"N")
        setting = message(b"S", b"client_encoding\0UTF8\0")
        conn.sendall(message(b"R", pack("!I", 0)) + setting + ready)
        while take(1) == b"Q":
            take_body()
            column = b"mood\0" + pack("!IhIhih", 0, 0, TEXT, -1, -1, 0)
            row = pack("!hI", 1, len(ROW)) + ROW
            conn.sendall(
                message(b"T", pack("!h", 1) + column)
                + message(b"D", row)
                + message(b"C", b"SELECT 1\0")
                + ready
            )
    except EOFError:
        pass
