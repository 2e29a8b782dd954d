"""Serve the control, from the daemon's start to its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from echod.control.site import API, ControlSite, Routes
from echod.control.token import VARIABLE
from echod.listening.endpoints import Listening
from echod.text import escape
from echod.web.hosts import Hosts
from echod.web.server import WebServer

if TYPE_CHECKING:
    from echod.interfaces import Reactor

log = Logger("echod")


class ControlServer(WebServer[ControlSite]):
    """The listener of the control."""

    flag = "--control "

    def __init__(
        self,
        reactor: Reactor,
        description: str,
        wanted: Listening,
        routes: Routes,
        *,
        token: bytes | None,
        hosts: Sequence[str] = (),
    ) -> None:
        """Set up, without listening.

        Args:
            reactor: the reactor.
            description: the endpoint, as the operator wrote it.
            wanted: where to listen.
            routes: the operations.
            token: the token of requests over a network; None: such requests are never answered.
            hosts: host names by which it may be requested, besides addresses and localhost.
        """
        site = ControlSite(API(routes, Hosts(hosts)), reactor, token)
        super().__init__(reactor, description, wanted, site)

    def listen(self) -> Deferred[None]:
        return super().listen().addCallback(self._check_token)

    def _check_token(self, _: object) -> None:
        # Of a socket that systemd passes, this is not known before.
        on_network = self.address is not None and not isinstance(self.address, UNIXAddress)
        if on_network and self.factory.token is None:
            log.warn(
                "--control {where} refuses every request: there is no token; give "
                "--control-token-file, or {variable} in the environment",
                where=escape(self.description),
                variable=VARIABLE,
            )

    def use_token(self, token: bytes | None) -> None:
        """Use another token from now on."""
        self.factory.token = token
