"""Connections: the protocols, the factory that makes them, and what it keeps for all of them."""
