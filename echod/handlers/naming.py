"""Find an object by the text of a flag, `NAME[:key=value,...]`: a handler, or a framing.

NAME is, in this order:

1. `module:object`, imported;
2. a built-in object; no plugin is loaded for it, so none can stop a daemon that runs it;
3. a plugin: see `echod.handlers.plugins`.

A plugin that is broken, or has the name of another one, is an error if it is asked for, and a line
in the list of what is installed; it does not hide any other.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import field, replace
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from echod.errors import UserError
from echod.handlers.importing import GUARD, import_watched
from echod.handlers.kinds import within
from echod.handlers.parameters import Parameters, Unconvertible, convert, parameters_of
from echod.permissions import is_file
from echod.text import escape, excerpt, quoted
from echod.user_code import definition_of, told_with_place
from echod.value import Value

if TYPE_CHECKING:
    from echod.handlers.plugins import Offer

_COMMA = r"a comma within a value: \,"


class Spec(Value):
    """The parsed value of a flag that names an object.

    Attributes:
        name: an installed name, or `module:object`.
        arguments: texts by name.
        text: the original text; "" if there was none.
    """

    name: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    text: str = field(default="", compare=False)

    def __str__(self) -> str:
        if self.text:
            return self.text
        items = (f"{key}={value}".replace(",", "\\,") for key, value in self.arguments.items())
        return ":".join([self.name, *filter(None, [",".join(items)])])


class Installed(NamedTuple):
    """A line in the list of what is installed.

    Attributes:
        name: its name.
        summary: the first line of its documentation.
        origin: its location and its source.
        arguments: its arguments, each with type and default.
        error: why it could not be loaded; "" if it could.
        notes: more about it.
    """

    name: str
    summary: str
    origin: str
    arguments: tuple[str, ...] = ()
    error: str = ""
    notes: str = ""


class Catalogue(NamedTuple):
    """The objects that one flag can name, built in or installed.

    Attributes:
        noun: one of these objects, in a word; the flag has the same name.
        example: the object of a module in errors, as in `module:FUNCTION`.
        builtin: the built-in objects by name.
        error: the class of the errors.
        offers: returns the plugins, broken or not.
    """

    noun: str
    example: str
    builtin: Mapping[str, object]
    error: type[UserError]
    offers: Callable[[], list[Offer]]

    @property
    def flag(self) -> str:
        """The flag that names one of them."""
        return f"--{self.noun}"

    # The text of the flag.

    def parse(self, text: str) -> Spec:
        r"""Parse `NAME[:key=value,...]`; `\,` is a comma within a value, and `\:` a colon.

        Raises:
            UserError: the text has another form.
        """
        if text and not any(mark in text for mark in ":=,"):
            return Spec(text, {}, text)
        match = re.fullmatch(
            r"(?P<name>[^:=,]+(?::[^:=,]+)?)(?::(?P<arguments>[^:=,]+=.*))?", text, re.DOTALL
        )
        if match is None:
            hint = self._with_key(text) or "NAME: an installed name, or module:object"
            raise self.error(f"{quoted(text)} is not of the form NAME[:key=value,...] ({hint})")
        arguments: dict[str, str] = {}
        for item in re.split(r"(?<!\\),", match["arguments"]) if match["arguments"] else ():
            key, equals, value = item.partition("=")
            if not equals or not key.isidentifier():
                meant = key.replace("-", "_") if equals else ""
                hint = self._with_key(text) or _COMMA
                if meant.isidentifier():
                    hint = f"did you mean {meant}?"
                raise self.error(f"{quoted(item)} is not of the form key=value ({hint})")
            if key in arguments:
                raise self.error(f"{quoted(key)} is given twice")
            arguments[key] = re.sub(r"\\([,:;& ])", r"\1", value)
        return Spec(match["name"], arguments, text)

    def _with_key(self, text: str) -> str:
        """Suggest the key that the value of a built-in object's only mandatory argument lacks; ""
        if it has a key.
        """
        name, _, value = text.partition(":")
        takes = parameters_of(self.builtin.get(name))
        if len(takes.required) != 1 or not value:
            return ""
        (key,) = takes.required
        if value.startswith(f"{key}=") or value == key:
            return ""
        escaped = re.sub(r"(?<!\\),", r"\,", value)
        return f"write {excerpt(f'{name}:{key}={escaped}', 200)}"

    def check_separators(self, spec: Spec, parameters: Collection[str]) -> None:
        r"""Refuse `name:a=1:b=2` if `b` is an argument, too: with `\:` it is part of the value.

        Raises:
            UserError: another character than a comma separates two arguments.
        """
        written = spec.text[len(spec.name) + 1 :]
        others = "|".join(re.escape(key) for key in parameters if key not in spec.arguments)
        if not written or not others:
            return
        wrong = re.compile(rf"(?<![\\,])([:;&\s])\s*({others})=")
        if (found := wrong.search(written)) is None:
            return
        right = f"{spec.name}:" + wrong.sub(r",\2=", written)
        raise self.error(
            f"arguments are separated by commas: {excerpt(right, 200)} "
            f"(or, if {found[1]!r} belongs to the value, write \\{escape(found[1])})"
        )

    def convert_arguments(
        self, name: str, takes: Parameters, texts: Mapping[str, str], target: object
    ) -> dict[str, object]:
        """Convert `texts` to the types that the parameters are annotated with.

        Args:
            name: the object's name in errors.
            takes: the parameters of the object.
            texts: the arguments by name.
            target: the object.

        Raises:
            UserError: there is no such parameter, one is missing, or a text does not convert.
        """
        unknown = [key for key in texts if key not in takes.named]
        if unknown and not takes.any_name:
            names = ", ".join(takes.named) or "none"
            raise self.error(
                f"{name} takes no argument {quoted(unknown[0])}; it takes: {names}"
                f"{_right_form(name, unknown[0], texts[unknown[0]], list(takes.named))}"
                f"{definition_of(target)}"
            )
        for key in takes.named:
            if key in takes.required and key not in texts:
                raise self.error(
                    f"{name} needs the argument {key!r}: {name}:{key}=..."
                    f"{_bound(name, target)}{_partial(name, target, key)}"
                )
        try:
            return {
                key: convert(text, takes.named[key]) if key in takes.named else text
                for key, text in texts.items()
            }
        except Unconvertible as error:
            raise self.error(f"{name}: {error}") from None

    # Look-up by name.

    def find(self, name: str) -> object:
        """Return the object with this name.

        Raises:
            UserError: there is none, two plugins have the name, or it cannot be imported.
        """
        if ":" in name:
            return self._import(name, name)
        return self.builtin[name] if name in self.builtin else self._load(self._offered(name))

    def check_name(self, name: str) -> None:
        """Check that `name` could name an object, without importing one.

        Raises:
            UserError: it is neither `module:object` nor the name of exactly one installed object.
        """
        if ":" not in name and name not in self.builtin:
            self._offered(name)

    def _offered(self, name: str) -> Offer:
        """Return the plugin of this name.

        Raises:
            UserError: there is none, or there are two, or it is broken.
        """
        plugins = self._plugins()
        claims = [offer for offer in plugins if offer.name == name]
        if not claims:
            usable = (escape(offer.name) for offer in plugins if not offer.error)
            names = sorted({*self.builtin, *usable})
            broken = any(offer.error for offer in plugins)
            listed = f"; `echod {self.noun}s` says which plugins are broken" if broken else ""
            raise self.error(
                f"no {self.noun} is named {quoted(name)}; installed: {', '.join(names)} "
                f"({self._suggestion(name, names)}){listed}"
            )
        if len(claims) > 1:
            raise self.error(
                f"{quoted(name)} is the name of {len(claims)} plugins: {_origins(claims)}; "
                "give module:object"
            )
        if claims[0].error:
            raise self.error(f"{excerpt(name)}: {claims[0].error}")
        return claims[0]

    def _plugins(self) -> list[Offer]:
        """Return the plugins, each object once for a name; with an error if it cannot be used."""
        found: dict[tuple[str, str], Offer] = {}
        for offer in self.offers():
            if not self._is_builtin(offer):
                found.setdefault((offer.name, offer.target or offer.source), offer)
        return [
            replace(one, error=one.error or self._misnamed(one, found.values()))
            for one in found.values()
        ]

    def _misnamed(self, offer: Offer, others: Iterable[Offer]) -> str:
        """Return why a plugin cannot be selected by its name; "" if it can."""
        instead = f"give {excerpt(offer.target)}"
        if offer.name in self.builtin:
            return f"echod has a built-in {self.noun} {offer.name}; {instead}"
        if any(one.name == offer.name and one != offer for one in others):
            return f"another plugin has the same name; {instead}"
        return (
            "" if self._can_be_named(offer.name) else f"{self.flag} cannot name it so; {instead}"
        )

    def _can_be_named(self, name: str) -> bool:
        try:
            return ":" not in name and self.parse(name).name == name
        except UserError:
            return False

    def _is_builtin(self, offer: Offer) -> bool:
        """Whether this is a built-in object, offered again under its own name."""
        target: Any = self.builtin.get(offer.name)
        return target is not None and offer.target == f"{target.__module__}:{target.__qualname__}"

    def _suggestion(self, name: str, names: Sequence[str]) -> str:
        """Suggest a correction for a name that does not exist."""
        file = Path(f"{_module(name).replace('.', '/')}.py")
        if is_file(file):
            there = excerpt(_module(name))
            return f"{excerpt(str(file))} is in this folder: give {there}:{self.example}"
        if "exec" in self.builtin and is_file(Path(name)):
            return f"if it is a program, write exec:command={excerpt(name)}"
        if close := get_close_matches(name, names, 1):
            return f"did you mean {close[0]}?"
        module, _, attribute = _module(name).rpartition(".")
        if module and attribute:
            return f"or give module:object, as in {excerpt(f'{module}:{attribute}')}"
        return "or give module:object"

    # The list.

    def installed(self, describe: Callable[[str, object], Installed]) -> list[Installed]:
        """Return all objects, by name; a broken one with its error, and a name of several once.

        Args:
            describe: returns the line of an object that has been loaded.
        """
        found = [describe(name, target) for name, target in self.builtin.items()]
        plugins = self._plugins()
        names = [offer.name for offer in plugins if offer.name not in self.builtin]
        contested = {name for name in names if names.count(name) > 1}
        found += [_contested(name, plugins) for name in contested]
        found += [
            self._described(offer, describe) for offer in plugins if offer.name not in contested
        ]
        return sorted(found, key=lambda one: (one.name, one.error, one.origin))

    def _described(self, offer: Offer, describe: Callable[[str, object], Installed]) -> Installed:
        name = excerpt(offer.name)
        if offer.error:
            return Installed(name, "", offer.origin, error=offer.error)
        try:
            return describe(name, self._load(offer))._replace(origin=offer.origin)
        except UserError as error:
            return Installed(name, "", offer.origin, error=str(error))
        except Exception as error:  # the object may raise when it is inspected
            why = f"{name} cannot be used: {told_with_place(error)}"
            return Installed(name, "", offer.origin, error=why)

    # Imports.

    def _load(self, offer: Offer) -> object:
        return self._import(offer.target, offer.name)

    def _import(self, target: str, name: str) -> object:
        module, _, attribute = target.partition(":")
        try:
            return attrgetter(attribute)(import_watched(module))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # importing it may raise anything
            hint = self._hint(error, module, attribute)
            raise self.error(
                f"{excerpt(name)} cannot be imported: {told_with_place(error)}"
                f"{hint and f'; {hint}'}"
            ) from error

    def _hint(self, error: BaseException, module: str, attribute: str) -> str:
        """Return a remedy for a module that exits, or does not exist, or lacks a name."""
        if isinstance(error, SystemExit):
            return f"the module is a program: {GUARD}"
        if module.startswith("/"):
            return _start_in(Path(module), attribute)
        meant = _module(module)
        if meant != module and isinstance(error, (ModuleNotFoundError, TypeError)):
            return f"write {excerpt(f'{meant}:{attribute}')}"
        if isinstance(error, ModuleNotFoundError) and _is_part(error.name, module):
            if module in {*self.builtin, *(offer.name for offer in self.offers())}:
                if keyed := self._with_key(f"{module}:{attribute}"):
                    return keyed
                return f"an argument has a value: {excerpt(f'{module}:{attribute}')}=..."
            if close := get_close_matches(module, (one.stem for one in Path().glob("*.py")), 1):
                return f"did you mean {escape(f'{close[0]}:{attribute}')}?"
            return (
                f"{excerpt(module.replace('.', '/'))}.py has to be in "
                f"{escape(os.getcwd())}, in a folder of PYTHONPATH, or installed"
            )
        if isinstance(error, AttributeError) and module in sys.modules:
            if hidden := _hidden(module):
                found = getattr(sys.modules[module], "__file__", None) or "built into Python"
                return f"that module is {escape(found)}, and hides {escape(hidden)}: rename yours"
            close = get_close_matches(attribute, dir(sys.modules[module]), 1)
            return f"did you mean {escape(f'{module}:{close[0]}')}?" if close else ""
        return ""


def summary(target: object) -> str:
    """Return the first line of an object's documentation, for the list."""
    return escape((inspect.getdoc(within(target)) or "").partition("\n")[0])


