"""The reactor of the tests, with all that it can do: Twisted's type names a part of that."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor as _reactor

reactor: Any = _reactor
