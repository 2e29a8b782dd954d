"""The targets of hostile bytes, and the properties that hold for any bytes."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport

from echod.errors import UserError
from echod.handlers.contract import HandlerError
from echod.handlers.framings import UnusableFraming, parse_framing, resolve_framing
from echod.handlers.lookup import parse
from echod.listening.endpoints import parse_listen
from echod.messages.framing import Chunk, Fixed, Framing, FramingError, Line
from echod.messages.prefixed import Length, Netstring, Varint
from echod.proxy_header import HeaderParser, ProxyError
from echod.settings.definitions import SETTINGS, Settings
from echod.settings.schema import SettingError, read_file
from echod.text import escape, escape_lines, unescape
from echod.tls import Files, ServerContext, TLSFactory
from echod.tls.der import subject, validity
from echod.tls.hello import ClientHello
from tests.support.certificates import Authority
from tests.support.tls_peer import records


def cut(data: bytes) -> Iterator[bytes]:
    """Yield `data` in pieces whose sizes are made of its own bytes."""
    position = 0
    while position < len(data):
        size = data[position] % 37 + 1
        yield data[position : position + size]
        position += size


def messages(framing: Framing, reads: Iterator[bytes]) -> tuple[list[bytes], str]:
    """Return the messages of a stream, and the error that it ends with."""
    framer = framing.framer()
    got: list[bytes] = []
    try:
        for read in reads:
            framer.feed(read)
            while (message := framer.next_message()) is not None:
                assert len(message) <= framing.max_message
                got.append(message)
        framer.end()
        while (message := framer.next_message()) is not None:
            assert len(message) <= framing.max_message
            got.append(message)
    except FramingError as error:
        return got, str(error)
    return got, ""


def chunk(data: bytes) -> None:
    """Nothing is lost, and what came in two reads is two messages."""
    reads = list(cut(data[1:]))
    size = data[0] % 40 + 1 if data else 1
    got, error = messages(Chunk(size), iter(reads))
    assert not error
    assert got == [read[at : at + size] for read in reads for at in range(0, len(read), size)]


def line(data: bytes) -> None:
    """However a stream is cut, its lines are the same, and their delimiters are not in them."""
    delimiter = (b"\n", b"\r\n", b"\0", b"aab")[data[0] % 4 if data else 0]
    framing, stream = Line(delimiter, 1 + len(data) % 50), data[1:]
    got, error = messages(framing, cut(stream))
    assert (got, error) == messages(framing, iter([stream] if stream else []))
    assert not any(delimiter in message for message in got)
    if not error:
        assert delimiter.join(got) == stream.removesuffix(delimiter)


def length(data: bytes) -> None:
    """However a stream is cut, its messages are the same, and put back they are the stream."""
    # Lengths are small where the stream is not random, so that messages come about.
    framing = Length(70)
    stream = data.replace(b"~", b"\0\0\0")
    _put_back(framing, stream)


def netstring(data: bytes) -> None:
    """The same for netstrings."""
    _put_back(Netstring(70), data)


def varint(data: bytes) -> None:
    """The same for varints, of which a stream may have longer ones than echod writes."""
    framing = Varint(70)
    got, error = messages(framing, cut(data))
    assert (got, error) == messages(framing, iter([data] if data else []))
    assert error or sum(map(len, got)) + len(got) <= len(data)


def fixed(data: bytes) -> None:
    """The same for messages of one size."""
    _put_back(Fixed(data[0] % 20 + 1 if data else 1), data[1:])


def _put_back(framing: Framing, stream: bytes) -> None:
    got, error = messages(framing, cut(stream))
    assert (got, error) == messages(framing, iter([stream] if stream else []))
    whole = b"".join(map(framing.encode, got))
    assert stream.startswith(whole)
    assert error or stream == whole


def escaping(data: bytes) -> None:
    """Shown text is printable, and a single line if one is required."""
    text = data.decode("utf-8", "surrogateescape")
    for shown in (escape(data), escape(text), escape(data.decode("latin-1"))):
        assert _is_harmless(shown), ascii(shown)
    assert all(map(_is_harmless, escape_lines(text).replace("\t", "").split("\n")))


def _is_harmless(text: str) -> bool:
    return not any(
        character < " " or "\x7f" <= character <= "\x9f" or "\ud800" <= character <= "\udfff"
        for character in text
    )


def unescaping(data: bytes) -> None:
    """A setting's escapes are read, or refused by a ValueError."""
    with contextlib.suppress(ValueError):
        assert isinstance(unescape(data.decode("utf-8", "surrogateescape")), bytes)


