"""Types of Twisted's objects, as far as the daemon uses them.

Most are Twisted's own interfaces: `IReactorTime` is a clock, and a part that needs more of a
reactor adapts it, as in `IReactorUNIX(reactor)`. This file has the types that Twisted lacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeAlias

    from twisted.internet import _IReactorCommon

    # The type that Twisted gives to `twisted.internet.reactor`, for type checkers alone.
    Reactor: TypeAlias = _IReactorCommon
