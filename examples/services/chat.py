"""A chat: each line goes to all others.

$ twistd -n echod --handler chat:Chat --framing line
"""

from typing import ClassVar

from echod import Client, Handler, broadcast


class Chat(Handler):
    room: ClassVar[set[Client]] = set()

    def opened(self, client: Client) -> None:
        self.client = client
        self.room.add(client)

    def received(self, message: bytes) -> None:
        broadcast(self.room - {self.client}, message)

    def closed(self, reason: str) -> None:
        self.room.discard(self.client)
