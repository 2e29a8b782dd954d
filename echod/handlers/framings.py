"""Find the framing that the text of `--framing` names, and make it.

`echod.handlers.naming` has the rules of names. Plugins are entry points in the group
`echod.framings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from echod.errors import UserError
from echod.handlers.importing import BuiltIn
from echod.handlers.kinds import class_of, within
from echod.handlers.naming import Catalogue, Installed, Spec, summary
from echod.handlers.parameters import Parameters, described, keywords_of
from echod.messages.framing import MOST, Framing
from echod.messages.guarded import guarded
from echod.text import excerpt
from echod.user_code import definition_of, place_of, told_with_place

if TYPE_CHECKING:
    from echod.handlers.plugins import Offer

# Their names for `--framing`.
FRAMINGS: BuiltIn[type[Framing]] = BuiltIn(
    {
        "chunk": "echod.messages.framing:Chunk",
        "fixed": "echod.messages.framing:Fixed",
        "length": "echod.messages.prefixed:Length",
        "line": "echod.messages.framing:Line",
        "netstring": "echod.messages.prefixed:Netstring",
        "varint": "echod.messages.prefixed:Varint",
    }
)


class UnusableFraming(UserError):
    """A framing cannot be loaded, or lacks something; the text says what, and the remedy."""


def _offers() -> list[Offer]:
    from echod.handlers.plugins import offered_framings  # only for what is not built in

    return offered_framings()


# The framings that `--framing` can name.
NAMES = Catalogue("framing", "CLASS", FRAMINGS, UnusableFraming, _offers)

_METHODS = ("framer", "encode", "encode_line")
_OF_FRAMERS = ("feed", "end", "next_message", "buffered")


def parse_framing(text: str) -> Spec:
    """Parse the text of `--framing`.

    Raises:
        UnusableFraming: the text has another form than `NAME[:key=value,...]`.
    """
    return NAMES.parse(text)


def resolve_framing(spec: Spec) -> Framing:
    """Find the framing that `spec` names, make it, and check that it is one.

    Raises:
        UnusableFraming: no framing has that name, it cannot be imported or made, it does not take
            the arguments, or it lacks a part of `echod.Framing`.
    """
    target = NAMES.find(spec.name)
    takes = _parameters_of(spec.name, target)
    NAMES.check_separators(spec, takes.named)
    arguments = NAMES.convert_arguments(spec.name, takes, spec.arguments, target)
    return _made(spec.name, target, arguments)


def adopt_framing(target: object) -> Framing:
    """Return a framing, or the one that a class or function makes, checked.

    Raises:
        UnusableFraming: it cannot be made, or lacks a part of `echod.Framing`.
    """
    name = getattr(within(target), "__name__", type(target).__name__)
    _parameters_of(name, target)
    return _made(name, target, {})


def check_framing(name: str) -> None:
    """Check that `name` could name a framing, without importing one.

    Raises:
        UnusableFraming: it is neither `module:object` nor the name of exactly one installed
            framing.
    """
    NAMES.check_name(name)


def installed_framings() -> list[Installed]:
    """Return all framings, by name; a broken one with its error."""
    return NAMES.installed(_described)


def _described(name: str, target: object) -> Installed:
    takes = _parameters_of(name, target)
    if not takes.required:
        _made(name, target, {})
    return Installed(name, summary(target), "echod", described(takes))


def _parameters_of(name: str, target: object) -> Parameters:
    """Return the arguments of a framing: a class, a function that makes one, or a framing.

    Raises:
        UnusableFraming: it lacks a part of `echod.Framing`, or raises when it is inspected.
    """
    try:
        if class_of(target) is not None:
            _check_parts(name, class_of(target), _METHODS)
        elif not callable(target) or hasattr(target, "framer"):
            return Parameters()
        assert callable(target)
        return keywords_of(target, 0)
    except UserError:
        raise
    except Exception as error:
        shown = excerpt(name)
        raise UnusableFraming(f"{shown} cannot be used: {told_with_place(error)}") from error


def _made(name: str, target: object, arguments: Mapping[str, object]) -> Framing:
    """Return the framing, made and tried.

    Raises:
        UnusableFraming: it cannot be made, or lacks a part of `echod.Framing`.
    """
    shown = excerpt(name)
    framing = target
    try:
        if class_of(target) is not None or not hasattr(target, "framer"):
            framing = target(**arguments) if callable(target) else target
        return _checked(name, framing)
    except UnusableFraming:
        raise
    except ValueError as error:  # an argument's, most likely
        raise UnusableFraming(f"{shown}: {excerpt(str(error), 300)}{place_of(error)}") from error
    except (Exception, SystemExit) as error:
        raise UnusableFraming(f"{shown} cannot be made: {told_with_place(error)}") from error


def _checked(name: str, framing: object) -> Framing:
    """Check that an object is a framing: use what is always used before the first message.

    Returns:
        The framing, guarded: what has been read of it is not read again.
    """
    _check_parts(name, framing, (*_METHODS, "max_message"))
    given = cast("Framing", framing)
    one = guarded(given)
    if type(one.max_message) is not int or not 1 <= one.max_message <= MOST:
        raise UnusableFraming(
            f"{excerpt(name)} is no framing: max_message is a number from 1 to {MOST}"
        )
    framer = given.framer()
    _check_parts(f"the framer of {name}", framer, _OF_FRAMERS)
    if type(framer.buffered) is not int:
        raise UnusableFraming(
            f"the framer of {excerpt(name)} is no framer: buffered is a number, as of a property"
        )
    if type(one.encode_line(b"")) is not bytes:
        raise UnusableFraming(f"{excerpt(name)} is no framing: encode_line gives no bytes")
    return one


def _check_parts(name: str, target: object, parts: tuple[str, ...]) -> None:
    missing = [part for part in parts if not hasattr(target, part)]
    if missing:
        hint = "; it is a handler: name it with --handler" if hasattr(target, "received") else ""
        kind = "framer" if parts is _OF_FRAMERS else "framing"
        raise UnusableFraming(
            f"{excerpt(name)} is no {kind}: it lacks {', '.join(missing)}"
            f"{hint or f' (see echod.{kind.capitalize()})'}{definition_of(target)}"
        )
