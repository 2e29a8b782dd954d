"""Resolve the names in settings to usable parts, at the start and at a reload."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from echod.awaiting import loop_of
from echod.daemon import checks
from echod.daemon.choose_reactor import name_of
from echod.errors import UserError
from echod.handlers.framings import check_framing, resolve_framing
from echod.handlers.kinds import KINDS, Kind
from echod.handlers.lookup import NAMES, ResolvedHandler, adopt, check_name, resolve
from echod.handlers.service import ServiceDefinition
from echod.listening.endpoints import Listening, Words, parse_listen
from echod.listening.socket_activation import InheritedSockets
from echod.listening.validity import tell_validity
from echod.settings.definitions import Settings, is_bad_tls
from echod.text import clipped, escape, excerpt
from echod.user_code import place_of, told_with_place

if TYPE_CHECKING:
    from echod.interfaces import Reactor
    from echod.listening.badtls import SharedMistakes
    from echod.messages.framing import Framing
    from echod.tls.files import Files, Loaded


# A UNIX socket, in clear or with TLS.
_UNIX = "(tls:|ssl:)?unix:"


class StartError(UserError):
    """The daemon cannot start; the text says where and why, in one line."""

    # In the background twistd, too, shows the beginning of an error, including this name.
    __module__ = "echod"


@contextmanager
def named(setting: str) -> Iterator[None]:
    """Name the setting in each error of the operator's that this block raises.

    Raises:
        StartError: an error was raised; the text begins with `setting`.
    """
    try:
        yield
    except UserError as error:
        raise StartError(escape(f"{setting}: {error}")) from error


@contextmanager
def looking_at_handler() -> Iterator[None]:
    """Do the same as `named` for the handler, whose attributes may raise any error.

    Raises:
        StartError: an error was raised, the operator's or one of the handler's code.
    """
    with named("--handler"):
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if not place_of(error):
                raise
            raise StartError(f"it cannot be used: {told_with_place(error)}") from error


def find_target(settings: Settings) -> object:
    """Return the function, class or other object that `settings` name as the handler.

    Raises:
        StartError: it cannot be loaded.
    """
    with named("--handler"):
        return NAMES.find(settings.handler.name)


def find_handler(settings: Settings, target: object, *, is_named: bool) -> ResolvedHandler:
    """Return the handler that `settings` ask for.

    Args:
        settings: the settings.
        target: what `find_target` has found, or another object that is used instead.
        is_named: whether it is that, with the arguments behind its name.

    Raises:
        StartError: it is no handler, or other settings have no effect with it.
    """
    with looking_at_handler():
        if is_named:
            handler = resolve(settings.handler_spec, settings.concurrency, target)
        else:
            handler = adopt(target, settings.concurrency)
        if isinstance(handler.target, ServiceDefinition):
            with named(escape(handler.name)):
                handler.target.run_checks(handler.arguments)
    if exchanged := checks.exchanged():
        raise StartError(
            f"--handler: {escape(handler.name)}: its module has replaced {', '.join(exchanged)} "
            "of Python's library, as gevent and eventlet do: no client would be answered; "
            "import it without monkey-patching"
        )
    _refuse_useless(settings, handler)
    return handler


def check_yielded(settings: Settings, handler: ResolvedHandler, reactor: Reactor) -> None:
    """Check the handler that a service has yielded against settings and reactor.

    Raises:
        StartError: other settings have no effect with it, or it cannot run on this reactor.
    """
    _refuse_useless(settings, handler)
    check_reactor(handler, reactor)


def _refuse_useless(settings: Settings, handler: ResolvedHandler) -> None:
    traits = KINDS[handler.kind]
    if not (traits.takes_messages or handler.kind is Kind.STREAMS):
        for endpoint in settings.clear_until_starttls:
            raise StartError(
                f"--listen {excerpt(endpoint)} has no effect: {escape(handler.name)} is "
                f"{traits.words}, which cannot ask for the certificate of a listener: use tls:, "
                "or tcp: if it begins TLS by a context of its own"
            )
    useless = [
        *([] if traits.takes_messages else settings.about_messages),
        *([] if traits.is_own else settings.about_greetings),
    ]
    if useless:
        raise StartError(
            f"{useless[0]} has no effect: {escape(handler.name)} is {traits.words}, "
            f"which reads {'the socket itself' if traits.is_own else 'and writes by itself'}: "
            "leave it out"
        )


def ignored_by(handler: ResolvedHandler, settings: Settings) -> list[str]:
    """Return a line for each setting that was given, and changes nothing with this handler.

    They are no error, unlike those about messages: one file may serve several handlers.
    """
    traits = KINDS[handler.kind]
    return [
        f"{flag} has no effect: {handler.name} is {traits.words}"
        for flag in settings.flags_of(traits.ignores)
    ]


def check_reactor(handler: ResolvedHandler, reactor: Reactor) -> None:
    """Check that `handler` can run on `reactor`.

    Raises:
        StartError: it needs an asyncio event loop, and there is none; or its module has run the
            reactor already.
    """
    # Code that this process has run so far is the daemon's own, or the handler's module.
    if getattr(reactor, "_startedBefore", False) and not reactor.running:
        raise StartError(
            f"--handler: {escape(handler.name)}: its module has run the reactor when it was "
            "imported, and a reactor runs only once: put reactor.run() under "
            '`if __name__ == "__main__"`'
        )
    traits = KINDS[handler.kind]
    if traits.needs_asyncio and loop_of(reactor) is None:
        raise StartError(
            f"--handler: {escape(handler.name)} is {traits.words}, which needs an asyncio event "
            f"loop: leave out --reactor={name_of(reactor)}"
        )


def find_framing(settings: Settings) -> Framing:
    """Return the framing that `settings` ask for.

    Raises:
        StartError: it cannot be loaded, or does not take its arguments.
    """
    with named("--framing"):
        return resolve_framing(settings.framing_spec)


def resolve_listen(
    reactor: Reactor,
    description: str,
    inherited: InheritedSockets,
    flag: str = "--listen",
    authority: SharedMistakes | None = None,
) -> Listening:
    """Parse a `--listen`, or another `flag` of its kind.

    Raises:
        StartError: it is not valid, or a file or socket that it names cannot be used.
    """
    with _named_endpoint(flag, description):
        return parse_listen(reactor, description, inherited, authority)


def _named_endpoint(flag: str, description: str) -> AbstractContextManager[None]:
    return named(f"{flag} {clipped(description, 200)}")


def resolve_status(reactor: Reactor, description: str, inherited: InheritedSockets) -> Listening:
    """Parse `--status`.

    Raises:
        StartError: it is not valid, or a file or socket that it names cannot be used.
    """
    return _resolve_site(reactor, description, inherited, "--status")


def _resolve_site(
    reactor: Reactor, description: str, inherited: InheritedSockets, flag: str
) -> Listening:
    if is_bad_tls(description):
        raise StartError(
            f"{flag} {escape(description)}: its clients would not trust its certificates; use tls:"
        )
    wanted = resolve_listen(reactor, description, inherited, flag)
    if wanted.proxied:
        raise StartError(f"{flag} {escape(description)}: no PROXY header is read here")
    if wanted.starts_clear:
        raise StartError(f"{flag} {escape(description)}: HTTP has no STARTTLS; use tls:")
    return wanted


def resolve_control(reactor: Reactor, description: str, inherited: InheritedSockets) -> Listening:
    """Parse `--control`; only its own user may use its UNIX socket, unless it says otherwise.

    Raises:
        StartError: it is not valid, or a file or socket that it names cannot be used.
    """
    is_unix = re.match(_UNIX, description)
    if is_unix and "mode" not in Words.split(description[is_unix.end() :]).names:
        description += ":mode=600"
    return _resolve_site(reactor, description, inherited, "--control")


def find_token(settings: Settings, environment: Mapping[str, str], folder: Path) -> bytes | None:
    """Return the token of the control; None if none is needed.

    Args:
        settings: the settings.
        environment: of the process.
        folder: in which the daemon was started, for a relative path.

    Raises:
        StartError: it is needed and missing, or it cannot be used.
    """
    from echod.control import TokenError, read_token, token

    if settings.control_token_file:
        with named("--control-token-file"):
            return read_token(str(folder / settings.control_token_file))
    if given := environment.get(token.VARIABLE):
        try:
            return token.check(given)
        except TokenError as error:
            raise StartError(f"{token.VARIABLE}: {error}") from None
    if re.match(_UNIX, settings.control) or settings.control.startswith("systemd:"):
        return None
    raise StartError(
        f"--control {excerpt(settings.control)} needs a token: give "
        f"--control-token-file, or {token.VARIABLE} in the environment; or use unix:"
    )


def check_for_restart(
    running: Settings, wanted: Settings, reactor: Reactor
) -> Generator[None, None, None]:
    """Refuse settings that the next start would refuse, as far as a running daemon can know.

    No handler and no framing is imported, because new code must not run in this process. Sockets
    of systemd are not looked for, because the next start gets its own. The files of an endpoint
    that is new are loaded in steps, a certificate in each.

    Raises:
        StartError: no handler or framing has that name, or an endpoint string is wrong.
    """
    if wanted.handler != running.handler:
        with named("--handler"):
            check_name(wanted.handler.name)
    if wanted.framing != running.framing:
        with named("--framing"):
            check_framing(wanted.framing.name)
    for description in wanted.endpoints:
        if description not in running.endpoints and "systemd:" not in description:
            yield from _check_endpoint(resolve_listen, reactor, description, "--listen")
    if wanted.status not in ("", running.status) and "systemd:" not in wanted.status:
        yield from _check_endpoint(resolve_status, reactor, wanted.status, "--status")
    if wanted.control not in ("", running.control) and "systemd:" not in wanted.control:
        yield from _check_endpoint(resolve_control, reactor, wanted.control, "--control")


def why_refused(error: Exception) -> str:
    """Return why a reload is refused; a fault in a program is shown with its type and place."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ImportError):
        return (
            f"{error}, which the new settings need: this process may no longer read its modules, "
            "as after --chroot; a restart takes them"
        )
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"


def _check_endpoint(
    resolve_endpoint: Callable[[Reactor, str, InheritedSockets], object],
    reactor: Reactor,
    description: str,
    flag: str,
) -> Generator[None, None, None]:
    inherited = _LoadedLater()
    resolve_endpoint(reactor, description, inherited)
    for files in inherited.files:
        with _named_endpoint(flag, description):
            loaded = yield from files.begin_to_load()
        for certificate in loaded.served:
            tell_validity(certificate)
            yield
        for _ in loaded.let_go():
            yield


class _LoadedLater(InheritedSockets):
    """Notes the files of TLS, instead of loading them.

    Attributes:
        files: those of each endpoint.
    """

    def __init__(self) -> None:
        super().__init__({})
        self.files: list[Files] = []

    def load(self, files: Files) -> Loaded:
        from echod.tls.context import new_server_context  # only with tls:
        from echod.tls.files import Loaded

        self.files.append(files)
        return Loaded(new_server_context(), {}, ())