def flags(data: bytes) -> None:
    """Every setting takes a text, or refuses it by a SettingError."""
    setting = SETTINGS[(data[0] if data else 0) % len(SETTINGS)]
    with contextlib.suppress(SettingError):
        setting.from_flag(data[1:].decode("utf-8", "surrogateescape"))


def file(data: bytes) -> None:
    """A settings file is read, or refused by a SettingError."""
    setting = SETTINGS[(data[0] if data else 0) % len(SETTINGS)]
    text = data[1:].decode("utf-8", "replace")
    # As it is, as the value of a key, and as a string there, which every setting has to judge.
    string = json.dumps(text, ensure_ascii=False)
    for content in (text, f"{setting.key} = {text}", f"{setting.key} = {string}"):
        with contextlib.suppress(SettingError):
            Settings(**read_file(SETTINGS, content, "file", {}))


def handler(data: bytes) -> None:
    """The name of a handler and its arguments are read, or refused by a HandlerError."""
    with contextlib.suppress(HandlerError):
        parse(data.decode("utf-8", "surrogateescape"))


def framing(data: bytes) -> None:
    """The arguments of a framing are taken, or refused by an UnusableFraming."""
    start = ("line:", "length:bytes=", "line:max_message=", "fixed:size=")[
        data[0] % 4 if data else 0
    ]
    with contextlib.suppress(UnusableFraming):
        resolve_framing(parse_framing(f"{start}a={data[1:].decode('utf-8', 'surrogateescape')}"))
        resolve_framing(parse_framing(f"{start}{data[1:].decode('utf-8', 'surrogateescape')}"))


def listen(data: bytes) -> None:
    """A listener is understood, or refused by a UserError."""
    starts = ("", "tls:", "ssl:8443:", "tcp:8888:", "unix:", "badtls:", "tls:1:certificate=")
    start = starts[data[0] % len(starts) if data else 0]
    with contextlib.suppress(UserError):
        parse_listen(MemoryReactorClock(), start + data[1:].decode("utf-8", "surrogateescape"))


def proxy(data: bytes) -> None:
    """However a PROXY header is cut, it is the same, or refused by a ProxyError."""
    for start in (b"", b"PROXY TCP4 ", b"\r\n\r\n\0\r\nQUIT\n"):
        stream = start + data
        assert _header(cut(stream)) == _header(iter([stream]))


def _header(reads: Iterator[bytes]) -> object:
    parser = HeaderParser()
    try:
        for read in reads:
            if (header := parser.feed(read)) is not None:
                return header, parser.rest + b"".join(reads)
    except ProxyError:
        return ProxyError
    return None


@functools.cache
def _context() -> ServerContext:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "certificate.pem")
        path.write_bytes(Authority().pem)
        return ServerContext(Files(str(path)))


class _Transport(StringTransport):
    """A connection that can be aborted, and half-closed."""

    def abortConnection(self) -> None:
        self.disconnecting = True

    def loseWriteConnection(self) -> None:
        self.disconnecting = True


def tls(data: bytes) -> None:
    """No ClientHello raises, nor the bytes after it; other bytes end the connection."""
    clock = Clock()
    factory = TLSFactory(Factory.forProtocol(Protocol), _context(), clock)
    for start in (b"", b"\x16\x03\x01", b"\x16\x03\x01\0\x80\x01\0\0\x7c\x03\x03"):
        protocol = factory.buildProtocol(None)
        transport = _Transport()
        protocol.makeConnection(transport)
        for read in cut(start + data):
            if transport.disconnecting:
                break
            protocol.dataReceived(read)
        clock.advance(60)


def hello(data: bytes) -> None:
    """However a ClientHello is cut into records and reads, the host in it is the same."""
    for start in (b"", b"\x01\0\0\x80\x03\x03" + bytes(33)):
        message = bytes(5) + start + data
        whole, pieces = ClientHello(), ClientHello()
        whole.feed(records(message, 1 << 14))
        for read in cut(records(message, len(data) % 5 + 1, 3)):
            pieces.feed(read)
        assert pieces.server_name == whole.server_name


def certificate(data: bytes) -> None:
    """The fields of a certificate are found, or a ValueError is raised."""
    for read in (subject, validity):
        with contextlib.suppress(ValueError):
            read(data)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        chunk,
        line,
        length,
        netstring,
        varint,
        fixed,
        escaping,
        unescaping,
        flags,
        file,
        handler,
        framing,
        listen,
        proxy,
        tls,
        hello,
        certificate,
    )
}
