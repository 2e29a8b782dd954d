"""The web site of the status: four pages, for reading, with little patience.

It is meant for a private address; should it be seen from elsewhere, it can do little harm.  A
request has no body, a connection serves one request within `PATIENCE`, there are `MOST_CLIENTS` of
them at most, and nothing that comes in a request comes back in a page.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from echod.status.exposition import expose
from echod.status.page import CONTENT_SECURITY_POLICY, page
from echod.status.snapshot import Snapshot

# How long a client has for its request and for reading the answer, in seconds.
PATIENCE = 10.0

# How many clients there may be at once.
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


class StatusRequest(Request):
    """A request without a body."""

    _refused = False

    def gotLength(self, length: int | None) -> None:
        super().gotLength(0)
        if length != 0:
            self._refused = True
            self.channel._respondToBadRequestAndDisconnect()

    def handleContentChunk(self, data: bytes) -> None:
        pass

    def process(self) -> None:
        if not self._refused:
            super().process()

    def render(self, resrc: Any) -> None:
        for name, value in _HEADERS.items():
            self.setHeader(name, value)
        super().render(resrc)


class StatusChannel(HTTPChannel):
    """A connection for one request."""

    # `Site` puts itself here.
    site: StatusSite
    transport: Any
    _deadline: Any = None

    def connectionMade(self) -> None:
        super().connectionMade()
        self.site.clients += 1
        self._deadline = self.site.reactor.callLater(PATIENCE, self.transport.abortConnection)

    def checkPersistence(self, request: object, version: object) -> bool:
        return False

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.clients -= 1
        if self._deadline.active():
            self._deadline.cancel()
        super().connectionLost(reason)


class StatusSite(Site):
    """The site.

    Attributes:
        clients: how many there are.
    """

    noisy = False
    protocol = StatusChannel  # type: ignore[assignment]
    requestFactory = StatusRequest

    def __init__(self, resource: Resource, reactor: Any) -> None:
        super().__init__(resource, timeout=PATIENCE, reactor=reactor)
        self.clients = 0

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return super().buildProtocol(addr) if self.clients < MOST_CLIENTS else None

    def log(self, request: object) -> None:
        """Log nothing: health is asked for every few seconds."""


PLAIN = "text/plain; charset=utf-8"

# What makes a page for an `Accept` header: a status, a media type and the page itself.
Make = Callable[[str], Awaitable[tuple[int, str, bytes]]]


class Pages(Resource):
    """All pages, by their paths.  Twisted's own error pages would show what was asked for."""

    isLeaf = True

    def __init__(self, pages: Mapping[bytes, Make]) -> None:
        """Set up.

        Args:
            pages: what makes them, when they are asked for.
        """
        super().__init__()
        self._pages = pages

    def render(self, request: Any) -> int:
        answering = Deferred.fromCoroutine(self._answer(request))
        request.notifyFinish().addErrback(lambda _: answering.cancel())
        answering.addErrback(_failed, request)
        return NOT_DONE_YET

    async def _answer(self, request: Any) -> None:
        status, kind, body = await self._page(request)
        request.setResponseCode(status)
        request.setHeader(b"Content-Type", kind.encode())
        request.setHeader(b"Content-Length", b"%d" % len(body))
        request.write(body)
        request.finish()

    async def _page(self, request: Request) -> tuple[int, str, bytes]:
        if request.method not in (b"GET", b"HEAD"):
            request.setHeader(b"Allow", b"GET, HEAD")
            return 405, PLAIN, b"only GET and HEAD\n"
        make = self._pages.get(request.path)
        if make is None:
            return 404, PLAIN, b"there is no such page\n"
        return await make(request.getHeader("accept") or "")


def _failed(failure: Failure, request: Any) -> None:
    if not failure.check(CancelledError):  # who asked has gone
        request.processingFailed(failure)


def make_site(
    reactor: Any, *, look: Callable[[], Awaitable[Snapshot]], state: Callable[[], str]
) -> StatusSite:
    """Return the site.

    Args:
        reactor: for deadlines.
        look: returns all figures.
        state: returns what the daemon is doing: "ready" if new clients are welcome.
    """

    async def overview(_: str) -> tuple[int, str, bytes]:
        return 200, "text/html; charset=utf-8", page(await look()).encode()

    async def healthy(_: str) -> tuple[int, str, bytes]:
        return 200, PLAIN, b"ok\n"

    async def ready(_: str) -> tuple[int, str, bytes]:
        now = state()
        return 200 if now == "ready" else 503, PLAIN, f"{now}\n".encode()

    async def metrics(accept: str) -> tuple[int, str, bytes]:
        return 200, *expose(await look(), accept)

    pages: dict[bytes, Make] = {
        b"/": overview,
        b"/healthz": healthy,
        b"/readyz": ready,
        b"/metrics": metrics,
    }
    return StatusSite(Pages(pages), reactor)
