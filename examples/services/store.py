"""Keep values under keys, for some seconds each.

Run: twistd -n echod --handler store:store
Then type: SET colour 60 blue, GET colour, DEL colour
"""

import time
from collections.abc import AsyncIterator

from twisted.internet.task import LoopingCall

import echod


@echod.service(framing="line", banner=b"")
async def store(service: echod.Service, *, sweep: float = 1.0) -> AsyncIterator[object]:
    """Keeps values under keys, and forgets each after its time."""
    values: dict[bytes, tuple[float, bytes]] = {}

    def forget() -> None:
        now = time.monotonic()
        for key in [key for key, (ends, _) in values.items() if ends <= now]:
            del values[key]

    def answer(message: bytes) -> bytes:
        match message.split(b" ", 3):
            case [b"SET", key, seconds, value] if seconds.isdigit():
                values[key] = time.monotonic() + int(seconds), value
                return b"OK"
            case [b"GET", key]:
                ends, value = values.get(key, (0.0, b""))
                return b"VALUE " + value if ends > time.monotonic() else b"NONE"
            case [b"DEL", key]:
                return b"OK" if values.pop(key, None) else b"NONE"
        return b"ERROR: SET key seconds value, GET key, or DEL key"

    sweeping = LoopingCall(forget)
    sweeping.start(sweep)
    yield answer
    sweeping.stop()


@store.check
def _(*, sweep: float) -> None:
    if sweep <= 0:
        raise echod.SettingError("sweep", "must be more than 0 seconds")
