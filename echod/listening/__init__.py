"""Listeners: what an endpoint string asks for, and the sockets behind it."""
