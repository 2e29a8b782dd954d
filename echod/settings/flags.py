"""The command line of `twistd echod`: a flag for each setting, and the flags about the file."""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from twisted.python import usage

from echod import __version__
from echod.errors import UserError
from echod.named_files import read_text
from echod.printing import printing
from echod.settings.definitions import ELSEWHERE, SETTINGS, Settings, configure, differences
from echod.settings.schema import (
    Setting,
    SettingError,
    as_file,
    by_section,
    placed,
)
from echod.text import did_you_mean, escape


class Options(usage.Options):
    """The flags, for `twistd`: one for each field of `Settings`, and those about the file.

    Attributes:
        settings: the settings from flags and file.
        flags: the values that were given as flags, by name.
        file: the absolute path of the file; None if none was given.
        text: its content as it was read last.
        arguments: all words of the command line, to hand on to a worker.
        command: the command whose `--help` shows the flags.
    """

    command = "twistd echod"

    longdesc = (
        "A network daemon that makes a service of a handler. By default it greets each client and "
        "echoes its input after OK...; --handler runs your own code instead."
    )

    def __init__(self) -> None:
        super().__init__()
        self.flags: dict[str, Any] = {}
        self.file: Path | None = None
        self.text = ""
        self.arguments: Sequence[str] = ()
        self._only: set[str] = set()

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Read the command line; report an error in one line, with exit code 1."""
        self.arguments = list(sys.argv[1:] if options is None else options)
        try:
            refuse_abbreviations(self.arguments, self.longOpt)
            super().parseOptions(options)
        except (usage.UsageError, UserError) as error:
            said = escape(self.explain(str(error)))
            raise SystemExit(f"echod: {said} (see: {self.command} --help)") from None

    def explain(self, error: str) -> str:
        """Add to an error of `getopt` about an unknown option what may be meant."""
        unknown = re.fullmatch(r"option (--?)(.*) not recognized", error, re.DOTALL)
        if unknown is None:
            return error
        dashes, name = unknown.groups()
        flag = f"{dashes}{name}"
        here = ELSEWHERE.get(name)
        # Elsewhere -p is a port; a twistd option, too, but a rare one: --profile.
        if flag != "-p" and (place := self._place_before_echod(flag)):
            return place
        if here:
            return f"there is no option {flag}; it is given as {here}"
        names = [option.rstrip("=") for option in self.longOpt]
        begin_so = [f"--{each}" for each in names if each.startswith(name)]
        if len(begin_so) > 1:
            meant = f"the options that begin with it are: {', '.join(begin_so)}"
        else:
            meant = did_you_mean(name, names, "--")
        if not meant and (about := _that_mention(name)):
            meant = f"{' and '.join(one.flag for one in about)} may have what you need"
        return f"there is no option {flag}{meant and '; '}{meant}"

    def _place_before_echod(self, flag: str) -> str:
        """Return where this option belongs, if it is an option of twistd or twist; else ""."""
        outer = self.parent
        if outer is None:
            return ""
        name = flag.lstrip("-")
        takes_value = f"{name}=" in outer.longOpt or f"{name}:" in outer.shortOpt
        if not takes_value and name not in (outer.longOpt if flag[1] == "-" else outer.shortOpt):
            return ""
        runner = outer.getSynopsis().split()[1]
        return (
            f"{flag} is an option of {runner}, and stands before echod: "
            f"{runner} {flag}{' ...' if takes_value else ''} echod"
        )

    def parseArgs(self, *arguments: str) -> None:
        """Accept nothing but flags."""
        if arguments:
            raise usage.UsageError(
                f"unexpected argument {arguments[0]!r}; a handler is given as --handler NAME"
            )

    def postOptions(self) -> None:
        """Set `settings`; or only print them, or report that they are good, and exit."""
        self.settings = self.configure()
        if "check" in self._only:
            for useless in [*self.check(), *self.settings.without_effect]:
                print(f"echod: {escape(self.placed(useless))}", file=sys.stderr)
        if "print" in self._only:
            _print_and_exit(as_file(SETTINGS, self.settings))
        if self._only:
            _print_and_exit(f"echod: the configuration is good{self.proviso}\n")

    def configure(self) -> Settings:
        """Read the file, if one was given, and return the settings: at the start, and at a reload.

        Raises:
            SettingError: the file cannot be read, or something in it is wrong.
        """
        self.text = self.read_file()
        return self.configure_from(self.text)

    def configure_from(self, text: str) -> Settings:
        """Return the settings from the flags, and from this text of the file.

        Raises:
            SettingError: something in it is wrong.
        """
        return configure(self.flags, text, str(self.file) if self.file else "")

    def read_file(self) -> str:
        """Return the content of the file; "" if none was given.

        Raises:
            SettingError: the file cannot be read.
        """
        if self.file is None:
            return ""
        try:
            return read_text(self.file, "utf-8-sig")  # some editors begin with a byte order mark
        except OSError as error:
            raise SettingError(f"--config {self.file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise SettingError(f"{self.file}: this is not UTF-8") from None
        except ValueError as error:  # no path can hold NUL
            raise SettingError(f"--config {self.file}: {error}") from None

    def placed(self, error: str, settings: Settings | None = None) -> str:
        """Add to an error where each setting that it names was given.

        Args:
            error: one line, which names settings as flags.
            settings: the new settings; None for those that the daemon was started with.
        """
        chosen = {one.name for one in differences(Settings(), settings or self.settings)}
        return placed(error, self.flags, chosen - set(self.flags), str(self.file))

    @property
    def only_prints(self) -> bool:
        """Whether the settings are printed, and nothing is started."""
        return "print" in self._only

    @property
    def proviso(self) -> str:
        """A caveat about a successful check, to add to its message."""
        return ""

    def check(self) -> list[str]:
        """Check the files and objects that the settings name. Here: nothing.

        Returns:
            A line for each setting that changes nothing with one of them.

        Raises:
            SystemExit: one of them cannot be used.
        """
        return []

    def opt_config(self, path: str) -> None:
        """A TOML file with settings; a flag wins over the file."""
        # Absolute, because at a reload the daemon may be in another folder.
        try:
            self.file = Path(path).absolute()
        except OSError as error:
            raise usage.UsageError(f"--config {path}: {error.strerror}") from None

    def opt_check_config(self) -> None:
        """Check the settings and all they name, without listening; exit with 0 if all is good."""
        self._only.add("check")

    def opt_print_config(self) -> None:
        """Print the settings from flags and file, as a file for --config, and exit."""
        self._only.add("print")

    def opt_version(self) -> NoReturn:
        """Print echod's version, and exit."""
        _print_and_exit(f"echod {__version__}\n")

    def opt_help(self) -> NoReturn:
        """Print this help, and exit."""
        _print_and_exit(str(self))

    opt_h = opt_help

    def getUsage(self, width: int | None = None) -> str:
        """Return the text of `--help`: the settings, in sections."""
        width = width or min(shutil.get_terminal_size().columns, 100)
        lines = textwrap.wrap(self.longdesc, width)
        for section, members in by_section(SETTINGS).items():
            lines += ["", f"{section}:"]
            for one in members:
                flag = f"{one.flag}={one.placeholder}" if one.placeholder else one.flag
                lines += entry(flag, one.sentence, width)
        return "\n".join([*lines, "", "Other options:", *self.entries(width), ""])

    def entries(self, width: int) -> Iterator[str]:
        """Yield the lines of `--help` about the flags that are no settings."""
        for flag in ("config=FILE", "check-config", "print-config", "version", "help"):
            method = getattr(self, f"opt_{flag.partition('=')[0].replace('-', '_')}")
            yield from entry(f"--{flag}", " ".join(method.__doc__.split()), width)


