"""The control of a running daemon, over HTTP and JSON on a listener of its own: `--control`.

It lists connections and ends them, changes the faults on purpose, and suspends the listeners.
"""

from echod.control.server import ControlServer, Subject
from echod.control.token import TokenError, read_token

__all__ = ["ControlServer", "Subject", "TokenError", "read_token"]
