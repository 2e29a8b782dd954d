"""Every setting, defined once: its name, default, unit, type, check and help are here.

A field of `Settings` is a setting.  Its name gives the flag (`max_message`: `--max-message`); its
`Text` says how a flag's text becomes a value and what `--help` says.  `Options` is what `twistd`
asks for, generated from the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

from twisted.python import usage

from echod import __version__
from echod.escaping import escape, unescape
from echod.framing import FRAMINGS, Chunk, Framing, Length, Line
from echod.handlers import BANNER, PREFIX, ConcurrencyModel, HandlerError, HandlerSpec, parse
from echod.limits import Limits

DEFAULT_PORT = 8888


class SettingError(ValueError):
    """A setting cannot be used; the text says which one, and what is accepted."""


@dataclass(frozen=True)
class Text:
    """How a setting is written.

    Attributes:
        help: what it does, for `--help`.
        parse: from a flag's text to the value; raises ValueError with what the text is not.
        unset: what `--help` gives as the default where that is not a plain value.
        repeats: whether the flag may be given several times; then the value is a tuple.
    """

    help: str
    parse: Callable[[str], Any] = str
    unset: str = ""
    repeats: bool = False


def setting(default: Any, text: Text) -> Any:
    """Return a dataclass field that carries its `text`."""
    return field(default=default, metadata={"text": text})


def whole_number(lowest: int, highest: int, unit: str = "") -> Callable[[str], int]:
    """Return a parser of whole numbers from `lowest` to `highest`."""

    def parse_number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not lowest <= int(text) <= highest:
            raise ValueError(f"a whole number from {lowest} to {highest}{unit}")
        return int(text)

    return parse_number


def seconds(text: str) -> float:
    """Parse a duration in seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 10**7:
        raise ValueError("a number of seconds, 0 or more")
    return value


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """Return a parser that accepts only these names."""
    accepted = [str(name) for name in names]

    def parse_name(text: str) -> str:
        if text not in accepted:
            raise ValueError(f"one of: {', '.join(accepted)}")
        return text

    return parse_name


def concurrency_model(text: str) -> ConcurrencyModel:
    """Parse the name of a concurrency model."""
    return ConcurrencyModel(one_of(ConcurrencyModel)(text))


def escaped_bytes(text: str) -> bytes:
    r"""Parse bytes that may be written with escapes, as in `\r\n`."""
    try:
        return unescape(text)
    except ValueError:
        raise ValueError(r"text in which \n, \r, \t, \\ and \x1b are escapes") from None


def delimiter_bytes(text: str) -> bytes:
    """Parse a delimiter: at least one byte."""
    value = escaped_bytes(text)
    if not value:
        raise ValueError(r"at least one byte, as in '\r\n'")
    return value


def port_endpoint(text: str) -> str:
    """Parse a port number, to the endpoint string that listens there."""
    return f"tcp:{whole_number(0, 65535)(text)}"


