"""The web site of the status: four read-only pages; `echod.web` bounds what its clients may do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from twisted.internet.interfaces import IReactorTime

from echod.reasons import Check
from echod.status.exposition import expose
from echod.status.page import CONTENT_SECURITY_POLICY, page
from echod.status.shared import SharedLook
from echod.status.snapshot import Snapshot
from echod.web.hosts import Hosts
from echod.web.site import PLAIN, Answer, Responder, WebRequest, WebSite, header

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

NOT_HERE = Answer(
    421, PLAIN, b"there is nothing here under that name: list it in the setting status-host\n"
)


class StatusSite(WebSite):
    """The site."""

    headers: ClassVar = {b"Content-Security-Policy": CONTENT_SECURITY_POLICY.encode()}


# Makes a page for an `Accept` header: a status, a media type and the page itself.
Make = Callable[[str], Awaitable[tuple[int, str, bytes]]]


class Pages(Responder):
    """All pages, by their paths."""

    def __init__(self, pages: Mapping[bytes, Make], hosts: Hosts) -> None:
        """Set up.

        Args:
            pages: functions that make the pages on request.
            hosts: the allowed host names.
        """
        super().__init__(hosts, NOT_HERE)
        self._pages = pages

    async def answer(self, request: WebRequest) -> Answer:
        if request.method not in (b"GET", b"HEAD"):
            return Answer(405, PLAIN, b"only GET and HEAD\n", {b"Allow": StatusSite.methods})
        make = self._pages.get(request.path)
        if make is None:
            return Answer(404, PLAIN, b"there is no such page\n")
        return Answer(*await make(header(request, b"Accept") or ""))


def make_site(
    reactor: IReactorTime,
    *,
    look: Callable[[], Awaitable[Snapshot]],
    state: Callable[[], str],
    hosts: Hosts | None = None,
    own: Callable[[], Collector | None] = lambda: None,
    checks: Counter[str] | None = None,
) -> StatusSite:
    """Return the site.

    Args:
        reactor: for deadlines.
        look: returns all figures.
        state: returns the daemon's state: "ready" if it takes new clients.
        hosts: the host names by which it may be requested; by default addresses and localhost.
        own: returns the metrics of the handler's own; None if it has none.
        checks: counts the requests for health and readiness, by `reasons.Check`.
    """
    counted: Counter[str] = Counter() if checks is None else checks
    shared = SharedLook(reactor.seconds, look=look, state=state)

    async def overview(_: str) -> tuple[int, str, bytes]:
        html = await shared.form("page", lambda now: page(now).encode())
        return 200, "text/html; charset=utf-8", html

    async def healthy(_: str) -> tuple[int, str, bytes]:
        counted[Check.HEALTHZ.value] += 1
        return 200, PLAIN, b"ok\n"

    async def ready(_: str) -> tuple[int, str, bytes]:
        counted[Check.READYZ.value] += 1
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
