"""A web site with short time-outs, for a few clients.

It is meant for a private address, and does little harm if others can reach it. A connection serves
one request within `REQUEST_SECONDS`, a request has at most `WebSite.most_body` bytes of body, and
no error shows text of a request. When `MOST_CLIENTS` are connected and one more arrives, the one
that has been silent longest is closed, so idle connections cannot block others. A client whose
request has arrived is not closed: if all have asked, further ones wait in the kernel's queue,
apart from those that were accepted in the same turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from echod.connections.kernel import unread
from echod.timers import cancel_timer
from echod.web.hosts import Hosts

if TYPE_CHECKING:
    from echod.interfaces import Stream

# How long a client may take for its request and for reading the answer.
REQUEST_SECONDS = 10.0

# The most connections at once, apart from those of the last turn.
MOST_CLIENTS = 32

# A body that is too long is read to its end, and then refused, up to so many times the longest:
# an answer in the middle of it could be lost.
MOST_READ = 16

PLAIN = "text/plain; charset=utf-8"

_HEADERS = {
    b"Server": b"echod",
    b"Cache-Control": b"no-store",
    b"Connection": b"close",
    b"Referrer-Policy": b"no-referrer",
    b"X-Content-Type-Options": b"nosniff",
    b"X-Frame-Options": b"DENY",
}

BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\n\r\n"

# The absolute form of a request's target: RFC 9112, 3.2.2.
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(/[^?#]*)?", re.IGNORECASE)


class WebRequest(Request):
    """A request.

    Attributes:
        authority: the host it is addressed to, as HOST or HOST:PORT; None if it does not say.
        is_too_long: whether its body is longer than the site accepts.
    """

    channel: WebChannel
    authority: str | None = None
    is_too_long = False
    _refused = False
    _read = 0

    @property
    def on_network(self) -> bool:
        """Whether it came by other ways than a UNIX socket, which a browser cannot reach."""
        return not isinstance(self.getHost(), UNIXAddress)

    @property
    def query(self) -> bytes:
        """The text after the question mark; b"" without one."""
        return bytes(self.uri.partition(b"?")[2])

    def gotLength(self, length: int | None) -> None:
        super().gotLength(0)  # in memory, however long it is
        site = self.channel.site
        takes_chunks = site.most_body > 0 and site.allows(self)
        self._has_come(length or 0, refused=length is None and not takes_chunks)

    def handleContentChunk(self, data: bytes) -> None:
        self._read += len(data)
        self._has_come(self._read)
        if not self.is_too_long:
            super().handleContentChunk(data)

    def _has_come(self, length: int, *, refused: bool = False) -> None:
        """Refuse a body that has so many bytes, or will have."""
        most = self.channel.site.most_body
        self.is_too_long = self.is_too_long or refused or length > most
        if not self._refused and (refused or length > most * MOST_READ):
            self._refused = True
            self.channel._respondToBadRequestAndDisconnect()

    def process(self) -> None:
        if self._refused:
            return
        site = self.channel.site
        site.has_asked(self.channel)
        if site.works_long:
            self.channel.stop_deadline()
        if not site.allows(self):
            self._set_headers()
            self.respond(site.not_allowed)
            return
        self.authority = header(self, b"Host")
        if absolute := _ABSOLUTE.match(self.path):
            # This overrides the header.
            self.authority = absolute[1].decode("latin-1")
            self.path = absolute[2] or b"/"
        super().process()

    def respond(self, answer: Answer) -> None:
        """Send the whole answer."""
        self.channel.start_deadline()
        self.setResponseCode(answer.status, HTTPStatus(answer.status).phrase.encode())
        for name, value in answer.headers.items():
            self.setHeader(name, value)
        self.setHeader(b"Content-Type", answer.kind.encode())
        self.setHeader(b"Content-Length", b"%d" % len(answer.body))
        self.write(answer.body)
        self.finish()

    def _handleStar(self) -> None:
        self._set_headers()
        self.setHeader(b"Allow", self.channel.site.methods)
        super()._handleStar()

    def render(self, resrc: Resource) -> None:
        self._set_headers()
        super().render(resrc)

    def _set_headers(self) -> None:
        for name, value in {**_HEADERS, **self.channel.site.headers}.items():
            self.setHeader(name, value)


def header(request: Request, name: bytes) -> str | None:
    """Return a header of a request, which may have any bytes, decoded as Latin-1."""
    values = request.requestHeaders.getRawHeaders(name)
    return values[-1].decode("latin-1") if values else None


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    Attributes:
        status: the status code.
        kind: the media type.
        body: the body.
        headers: further headers.
    """

    status: int
    kind: str
    body: bytes
    headers: Mapping[bytes, bytes] = field(default_factory=dict)


