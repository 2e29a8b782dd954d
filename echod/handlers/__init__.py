"""Handlers: the contract, the built-in ones, and their look-up by name."""
