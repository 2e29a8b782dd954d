"""The control of a running daemon, over HTTP and JSON on a listener of its own: `--control`.

It lists connections and ends them, changes the faults on purpose, and suspends the listeners.
"""

from echod.control.operations import Operations, Subject
from echod.control.server import ControlServer
from echod.control.token import TokenError, read_token

__all__ = ["ControlServer", "Operations", "Subject", "TokenError", "read_token"]
