"""A chat: each line goes to all others.

$ twistd -n echod --handler chat:Chat --framing line
"""

from typing import ClassVar

from echod import Client, Handler


class Chat(Handler):
    room: ClassVar[set[Client]] = set()

    def opened(self, client: Client) -> None:
        self.client = client
        self.room.add(client)

    def received(self, message: bytes) -> None:
        for other in self.room - {self.client}:
            other.send(message)

    def closed(self, reason: str) -> None:
        self.room.discard(self.client)
