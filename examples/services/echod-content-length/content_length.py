"""A framing: each message follows its length in a header, as in the Language Server Protocol."""

import re
from dataclasses import dataclass

from echod import BufferingFramer, FramingError, MessageCutShort, MessageTooLong

HEADER = re.compile(rb"Content-Length: ([0-9]{1,9})\r\n\r\n")
LONGEST = len(b"Content-Length: 123456789\r\n\r\n")


@dataclass(frozen=True)
class ContentLength:
    """A message, and a reply, follows its length in a header: `Content-Length: 5`."""

    max_message: int = 1024 * 1024

    def framer(self) -> "ContentLengthFramer":
        return ContentLengthFramer(self.max_message)

    def encode(self, reply: bytes) -> bytes:
        return b"Content-Length: %d\r\n\r\n%b" % (len(reply), reply)

    def encode_line(self, text: bytes) -> bytes:
        return self.encode(text + b"\n")


class ContentLengthFramer(BufferingFramer):
    """Cuts the input of one client; echod calls `next_message` until that returns None."""

    def next_message(self) -> bytes | None:
        header = HEADER.match(self.buffer)
        if header is None:
            if len(self.buffer) >= LONGEST or b"\r\n\r\n" in self.buffer:
                raise FramingError("Bad header: a message begins with Content-Length: 5")
            if self.ended and self.buffer:
                raise MessageCutShort
            return None
        start = header.end()
        end = start + int(header[1])
        if end - start > self.max_message:
            raise MessageTooLong(self.max_message)
        if len(self.buffer) < end:
            if self.ended:
                raise MessageCutShort(end - len(self.buffer))
            return None
        message = bytes(self.buffer[start:end])
        del self.buffer[:end]
        return message