def _right_form(name: str, key: str, text: str, parameters: Sequence[str]) -> str:
    """Suggest the correct form of an argument that the object does not take."""
    if not parameters:
        return f"; write: {name}"
    close = get_close_matches(key, parameters, 1)
    word = "did you mean" if close else "as in"
    form = f"{name}:{(close or parameters)[0]}={text}"
    return f"; {word} {excerpt(form)}{'?' if close else ''}"


def _partial(name: str, target: object, key: str) -> str:
    """Suggest how to give a class of the user's own an argument that is no text; "" for a
    function, and for an installed class.
    """
    made = target.func if isinstance(target, functools.partial) else target
    if not isinstance(made, type) or ":" not in name:
        return ""
    return (
        f"; or, for an object, name a partial of it, as in made = functools.partial("
        f"{excerpt(made.__name__)}, {key}=...)"
    )


def _bound(name: str, target: object) -> str:
    """Suggest the method of an object in place of that of a class; "" for anything else."""
    if not inspect.isfunction(target) or inspect.getargs(target.__code__).args[:1] != ["self"]:
        return ""
    module, _, path = name.partition(":")
    owner, _, method = path.rpartition(".")
    form = excerpt(f"{module}:made.{method}")
    return f"; or name the method of an object: {form}, with made = {excerpt(owner)}()"


