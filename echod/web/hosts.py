"""The host names under which the status, or the control, may be requested.

A web page in an operator's browser can request any address through a name of its author's that now
resolves to it (DNS rebinding), and read the answer. Such a request always has that name in `Host`.
So the status answers only known names; an address is safe, because the browser has not looked it
up.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

# uri-host and port of RFC 9110, 7.2, as far as needed here.
_HOST = re.compile(r"(?:\[([^\]]*)\]|([^:\[\]]*))(?::\d*)?")


class Hosts:
    """The names that the status answers; addresses and `localhost` always belong to them."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Set up.

        Args:
            names: further names, without a port; `*` is any.
        """
        self._names = frozenset(name.rstrip(".").lower() for name in names)

    def answers(self, host: str | None) -> bool:
        """Return whether to answer a request with this `Host`; None: it has none."""
        if host is None or "*" in self._names:
            return True  # every browser sends it
        match = _HOST.fullmatch(host.strip())
        if match is None:
            return False
        name = (match[1] or match[2] or "").rstrip(".").lower()
        return name == "localhost" or name in self._names or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True
