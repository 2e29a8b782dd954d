"""The connections by which a load balancer checks that the daemon serves.

Its PROXY header says `LOCAL`. It is served as a client is, so that it can look at the answers, but
it comes every few seconds, and is no client: no line of the log tells of it, and it counts as a
check.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from echod.connections.lifecycle import ConnectionProtocol

    _Base = ConnectionProtocol
else:
    _Base = object


class _HealthCheck(_Base):
    """Says that it is a check."""

    __slots__ = ()

    is_check = True


@cache
def health_check(kind: type[ConnectionProtocol]) -> type[ConnectionProtocol]:
    """Return the subclass for the health checks of connections of this kind."""
    made = type(kind.__name__, (_HealthCheck, kind), {"__slots__": ()})
    return cast("type[ConnectionProtocol]", made)