def refuse_abbreviations(words: Sequence[str], options: Iterable[str]) -> None:
    """Refuse the options that `getopt` would complete: `--log-file` is not `--log-files`.

    Args:
        words: a command line.
        options: the long options, as `getopt` takes them.

    Raises:
        UsageError: an option is not written in full, in the words of `getopt`.
    """
    takes_value = {f"--{option.rstrip('=')}": option.endswith("=") for option in options}
    remaining = iter(words)
    for word in remaining:
        flag, equals, _ = word.partition("=")
        if flag == "--":
            return
        if flag.startswith("--") and flag not in takes_value:
            raise usage.UsageError(f"option {flag} not recognized")
        if takes_value.get(flag) and not equals:
            next(remaining, None)  # its value, which may look like an option


def _that_mention(word: str) -> list[Setting]:
    """Return the settings whose help has this word; none if it is too common to tell anything."""
    pattern = re.compile(rf"(?<![a-z]){re.escape(word)}", re.IGNORECASE)
    found = [one for one in SETTINGS if len(word) > 2 and pattern.search(one.text.help)]
    return found if len(found) <= 2 else []


def _print_and_exit(text: str) -> NoReturn:
    with printing():
        print(text, end="")
    raise SystemExit(0)


def entry(flag: str, text: str, width: int) -> Iterator[str]:
    """Yield the lines of `--help` about one flag."""
    yield f"  {flag}"
    yield from textwrap.wrap(
        text, width, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
    )


# Twisted asks for the signature of each method, and to find it out takes long.
_TAKES_TEXT = inspect.signature(lambda _self, _text: None)


def _reader(one: Setting) -> Callable[..., None]:
    """Return the method of `Options` that reads one flag."""

    def read(self: Options, text: str) -> None:
        try:
            value = one.from_flag(text)
        except SettingError as error:
            raise usage.UsageError(f"{one.flag}: {error}") from None
        # For a flag that does not repeat, the last one wins, as for twistd's own flags.
        self.flags[one.name] = (
            (*self.flags.get(one.name, ()), value) if one.text.repeats else value
        )

    read.__signature__ = _TAKES_TEXT  # type: ignore[attr-defined]
    return read


def _switch(one: Setting, value: bool) -> Callable[..., None]:
    """Return the method of `Options` that sets a switch."""

    def switch(self: Options) -> None:
        self.flags[one.name] = value

    return switch


for _one in SETTINGS:
    if _one.native is bool:
        setattr(Options, f"opt_{_one.name}", _switch(_one, True))
        if not _one.name.startswith("no_"):
            setattr(Options, f"opt_no_{_one.name}", _switch(_one, False))
    else:
        setattr(Options, f"opt_{_one.name}", _reader(_one))
