"""The web site of the status: four read-only pages, with short time-outs.

It is meant for a private address, and does little harm if others can reach it. A request has no
body, a connection serves one request within `REQUEST_SECONDS`, and no page shows text of a
request. There are at most `MOST_CLIENTS` connections; when one more arrives, the one that has been
silent longest is closed, so idle connections cannot block health checks.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from echod.status.exposition import expose
from echod.status.hosts import Hosts
from echod.status.page import CONTENT_SECURITY_POLICY, page
from echod.status.shared import SharedLook
from echod.status.snapshot import Snapshot

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from echod.interfaces import Stream

# How long a client may take for its request and for reading the answer.
REQUEST_SECONDS = 10.0

# The most connections at once.
MOST_CLIENTS = 32

_HEADERS = {
    b"Server": b"echod",
    b"Cache-Control": b"no-store",
    b"Connection": b"close",
    b"Content-Security-Policy": CONTENT_SECURITY_POLICY.encode(),
    b"Referrer-Policy": b"no-referrer",
    b"X-Content-Type-Options": b"nosniff",
    b"X-Frame-Options": b"DENY",
}


ALLOWED = b"GET, HEAD"

# The absolute form of a request's target: RFC 9112, 3.2.2.
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(/[^?#]*)?", re.IGNORECASE)


class StatusRequest(Request):
    """A request without a body.

    Attributes:
        authority: the host it is addressed to, as HOST or HOST:PORT; None if it does not say.
    """

    _refused = False
    authority: str | None = None

    def gotLength(self, length: int | None) -> None:
        super().gotLength(0)
        if length != 0:
            self._refused = True
            self.channel._respondToBadRequestAndDisconnect()

    def handleContentChunk(self, data: bytes) -> None:
        pass

    def process(self) -> None:
        if not self._refused:
            channel: StatusChannel = self.channel  # type: ignore[assignment]
            channel.site.has_asked(channel)
            self.authority = header(self, b"Host")
            if absolute := _ABSOLUTE.match(self.path):
                # This overrides the header.
                self.authority = absolute[1].decode("latin-1")
                self.path = absolute[2] or b"/"
            super().process()

    def _handleStar(self) -> None:
        self._set_headers()
        self.setHeader(b"Allow", ALLOWED)
        super()._handleStar()

    def render(self, resrc: Resource) -> None:
        self._set_headers()
        super().render(resrc)

    def _set_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.setHeader(name, value)


def header(request: Request, name: bytes) -> str | None:
    """Return a header of a request, which may have any bytes, decoded as Latin-1."""
    values = request.requestHeaders.getRawHeaders(name)
    return values[-1].decode("latin-1") if values else None


class StatusChannel(HTTPChannel):
    """A connection for one request."""

    # `Site` puts itself here.
    site: StatusSite
    transport: Stream
    counted = False
    _deadline: IDelayedCall | None = None

    def connectionMade(self) -> None:
        super().connectionMade()
        self.site.came(self)
        self._deadline = self.site.reactor.callLater(
            REQUEST_SECONDS, self.transport.abortConnection
        )

    def dataReceived(self, data: bytes) -> None:
        try:
            super().dataReceived(data)
        except Exception:  # the library raises various errors for an invalid request
            self._respondToBadRequestAndDisconnect()

    def checkPersistence(self, request: object, version: object) -> bool:
        return False

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.left(self)
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        super().connectionLost(reason)


class StatusSite(Site):
    """The site.

    Attributes:
        clients: the number of open connections.
    """

    noisy = False
    protocol = StatusChannel  # type: ignore[assignment]
    requestFactory = StatusRequest

    def __init__(self, resource: Resource, reactor: IReactorTime) -> None:
        super().__init__(resource, timeout=REQUEST_SECONDS, reactor=reactor)
        self.clients = 0
        # Connections without a request so far, the oldest first.
        self._silent: dict[StatusChannel, None] = {}

    def buildProtocol(self, addr: IAddress | None) -> Any:
        if self.clients >= MOST_CLIENTS and not self._make_room():
            return None
        return super().buildProtocol(addr)

    def _make_room(self) -> bool:
        """Close the connection that has been silent longest; return whether there is one."""
        oldest = next(iter(self._silent), None)
        if oldest is None:
            return False
        self.left(oldest)
        oldest.transport.abortConnection()
        return True

    def came(self, channel: StatusChannel) -> None:
        """Count a new connection."""
        self.clients += 1
        self._silent[channel] = None
        channel.counted = True

    def has_asked(self, channel: StatusChannel) -> None:
        """Note that a request has arrived: its connection closes after the answer."""
        self._silent.pop(channel, None)

    def left(self, channel: StatusChannel) -> None:
        """Note the end of a connection, once."""
        self._silent.pop(channel, None)
        self.clients -= channel.counted
        channel.counted = False

    def log(self, request: object) -> None:
        """Log nothing: health checks come every few seconds."""


PLAIN = "text/plain; charset=utf-8"

NOT_HERE = b"there is nothing here under that name: list it in the setting status-host\n"

# Makes a page for an `Accept` header: a status, a media type and the page itself.
Make = Callable[[str], Awaitable[tuple[int, str, bytes]]]


class Pages(Resource):
    """All pages, by their paths. Twisted's own error pages would show the requested path."""

    isLeaf = True

    def __init__(self, pages: Mapping[bytes, Make], hosts: Hosts) -> None:
        """Set up.

        Args:
            pages: functions that make the pages on request.
            hosts: the allowed host names.
        """
        super().__init__()
        self._pages = pages
        self._hosts = hosts

    def render(self, request: Any) -> int:
        answering = Deferred.fromCoroutine(self._answer(request))
        request.notifyFinish().addErrback(lambda _: answering.cancel())
        answering.addErrback(_failed, request)
        return NOT_DONE_YET

    async def _answer(self, request: StatusRequest) -> None:
        status, kind, body = await self._page(request)
        request.setResponseCode(status)
        request.setHeader(b"Content-Type", kind.encode())
        request.setHeader(b"Content-Length", b"%d" % len(body))
        request.write(body)
        request.finish()

    async def _page(self, request: StatusRequest) -> tuple[int, str, bytes]:
        # A browser cannot reach a UNIX socket.
        on_network = not isinstance(request.getHost(), UNIXAddress)
        if on_network and not self._hosts.answers(request.authority):
            return 421, PLAIN, NOT_HERE
        if request.method not in (b"GET", b"HEAD"):
            request.setHeader(b"Allow", ALLOWED)
            return 405, PLAIN, b"only GET and HEAD\n"
        make = self._pages.get(request.path)
        if make is None:
            return 404, PLAIN, b"there is no such page\n"
        return await make(header(request, b"Accept") or "")


