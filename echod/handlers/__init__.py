"""Handlers: the contract, the built-in ones, and how they are found by name."""
