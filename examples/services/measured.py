"""A handler with settings that it checks, and metrics of its own in --status.

Run: twistd -n echod --handler measured:shout:times=2 --status tcp:9464:interface=127.0.0.1
"""

from collections.abc import Iterator

from prometheus_client import Counter

import echod


@echod.service(framing="line", banner=b"")
def shout(service: echod.Service, *, times: int = 1) -> Iterator[object]:
    """Sends back what it gets in capital letters, several times."""
    words = Counter("shout_words", "Words that were shouted.", registry=service.metrics)

    def answer(message: bytes) -> bytes:
        words.inc(len(message.split()))
        return b" ".join([message.upper()] * times)

    yield answer


@shout.check
def _(*, times: int) -> None:
    if not 1 <= times <= 10:
        raise echod.SettingError("times", "must be between 1 and 10")
