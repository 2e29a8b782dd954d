"""Twisted's `Protocol` under `listenTCP` on echod's own reactor: what echod adds to it shows."""

from __future__ import annotations

from bench.peers.twisted_echo import Echo, serve
from echod.reactor import install

if __name__ == "__main__":
    serve(Echo, install)
