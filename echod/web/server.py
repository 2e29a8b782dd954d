"""Serve a web site on a listener."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from echod.listening.endpoints import Listening
from echod.listening.listener import Listener
from echod.web.site import WebSite

if TYPE_CHECKING:
    from echod.interfaces import Reactor

Site = TypeVar("Site", bound=WebSite)


class WebServer(Listener[Site]):
    """A listener of a site: while that is full, clients wait in the kernel's queue."""

    def __init__(
        self, reactor: Reactor, description: str, wanted: Listening, factory: Site
    ) -> None:
        super().__init__(reactor, description, wanted, factory)
        factory.on_full = lambda: self.pause("full")
        factory.on_room = lambda: self.resume("full")
