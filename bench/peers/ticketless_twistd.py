"""twistd, whose TLS sends no session tickets: as echod's workers, which share no keys for them."""

from __future__ import annotations

import ssl
from collections.abc import Sequence

from twisted.scripts.twistd import run

from echod.tls import files

with_tickets = files.new_server_context


def without_tickets(alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """Return a server's context, without a certificate and without tickets."""
    made = with_tickets(alpn)
    made.num_tickets = 0
    return made


if __name__ == "__main__":
    files.new_server_context = without_tickets
    run()