def _contested(name: str, plugins: Iterable[Offer]) -> Installed:
    """Return the line of a name that several plugins claim."""
    claims = [offer for offer in plugins if offer.name == name]
    why = f"{len(claims)} plugins have this name; give module:object"
    return Installed(excerpt(name), "", _origins(claims), error=why)


def _origins(claims: Iterable[Offer]) -> str:
    return ", ".join(offer.origin for offer in claims)


def _start_in(file: Path, attribute: str) -> str:
    """Return the remedy for the path of a file in place of a module."""
    folder, written = excerpt(str(file.parent), 200), f"{file.stem}:{attribute}"
    if file.is_relative_to(Path.cwd()):
        written = f"{_module(str(file.relative_to(Path.cwd())))}:{attribute}"
        return f"write {excerpt(written)}"
    return f"start in {folder}, or add it to PYTHONPATH, and write {excerpt(written)}"


def _module(path: str) -> str:
    """Return the module that a file's path may mean."""
    return path.removeprefix("./").removesuffix(".py").strip("/").replace("/", ".")


def _hidden(module: str) -> str:
    """Return the path of a module in the current folder that another one hides; "" if none is."""
    own = Path.cwd() / f"{module.replace('.', '/')}.py"
    found = getattr(sys.modules[module], "__file__", None)
    return str(own) if is_file(own) and not (found and own.samefile(found)) else ""


def _is_part(name: str | None, module: str) -> bool:
    """Whether the missing module is the requested one, or a package that contains it."""
    return name is not None and f"{module}.".startswith(f"{name}.")
