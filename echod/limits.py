"""What one client may take: every limit, its default and the reason for it.

Pure and frozen: checked once, when made.  Where a limit is a setting, `echod.settings` takes its
default from here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Bounds on clients; times in seconds, 0 for never.

    Raises:
        ValueError: a limit is negative.
    """

    # Long enough for a person at netcat to have lunch elsewhere; short enough that a peer that
    # vanished without a word is forgotten the same hour.
    idle_timeout: float = 600.0
    # A client that reads at all empties the 64 KiB we hold for it within this, at 1 KiB/s.
    write_timeout: float = 60.0
    # In `serial`, how long a silent client may keep others waiting: time to type a line.
    serial_timeout: float = 10.0
    # In `serial`, how many clients may wait: the kernel's own queue (SOMAXCONN) was 128 for
    # thirty years.
    serial_queue: int = 128
    # A TLS handshake is two round trips: slow links included, this is patience enough.
    handshake_timeout: float = 10.0
    # After our last byte and FIN, how long to wait for the client's: closing at once on input we
    # have not read would send RST, and RST takes the reply with it.
    linger: float = 2.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(f"{field.name} must not be negative")
