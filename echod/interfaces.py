"""What the daemon asks of Twisted's objects, as types.

Twisted's own interfaces are such types already: `IReactorTime` is a clock, and a part that needs
more of a reactor adapts it, as in `IReactorUNIX(reactor)`. Here are those that Twisted lacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeAlias

    from twisted.internet import _IReactorCommon

    # The type that Twisted gives to `twisted.internet.reactor`, for type checkers alone.
    Reactor: TypeAlias = _IReactorCommon
