"""The errors that an operator can correct: each is shown as one line."""

from __future__ import annotations

import importlib
import pkgutil

import echod
from echod.errors import UserError

# Errors about a peer, or about this program itself: they are shown otherwise.
OTHERS = {
    "Abandoned",  # the daemon itself gave up waiting
    "Busy",
    "Dropped",
    "FramingError",
    "MessageCutShort",
    "MessageTooLong",
    "Mismatch",  # of a script, about its client
    "ProxyError",
    "QueryError",  # of a request to the control, as below
    "Refused",
    "TLSError",
    "TalkError",  # of a test, for its author
}


def errors() -> set[type[BaseException]]:
    """Return the public exceptions that the modules of echod define."""
    for found in pkgutil.walk_packages(echod.__path__, "echod."):
        importlib.import_module(found.name)
    waiting: list[type[BaseException]] = [BaseException]
    seen: set[type[BaseException]] = set()
    while waiting:
        waiting += set(type.__subclasses__(waiting.pop())) - seen - {*waiting}
        seen.update(waiting)
    ours = {each for each in seen if each.__module__.partition(".")[0] == "echod"}
    return {each for each in ours if not each.__name__.startswith("_")}


def test_every_error_is_an_operators_to_mend_or_about_a_peer() -> None:
    found = errors()
    mended = {each.__name__ for each in found if issubclass(each, UserError)}
    assert mended >= {"ActivationError", "FilesError", "HandlerError", "ListenError"}
    assert mended >= {"SettingError", "StartError"}
    assert {each.__name__ for each in found} - mended == OTHERS


def test_an_error_that_twistd_shows_in_100_characters_has_a_short_name() -> None:
    (start_error,) = [each for each in errors() if each.__name__ == "StartError"]
    assert repr(start_error("tcp:1: Bind failed.")) == "StartError('tcp:1: Bind failed.')"
    assert str(start_error) == "<class 'echod.StartError'>"
