"""The reload of a service: new settings, and the certificates again, all or none of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger

from echod.daemon.file_limit import fit_limits
from echod.daemon.resolve import StartError, check_for_restart, why_refused
from echod.listening.validity import tell_validity
from echod.settings.definitions import Settings, differences, reloaded
from echod.settings.schema import Setting
from echod.text import escape, excerpt
from echod.turns import go_through

if TYPE_CHECKING:
    from echod.interfaces import Reactor
    from echod.tls import ServedCertificate, ServerSide
    from echod.tls.context import Exchange

log = Logger("echod")

# How many exchanged certificates the line about a reload names.
NAMED = 10

# A part that can take new settings while the daemon runs. It raises if they cannot be used;
# otherwise it returns the function that takes them into use, which does not fail.
Part = Callable[[Settings], Callable[[], object]]


class Reloading:
    """Takes new settings and certificates into use while the daemon runs.

    Attributes:
        settings: the settings in use.
        configure: returns the new settings.
        adapt: adds the settings that the handler asks for.
        placed: adds to an error about settings where each was given.
        parts: take new settings.
        began, ended: are called at both ends of a reload.
        refused: why the last reload was refused, escaped; "" if it was not.
    """

    def __init__(
        self, reactor: Reactor, settings: Settings, contexts: Callable[[], list[ServerSide]]
    ) -> None:
        """Set up.

        Args:
            reactor: has the turns that a reload takes.
            settings: the first settings.
            contexts: returns the TLS contexts.
        """
        self.settings = settings
        self.configure = lambda: settings
        self.adapt: Callable[[Settings], Settings] = lambda wanted: wanted
        self.placed: Callable[[str, Settings], str] = lambda error, _: error
        self.parts: list[Part] = []
        self.began: Callable[[], object] = lambda: None
        self.ended: Callable[[], object] = lambda: None
        self.refused = ""
        self._reactor = reactor
        self._contexts = contexts
        # The reload that goes on, and whether another one was asked for meanwhile.
        self._reload: Deferred[None] | None = None
        self._again = False
        self._clearing_up: Deferred[None] = succeed(None)

    def reload(self) -> None:
        """Apply the new settings, or change nothing and log why.

        Files are read over several turns of the event loop if there are many; one that is asked
        for meanwhile follows.
        """
        if self._reload is not None:
            self._again = True
            return
        self.began()
        self._reload = Deferred.fromCoroutine(self._apply_wanted())
        self._reload.addBoth(self._reload_ended)

    def stop(self) -> None:
        """Give up the reload that goes on."""
        self._again = False
        if self._reload is not None:
            self._reload.cancel()
        self._stop_clearing_up()

    async def _apply_wanted(self) -> None:
        try:
            apply = await self.prepare(self.adapt(self.configure()))
            apply()
            self.refused = ""
        except CancelledError:  # a drain has begun
            raise
        except Exception as error:  # the service goes on as it was
            self._refuse(why_refused(error))

    def _reload_ended(self, _: object) -> None:
        self._reload = None
        self.ended()
        again, self._again = self._again, False
        if again:
            self.reload()

    def _refuse(self, why: str) -> None:
        self.refused = excerpt(why, 500)
        log.error("Reload refused, nothing has changed: {why}", why=self.refused)

    async def prepare(self, wanted: Settings) -> Callable[[], None]:
        """Make new settings ready; return the function that applies them, which does not fail.

        Raises:
            UserError: they, or a file that they name, cannot be used, or the next start would
                fail on them; nothing has changed.
            Exception: a program has a fault; nothing has changed.
        """
        wanted = fit_limits(wanted)
        try:
            steps = check_for_restart(self.settings, wanted, self._reactor)
            await go_through(self._reactor, steps)
        except StartError as error:
            raise StartError(self.placed(str(error), wanted)) from error
        certificates = await go_through(self._reactor, _reread(self._contexts()))
        changed = differences(self.settings, wanted)
        settings = reloaded(self.settings, wanted)
        ready = [part(settings) for part in self.parts]

        def apply() -> None:
            before = self._served()
            spent = [exchange() for exchange in certificates]
            self.settings = settings
            for take_into_use in ready:
                take_into_use()
            self._tell_changes(changed, before)
            self._clear_up(spent)

        return apply

    def _clear_up(self, spent: Iterable[Iterator[None]]) -> None:
        """Do in later turns what a reload leaves over: to free a thousand contexts takes 13 ms."""
        self._stop_clearing_up()
        steps = go_through(self._reactor, _left_over(self.certificates, spent))
        self._clearing_up = Deferred.fromCoroutine(steps)

    def _stop_clearing_up(self) -> None:
        self._clearing_up.addErrback(lambda failure: failure.trap(CancelledError))
        self._clearing_up.cancel()

    def _tell_changes(self, changed: list[Setting], before: list[ServedCertificate]) -> None:
        """Log what a reload has changed."""
        contents = {(one, one.content) for one in before}
        served = (one for one in self._served() if (one, one.content) not in contents)
        exchanged, known = list(dict.fromkeys(served)), set(before)
        taken = ", ".join(
            [one.key for one in changed if one.text.reload]
            + [
                f"{'key, chain or client-ca of ' if one in known else ''}"
                f"certificate {escape(one.path)} (serial {one.serial})"
                for one in exchanged[:NAMED]
            ]
            + [f"{len(exchanged) - NAMED} more certificates"] * (len(exchanged) > NAMED)
        )
        # Log it at any level, because the operator has asked for it, and expects an answer.
        log.info("Reloaded; changed: {taken}", taken=taken or "nothing", log_always=True)
        if fixed := ", ".join(one.key for one in changed if not one.text.reload):
            log.warn("Ignored until restart: {fixed}", fixed=fixed)

    @property
    def certificates(self) -> list[ServedCertificate]:
        """The certificates in use, each once."""
        return list(dict.fromkeys(self._served()))

    def _served(self) -> list[ServedCertificate]:
        return [one for context in self._contexts() for one in context.served]


def _reread(contexts: Iterable[ServerSide]) -> Generator[None, None, list[Exchange]]:
    """Read the files of each context again, a certificate in each step."""
    exchanges: list[Exchange] = []
    for context in contexts:
        if exchanges:
            yield
        exchanges.append((yield from context.reread()))
    return exchanges


def _left_over(
    certificates: Iterable[ServedCertificate], spent: Iterable[Iterator[None]]
) -> Generator[None, None, None]:
    """Log the expiry of each certificate, then let go of those before: of one in each step."""
    for certificate in certificates:
        tell_validity(certificate)
        yield
    for one in spent:
        yield from one
