"""A line protocol with STARTTLS, as of POP3: no name is taken before the connection is encrypted.

Run: twistd -n echod --listen starttls:8888:certificate=cert.pem:key=key.pem \
        --handler starttls_lines:Mailbox --framing line
"""

from echod import Client, Close, Handler


class Mailbox(Handler):
    def opened(self, client: Client) -> bytes:
        self.client = client
        return b"+OK ready"

    def received(self, message: bytes) -> bytes | Close:
        encrypted = self.client.tls is not None
        match message.split():
            case [b"CAPA"]:
                return b"+OK USER QUIT" if encrypted else b"+OK STLS QUIT"
            case [b"STLS"] if not encrypted:
                self.client.start_tls()
                return b"+OK begin TLS"
            case [b"USER", name] if encrypted:
                return b"+OK welcome, " + name
            case [b"QUIT"]:
                return Close(b"+OK bye")
        return b"-ERR not now" if encrypted else b"-ERR STLS first"