@dataclass(frozen=True)
class Settings:
    """What the daemon was asked to be.

    Raises:
        SettingError: two settings contradict each other.
    """

    port: tuple[str, ...] = setting(
        (),
        Text(
            "TCP port to listen on, on all IPv4 addresses: short for --listen tcp:N; repeats.",
            port_endpoint,
            unset=f"{DEFAULT_PORT}, where nothing else is listened on",
            repeats=True,
        ),
    )
    listen: tuple[str, ...] = setting(
        (),
        Text(
            "Where to listen: any Twisted server endpoint string, as in "
            "tcp:8888:interface=127.0.0.1, tcp6:8888, unix:/run/echod.sock or "
            "ssl:8443:privateKey=key.pem:certKey=cert.pem; repeats.",
            repeats=True,
        ),
    )
    handler: HandlerSpec = setting(
        HandlerSpec("echo"),
        Text(
            "What answers: an installed name (`echod handlers` lists them) or module:object, "
            "with arguments as NAME:key=value,...",
            parse,
            unset="echo",
        ),
    )
    concurrency: ConcurrencyModel = setting(
        ConcurrencyModel.REACTOR,
        Text(
            "Where the handler runs: reactor (in the event loop), defer-to-thread (each message "
            "in a pool thread), thread-per-connection (the handler owns the socket) or serial "
            "(one client at a time, one message each).",
            concurrency_model,
        ),
    )
    threads: int = setting(
        16, Text("Threads of the pool of defer-to-thread.", whole_number(1, 10_000))
    )
    max_threads: int = setting(
        256,
        Text(
            "How many connections thread-per-connection serves at once; a client above that is "
            "told so and disconnected.",
            whole_number(1, 10_000),
        ),
    )
    framing: str = setting(
        "chunk",
        Text(
            "How input is cut into messages: chunk (what one read gave), line, or length (each "
            "after its length, 32 bits, big-endian).",
            one_of(FRAMINGS),
        ),
    )
    delimiter: bytes | None = setting(
        None,
        Text(
            r"What ends a line in --framing line; escapes such as \r\n are read.",
            delimiter_bytes,
            unset=escape(Line.delimiter),
        ),
    )
    max_message: int | None = setting(
        None,
        Text(
            "The longest message, in bytes; chunk cuts what is longer, line and length refuse it.",
            whole_number(1, 2**31 - 1),
            unset=f"chunk {Chunk.max_message}, line {Line.max_message}, "
            f"length {Length.max_message}",
        ),
    )
    banner: bytes | None = setting(
        None,
        Text(
            "A line to greet each client with, whatever the handler.",
            escaped_bytes,
            unset=f"the handler's own; echo's is: {escape(BANNER.rstrip())}",
        ),
    )
    no_banner: bool = setting(False, Text("Greet nobody, whatever the handler."))
    prefix: str | None = setting(
        None,
        Text("What the echo handler puts before each reply.", unset=escape(PREFIX)),
    )
    drain_timeout: float = setting(
        10.0,
        Text(
            "Seconds that clients have, from SIGTERM on, to take the replies to what they sent.",
            seconds,
        ),
    )
    idle_timeout: float = setting(
        Limits.idle_timeout,
        Text("Seconds of silence after which a client is disconnected; 0: never.", seconds),
    )
    write_timeout: float = setting(
        Limits.write_timeout,
        Text(
            "Seconds after which a client that does not read its replies is disconnected; "
            "0: never.",
            seconds,
        ),
    )
    serial_timeout: float = setting(
        Limits.serial_timeout,
        Text(
            "Seconds that a silent client may keep others waiting in serial; 0: for ever.",
            seconds,
        ),
    )

    def __post_init__(self) -> None:
        if self.banner is not None and self.no_banner:
            raise SettingError("--banner and --no-banner contradict each other")
        if self.concurrency is ConcurrencyModel.SERIAL and self.banner is not None:
            raise SettingError("--banner is of no use with --concurrency serial: it greets nobody")
        if self.delimiter is not None and self.framing != "line":
            raise SettingError(f"--delimiter needs --framing line, not {self.framing}")

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The endpoint strings to listen on."""
        return (*self.port, *self.listen) or (f"tcp:{DEFAULT_PORT}",)

    @property
    def handler_spec(self) -> HandlerSpec:
        """The handler, with `--prefix` as the argument that it is."""
        spec = self.handler
        if self.prefix is None:
            return spec
        return HandlerSpec(spec.name, {**spec.arguments, "prefix": self.prefix})

    def make_framing(self) -> Framing:
        """Return the framing, with its own defaults where nothing else was said."""
        chosen: dict[str, Any] = {"delimiter": self.delimiter, "max_message": self.max_message}
        given = {name: value for name, value in chosen.items() if value is not None}
        return FRAMINGS[self.framing](**given)

    def make_banner(self, framing: Framing) -> bytes | None:
        """Return the greeting as it goes on the wire; None leaves it to the handler."""
        if self.no_banner:
            return b""
        if self.banner is None:
            return None
        return framing.encode_line(self.banner.removesuffix(b"\n"))

    def make_limits(self) -> Limits:
        """Return the limits on clients."""
        return Limits(
            idle_timeout=self.idle_timeout,
            write_timeout=self.write_timeout,
            serial_timeout=self.serial_timeout,
        )


class Options(usage.Options):
    """The flags, for `twistd`: one for each field of `Settings`."""

    longdesc = (
        "A network daemon that makes a service of a handler. As it comes, it greets each client "
        "and echoes what it gets behind OK...; --handler runs your own code instead."
    )

    def parseOptions(self, options: Any = None) -> None:
        """Read the command line; what is wrong with it is one line, and exit code 1."""
        try:
            super().parseOptions(options)
        except (usage.UsageError, SettingError) as error:
            raise SystemExit(f"echod: {escape(str(error))} (see: twistd echod --help)") from None

    def parseArgs(self, *arguments: str) -> None:
        """Accept nothing but flags."""
        if arguments:
            raise usage.UsageError(f"unexpected argument {arguments[0]!r}")

    def postOptions(self) -> None:
        """Freeze what was given as `settings`."""
        names = {setting.name for setting in fields(Settings)}
        self.settings = Settings(**{name: self[name] for name in names if name in self})

    def opt_version(self) -> NoReturn:
        """Print echod's version, and exit."""
        print(f"echod {__version__}")
        raise SystemExit(0)


def _add_flag(name: str, default: Any, text: Text) -> None:
    """Give `Options` the method that reads one flag."""
    flag = f"--{name.replace('_', '-')}"

    def read(self: Options, value: str) -> None:
        try:
            parsed = text.parse(value)
        except HandlerError as error:
            raise usage.UsageError(f"{flag}: {error}") from None
        except ValueError as error:
            raise usage.UsageError(f"{flag}: {value!r} is not {error}") from None
        self[name] = (*self.get(name, ()), parsed) if text.repeats else parsed

    def switch(self: Options) -> None:
        self[name] = True

    method = switch if default is False else read
    shown = text.unset or (f"{default:g}" if isinstance(default, float) else default)
    method.__doc__ = f"{text.help} [default: {shown}]" if shown else text.help
    setattr(Options, f"opt_{name}", method)


for _setting in fields(Settings):
    _add_flag(_setting.name, _setting.default, _setting.metadata["text"])
