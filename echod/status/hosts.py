"""Under which names the status may be asked for.

A page in an operator's browser can be made to ask any address, with a name of its author's that
leads there now (DNS rebinding), and to read the answer.  Such a request always names that name in
`Host`.  So a name is answered only if it is known to be meant; an address never misleads, as the
browser has not looked it up.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

# uri-host and port of RFC 9110, 7.2, as far as they concern us.
_HOST = re.compile(r"(?:\[([^\]]*)\]|([^:\[\]]*))(?::\d*)?")


class Hosts:
    """The names that are answered; addresses and `localhost` are among them always."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Set up.

        Args:
            names: further names, without a port; `*` is any.
        """
        self._names = frozenset(name.rstrip(".").lower() for name in names)

    def answers(self, host: str | None) -> bool:
        """Return whether a request is answered that has this `Host`; None where it has none."""
        if host is None or "*" in self._names:
            return True  # no browser leaves it out
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