def _failed(failure: Failure, request: StatusRequest) -> None:
    if not failure.check(CancelledError):  # the client has gone
        request.processingFailed(failure)


def make_site(
    reactor: IReactorTime,
    *,
    look: Callable[[], Awaitable[Snapshot]],
    state: Callable[[], str],
    hosts: Hosts | None = None,
    own: Callable[[], CollectorRegistry | None] = lambda: None,
) -> StatusSite:
    """Return the site.

    Args:
        reactor: for deadlines.
        look: returns all figures.
        state: returns the daemon's state: "ready" if it takes new clients.
        hosts: the host names by which it may be requested; by default addresses and localhost.
        own: returns the registry of the handler's own metrics; None if it has none.
    """
    shared = SharedLook(reactor.seconds, look=look, state=state)

    async def overview(_: str) -> tuple[int, str, bytes]:
        html = await shared.form("page", lambda now: page(now).encode())
        return 200, "text/html; charset=utf-8", html

    async def healthy(_: str) -> tuple[int, str, bytes]:
        return 200, PLAIN, b"ok\n"

    async def ready(_: str) -> tuple[int, str, bytes]:
        now = state()
        return 200 if now == "ready" else 503, PLAIN, f"{now}\n".encode()

    async def metrics(accept: str) -> tuple[int, str, bytes]:
        return 200, *await shared.form(f"metrics {accept}", lambda now: expose(now, accept, own()))

    pages: dict[bytes, Make] = {
        b"/": overview,
        b"/healthz": healthy,
        b"/readyz": ready,
        b"/metrics": metrics,
    }
    return StatusSite(Pages(pages, Hosts() if hosts is None else hosts), reactor)
