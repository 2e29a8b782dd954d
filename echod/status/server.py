"""Serve the status, from the daemon's start to its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from echod.listening.endpoints import Listening
from echod.reasons import Check
from echod.status.look import Source
from echod.status.site import StatusSite, make_site
from echod.status.snapshot import Snapshot
from echod.text import escape
from echod.web.hosts import Hosts
from echod.web.server import WebServer

if TYPE_CHECKING:
    from echod.interfaces import Reactor


class StatusServer(WebServer[StatusSite]):
    """The listener of the status, and its own measurements."""

    flag = "--status "

    def __init__(
        self,
        reactor: Reactor,
        description: str,
        wanted: Listening,
        source: Source,
        *,
        hosts: Sequence[str] = (),
    ) -> None:
        """Set up, without listening.

        Args:
            reactor: the reactor.
            description: the endpoint, as the operator wrote it.
            wanted: where to listen.
            source: the figures.
            hosts: host names by which it may be requested, besides addresses and localhost.
        """
        # Each is there from the beginning, so that `increase` sees the first one.
        self._checks = Counter({kind.value: 0 for kind in Check if not kind.by_listener})
        site = make_site(
            reactor,
            look=self.look,
            state=lambda: source.state,
            hosts=Hosts(hosts),
            own=source.own,
            checks=self._checks,
        )
        super().__init__(reactor, description, wanted, site)
        self._source = source

    async def look(self) -> Snapshot:
        """Return a snapshot of all figures."""
        now = await self._source.look()
        return replace(now, checks=dict(self._checks), status=escape(self.description))

    def listen(self) -> Deferred[None]:
        return super().listen().addCallback(self._begin)

    def _begin(self, _: object) -> None:
        if self.address is not None:
            self._source.start()

    def stop(self) -> Deferred[None]:
        self._source.stop()
        return super().stop()