class WebChannel(HTTPChannel):
    """A connection for one request."""

    # `Site` puts itself here.
    site: WebSite
    transport: Stream
    counted = False
    _deadline: IDelayedCall | None = None

    def connectionMade(self) -> None:
        super().connectionMade()
        self.site.came(self)
        self.start_deadline()

    def start_deadline(self) -> None:
        """Give the client this long from now on, unless its time runs already."""
        if self._deadline is None:
            self._deadline = self.site.reactor.callLater(
                REQUEST_SECONDS, self.transport.abortConnection
            )

    def stop_deadline(self) -> None:
        """Give the client any time, until `start_deadline`."""
        cancel_timer(self._deadline)
        self._deadline = None

    def dataReceived(self, data: bytes) -> None:
        try:
            super().dataReceived(data)
        except Exception:  # the library raises various errors for an invalid request
            self._respondToBadRequestAndDisconnect()
        self.site.heard(self)

    def allHeadersReceived(self) -> None:
        if not self.site.allows(self.requests[-1]):
            # Not even by a "100 Continue".
            self.requests[-1].requestHeaders.removeHeader(b"Expect")
        super().allHeadersReceived()

    def lineLengthExceeded(self, line: bytes) -> None:
        self._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        request = self.requests[-1] if self.requests else None
        self.transport.write(self.site.bad_request(request))
        self.loseConnection()

    def checkPersistence(self, request: object, version: object) -> bool:
        return False

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.left(self)
        self.stop_deadline()
        super().connectionLost(reason)


class WebSite(Site):
    """The site.

    Attributes:
        clients: the number of open connections.
        headers: the headers of each answer, beside those of every site.
        methods: the methods that it knows.
        most_body: how many bytes the body of a request may have.
        works_long: whether the work for an answer may take long: the client's time stands still.
        not_allowed: the answer to a request that `allows` refuses.
        on_full: called when no further connection should be accepted.
        on_room: called when further ones should be accepted again.
    """

    noisy = False
    protocol = WebChannel  # type: ignore[assignment]
    requestFactory = WebRequest

    headers: ClassVar[Mapping[bytes, bytes]] = {}
    methods = b"GET, HEAD"
    most_body = 0
    works_long = False
    not_allowed = Answer(403, PLAIN, b"")

    def __init__(self, resource: Resource, reactor: IReactorTime) -> None:
        super().__init__(resource, timeout=REQUEST_SECONDS, reactor=reactor)
        self.clients = 0
        self.on_full: Callable[[], None] = lambda: None
        self.on_room: Callable[[], None] = lambda: None
        self._is_full = False
        # Connections without a request so far, the one that has been silent longest first.
        self._silent: dict[WebChannel, None] = {}

    def allows(self, request: Request) -> bool:
        """Return whether a request, whose headers have arrived, is answered at all."""
        return True

    def bad_request(self, request: Request | None) -> bytes:
        """Return the whole answer to what is no request; None: not even its first line is."""
        return BAD_REQUEST

    def buildProtocol(self, addr: IAddress | None) -> Any:
        if self.clients >= MOST_CLIENTS:
            self._make_room()
        return super().buildProtocol(addr)

    def _make_room(self) -> None:
        """Close those that have been silent longest; if all have asked, accept no more."""
        for channel in list(self._silent):
            if not unread(channel.transport):  # its request may wait there
                self.left(channel)
                channel.transport.abortConnection()
                if self.clients < MOST_CLIENTS:
                    return
        self._is_full = True
        self.on_full()

    def came(self, channel: WebChannel) -> None:
        """Count a new connection."""
        self.clients += 1
        self._silent[channel] = None
        channel.counted = True

    def heard(self, channel: WebChannel) -> None:
        """Note that a connection has been read: while its request is not whole, it can be closed,
        after those that have been silent for longer.
        """
        if channel in self._silent:
            self._silent[channel] = self._silent.pop(channel)
            self._accept_again()

    def has_asked(self, channel: WebChannel) -> None:
        """Note that a request has arrived: its connection closes after the answer."""
        self._silent.pop(channel, None)

    def left(self, channel: WebChannel) -> None:
        """Note the end of a connection, once."""
        self._silent.pop(channel, None)
        self.clients -= channel.counted
        channel.counted = False
        if self.clients < MOST_CLIENTS:
            self._accept_again()

    def _accept_again(self) -> None:
        if self._is_full:
            self._is_full = False
            self.on_room()

    def log(self, request: object) -> None:
        """Log nothing: health checks come every few seconds."""


class Responder(Resource):
    """Answers every path. Twisted's own error pages would show the requested path."""

    isLeaf = True

    def __init__(self, hosts: Hosts, not_here: Answer) -> None:
        """Set up.

        Args:
            hosts: the allowed host names.
            not_here: the answer to any other host.
        """
        super().__init__()
        self._hosts = hosts
        self._not_here = not_here

    async def answer(self, request: WebRequest) -> Answer:
        """Return the answer to a request."""
        raise NotImplementedError

    def render(self, request: Any) -> int:
        answering = Deferred.fromCoroutine(self._answer(request))
        request.notifyFinish().addErrback(lambda _: answering.cancel())
        answering.addErrback(_failed, request)
        return NOT_DONE_YET

    async def _answer(self, request: WebRequest) -> None:
        known = not request.on_network or self._hosts.answers(request.authority)
        request.respond(await self.answer(request) if known else self._not_here)


def _failed(failure: Failure, request: WebRequest) -> None:
    if not failure.check(CancelledError):  # the client has gone
        request.processingFailed(failure)
