"""A ticker: it speaks each second, unasked.

$ twistd -n echod --handler ticker:Ticker --framing line
"""

import time

from twisted.internet.task import LoopingCall

from echod import Client, Handler


class Ticker(Handler):
    def opened(self, client: Client) -> None:
        self.ticking = LoopingCall(lambda: client.send(time.strftime("%H:%M:%S").encode()))
        self.ticking.start(1)

    def received(self, message: bytes) -> None:
        pass

    def closed(self, reason: str) -> None:
        self.ticking.stop()
