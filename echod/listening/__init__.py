"""Listeners: the grammar of endpoint strings, and the sockets behind them."""
