"""Every setting, defined once: its name, default, unit, type, check and help are here.

A field of `Settings` is a setting.  Its name gives the flag (`max_message`: `--max-message`) and
the key in a file (`max-message`); its `Text` says how a text becomes a value, and what is said
about it (see `echod.configuration`).  `configure` makes settings of flags and a file; `Options`
is what `twistd` asks for.
"""

from __future__ import annotations

import ipaddress
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from twisted.python import usage

from echod import __version__
from echod.addresses import Network
from echod.configuration import (
    Setting,
    SettingError,
    Text,
    as_file,
    by_section,
    describe,
    escaped_bytes,
    one_of,
    placed,
    read_file,
    seconds,
    seconds_from,
    set_aside,
    setting,
    whole_number,
)
from echod.handlers import BANNER, PREFIX, ConcurrencyModel, HandlerError, HandlerSpec, parse
from echod.limits import LOG_RATE, Limits
from echod.log.lines import FORMATS as LOG_FORMATS
from echod.log.observer import LEVELS as LOG_LEVELS
from echod.messages.framing import FRAMINGS, Chunk, Framing, Length, Line
from echod.printing import printing
from echod.text import escape

DEFAULT_PORT = 8888

# A proxy on the same machine is the one case in which nobody else could stand in for it.
LOOPBACK: tuple[Network, ...] = (
    ipaddress.ip_network("127.0.0.0/8"),
    ipaddress.ip_network("::1/128"),
)


def concurrency_model(text: str) -> ConcurrencyModel:
    """Parse the name of a concurrency model."""
    return ConcurrencyModel(one_of(ConcurrencyModel)(text))


def delimiter_bytes(text: str) -> bytes:
    """Parse a delimiter: at least one byte."""
    value = escaped_bytes(text)
    if not value:
        raise ValueError(r"at least one byte, as in '\r\n'")
    return value


def handler_spec(text: str) -> HandlerSpec:
    """Parse what names a handler, and its arguments."""
    try:
        return parse(text)
    except HandlerError as error:
        raise SettingError(str(error)) from None


def network(text: str) -> Network:
    """Parse a network, by the length of its prefix, or one address."""
    wanted = "a network, as in 10.0.0.0/8 or fd00::/8, or an address"
    # Python would read a netmask too, or its reverse, and the name of an interface.
    if not re.fullmatch("[0-9a-fA-F.:]+(/(0|[1-9][0-9]{0,2}))?", text):
        raise ValueError(wanted)
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(wanted) from None
    if "/" in text and meant.network_address != ipaddress.ip_address(text.partition("/")[0]):
        raise ValueError(f"a network: it has bits beyond its prefix; did you mean {meant}?")
    return meant


def host_name(text: str) -> str:
    """Parse the name of a host, or `*`."""
    if not re.fullmatch(r"\*|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?", text):
        raise ValueError("the name of a host without a port, as in echod.example.org, or *")
    return text


@dataclass(frozen=True)
class Settings:
    """What the daemon was asked to be.

    Raises:
        SettingError: two settings contradict each other.
    """

    port: tuple[int, ...] = setting(
        (),
        Text(
            "TCP port to listen on, on all IPv4 addresses: short for --listen tcp:N; repeats.",
            whole_number(0, 65535),
            unset=f"{DEFAULT_PORT}, where nothing else is listened on",
            repeats=True,
            section="Listening",
            example=(DEFAULT_PORT,),
            replaces="listen",
        ),
    )
    listen: tuple[str, ...] = setting(
        (),
        Text(
            "Where to listen: any Twisted server endpoint string, as in "
            "tcp:8888:interface=127.0.0.1, tcp6:8888, unix:/run/echod/echod.sock or "
            "systemd:name=echod; TLS with tls: before it, as in "
            "tls:8443:certificate=cert.pem:key=key.pem; behind a proxy that sends PROXY headers, "
            "with proxy: before all, as in proxy:tcp:8888; repeats.",
            repeats=True,
            example=("tcp:8888", "tcp6:8888"),
            replaces="port",
        ),
    )
    proxy_trust: tuple[Network, ...] = setting(
        LOOPBACK,
        Text(
            "Where PROXY headers are taken from, by --listen proxy:...: a network, as in "
            "10.0.0.0/8; repeats. Every client of a UNIX socket is trusted.",
            network,
            unset=" and ".join(str(each) for each in LOOPBACK),
            repeats=True,
        ),
    )
    handler: HandlerSpec = setting(
        HandlerSpec("echo"),
        Text(
            "What answers: an installed name (`echod handlers` lists them) or module:object, "
            "with arguments as NAME:key=value,...",
            handler_spec,
            section="The handler, and where it runs",
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
        Limits.threads, Text("Threads of the pool of defer-to-thread.", whole_number(1, 10_000))
    )
    max_queue: int = setting(
        Limits.max_queue,
        Text(
            "How many messages may wait for a thread in defer-to-thread; a client above that is "
            "told so and disconnected; 0: any number.",
            whole_number(0, 10**7),
        ),
    )
    max_threads: int = setting(
        Limits.max_threads,
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
            section="Messages",
        ),
    )
    delimiter: bytes | None = setting(
        None,
        Text(
            r"What ends a line in --framing line; escapes such as \r\n are read.",
            delimiter_bytes,
            unset=escape(Line.delimiter),
            example=b"\r\n",
        ),
    )
    max_message: int | None = setting(
        None,
        Text(
            "The longest message, in bytes; chunk cuts what is longer, line and length refuse it.",
            whole_number(1, 2**31 - 1),
            unset=f"chunk {Chunk.max_message}, line {Line.max_message}, "
            f"length {Length.max_message}",
            unit="bytes",
            example=65536,
        ),
    )
    banner: bytes | None = setting(
        None,
        Text(
            "A line to greet each client with, whatever the handler.",
            escaped_bytes,
            unset=f"the handler's own; echo's is: {escape(BANNER.rstrip())}",
            section="What clients are told",
            example=b"Good day",
            reload=True,
            replaces="no_banner",
        ),
    )
    no_banner: bool = setting(
        False, Text("Send no greeting, whatever the handler.", reload=True, replaces="banner")
    )
    prefix: str | None = setting(
        None,
        Text(
            "What the echo handler puts before each reply.",
            unset=escape(PREFIX),
            example="> ",
        ),
    )
    drain_timeout: float = setting(
        10.0,
        Text(
            "Seconds that clients have, from SIGTERM on, to take the replies to what they sent.",
            seconds,
            unit="seconds",
            section="Stopping",
            reload=True,
        ),
    )
    drain_spread: float = setting(
        0.0,
        Text(
            "Seconds over which connections are told to end at SIGTERM, a few at a time, so that "
            "clients do not all come back at once; 0: tell all at once.",
            seconds,
            unit="seconds",
            reload=True,
        ),
    )
    max_connections: int = setting(
        Limits.max_connections,
        Text(
            "How many connections there may be, over all listeners; 0: as many as the process may "
            "open files, less some.",
            whole_number(0, 10**7),
            section="Limits on clients",
            reload=True,
        ),
    )
    max_connections_per_address: int = setting(
        Limits.max_connections_per_address,
        Text(
            "How many of them may come from one IPv4 address, or one IPv6 /64 network; 0: any "
            "number, and all threads of thread-per-connection and all places in serial's queue "
            "are for one as for many. UNIX sockets have no addresses.",
            whole_number(0, 10**7),
            reload=True,
        ),
    )
    max_accept_rate: int = setting(
        Limits.max_accept_rate,
        Text(
            "How many connections may come in a second, in the long run; 0: any number.",
            whole_number(0, 10**7),
            reload=True,
        ),
    )
    first_byte_timeout: float = setting(
        Limits.first_byte_timeout,
        Text(
            "Seconds after which a client is disconnected that has sent nothing at all; "
            "0: --idle-timeout holds for it too.",
            seconds,
            unit="seconds",
            reload=True,
        ),
    )
    idle_timeout: float = setting(
        Limits.idle_timeout,
        Text(
            "Seconds of silence after which a client is disconnected; 0: never.",
            seconds,
            unit="seconds",
            reload=True,
        ),
    )
    message_timeout: float = setting(
        Limits.message_timeout,
        Text(
            "Seconds that a line, or a message behind its length, may take from its first byte "
            "to its last; one more for each --min-rate bytes of it; 0: for ever.",
            seconds,
            unit="seconds",
            reload=True,
        ),
    )
    min_rate: int = setting(
        Limits.min_rate,
        Text(
            "Bytes a second that a client has to be able to send, within a message, and to "
            "read; 0: none, and then a message has --message-timeout, whatever its size.",
            whole_number(0, 10**9),
            reload=True,
        ),
    )
    write_timeout: float = setting(
        Limits.write_timeout,
        Text(
            "Seconds after which a client is disconnected that does not read its replies, or "
            "reads them at less than --min-rate; 0: never.",
            seconds,
            unit="seconds",
            reload=True,
        ),
    )
    handshake_timeout: float = setting(
        Limits.handshake_timeout,
        Text(
            "Seconds that a TLS handshake may take; 0: for ever.",
            seconds,
            unit="seconds",
            reload=True,
        ),
    )
    max_pending: int = setting(
        Limits.max_pending,
        Text(
            "How much of a client's input is held while its messages wait for their turn, in "
            "bytes; above that it is not read from.",
            whole_number(1, 2**31 - 1),
            unit="bytes",
            reload=True,
        ),
    )
    proxy_timeout: float = setting(
        Limits.proxy_timeout,
        Text(
            "Seconds in which a proxy has to send its PROXY header; 0: for ever.",
            seconds,
            unit="seconds",
            reload=True,
        ),
    )
    serial_timeout: float = setting(
        Limits.serial_timeout,
        Text(
            "Seconds that a silent client may keep others waiting in serial; 0: until "
            "--idle-timeout.",
            seconds,
            unit="seconds",
            reload=True,
        ),
    )
    # A tenth of a second is what a person begins to notice.
    stall_threshold: float = setting(
        0.1,
        Text(
            "Seconds for which a handler may hold the event loop before the log shows where it "
            "is; from 0.01 on, because to look more often costs too much; 0: do not watch.",
            seconds_from(0.01),
            unit="seconds",
            section="Monitoring",
            reload=True,
        ),
    )
    slow_handler: float = setting(
        30.0,
        Text(
            "Seconds for which a call of the handler may last, in a thread or waiting in the "
            "event loop, before the log shows where it is, and for which client; 0: for ever. 30: "
            "half of what proxies commonly wait for an answer.",
            seconds,
            unit="seconds",
            reload=True,
        ),
    )
    status: str = setting(
        "",
        Text(
            "Where to serve health, metrics and a page for people, over HTTP: an endpoint string "
            "as for --listen, without proxy:. Every client that reaches it can read it.",
            unset="nowhere",
            example="tcp:9464:interface=127.0.0.1",
        ),
    )
    status_host: tuple[str, ...] = setting(
        (),
        Text(
            "A name under which --status may be asked for, as Prometheus or a browser says it, "
            "without the port; * for any; repeats. Addresses and localhost are always answered; "
            "any other name could be one that leads a browser here to read the status.",
            host_name,
            unset="addresses and localhost alone",
            repeats=True,
            example=("echod.example.org",),
        ),
    )
    log_format: str = setting(
        "text",
        Text(
            "How the log is written: text, or json (an object a line). Where to is twistd's "
            "--logfile or --syslog.",
            one_of(LOG_FORMATS),
            section="The log",
        ),
    )
    log_level: str = setting(
        "info",
        Text(
            f"The lowest level that is logged: {', '.join(LOG_LEVELS)}.",
            one_of(LOG_LEVELS),
            reload=True,
        ),
    )
    log_rate: int = setting(
        LOG_RATE,
        Text(
            "How many lines of one kind are logged a second, over ten seconds; those above are "
            "counted, and a line says how many there were; 0: no limit.",
            whole_number(0, 1_000_000),
            reload=True,
        ),
    )
    log_files: int = setting(
        10,
        Text(
            "How many files of the log are kept beside the one that is written to, where it goes "
            "to a file: another is begun every million bytes, and at SIGUSR1; 0: all.",
            whole_number(0, 1_000_000),
            reload=True,
        ),
    )

    def __post_init__(self) -> None:
        if self.banner is not None and self.no_banner:
            raise SettingError("--banner and --no-banner contradict each other")
        if self.concurrency is ConcurrencyModel.SERIAL and self.banner is not None:
            raise SettingError(
                "--banner has no effect with --concurrency serial: it greets nobody"
            )
        if self.drain_spread and self.drain_spread >= self.drain_timeout:
            raise SettingError(
                f"--drain-spread ({self.drain_spread:g}) must be shorter than "
                f"--drain-timeout ({self.drain_timeout:g})"
            )
        if self.delimiter is not None and self.framing != "line":
            raise SettingError(f"--delimiter needs --framing line, not {self.framing}")
        self._refuse_to_listen_twice()

    def _refuse_to_listen_twice(self) -> None:
        """Refuse a place that is given twice: the second bind would blame some other process."""
        if number := _repeated(one for one in self.port if one):
            raise SettingError(f"--port: {number} is given twice")
        places = [one for one in self.listen if not re.search(r"(^|:)0(:|$)", one)]
        if place := _repeated(places):
            raise SettingError(f"--listen: {place} is given twice")
        if place := _repeated([*(f"tcp:{number}" for number in set(self.port)), *places]):
            raise SettingError(f"--listen: {place} is given twice, also as --port")

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The endpoint strings to listen on."""
        ports = (f"tcp:{number}" for number in self.port)
        return (*ports, *self.listen) or (f"tcp:{DEFAULT_PORT}",)

    @property
    def handler_spec(self) -> HandlerSpec:
        """The handler, with `--prefix` as the argument that it is."""
        spec = self.handler
        if self.prefix is None:
            return spec
        return replace(spec, arguments={**spec.arguments, "prefix": self.prefix})

    @property
    def about_messages(self) -> list[str]:
        """The flags that were given and say something about messages."""
        about = ("framing", "delimiter", "max_message")
        return [
            one.flag
            for one in SETTINGS
            if one.name in about and getattr(self, one.name) != one.default
        ]

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
        names = {one.name for one in fields(Limits)} & {one.name for one in SETTINGS}
        return Limits(**{name: getattr(self, name) for name in names})


T = TypeVar("T", int, str)


def _repeated(values: Iterable[T]) -> T | None:
    """Return the first of `values` that has been there before; None if each is there once."""
    seen: set[T] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


SETTINGS = describe(Settings)


def configure(flags: Mapping[str, Any], text: str = "", file: str = "") -> Settings:
    """Return the settings that flags and a file ask for; flags win.

    Args:
        flags: values by name, as `Setting.from_flag` returns them.
        text: what is in the file.
        file: what errors call the file; "" where there is none.

    Raises:
        SettingError: something in the file is wrong, or two settings contradict each other.
    """
    written = set_aside(SETTINGS, read_file(SETTINGS, text, file), flags)
    try:
        return Settings(**written, **flags)
    except SettingError as error:
        raise SettingError(placed(str(error), flags, written, file)) from None


def differences(old: Settings, new: Settings) -> list[Setting]:
    """Return the settings whose values differ between the two."""
    return [one for one in SETTINGS if getattr(old, one.name) != getattr(new, one.name)]


def reloaded(old: Settings, new: Settings) -> Settings:
    """Return `old` with all of `new` that a running daemon can take.

    Raises:
        SettingError: that contradicts what only a restart can change.
    """
    taken = {one.name: getattr(new, one.name) for one in SETTINGS if one.text.reload}
    return replace(old, **taken)


class Options(usage.Options):
    """The flags, for `twistd`: one for each field of `Settings`, and those about the file.

    Attributes:
        settings: what flags and file ask for.
        flags: the values that were given as flags, by name.
        file: the path of the file, absolute; None where none was named.
    """

    longdesc = (
        "A network daemon that makes a service of a handler. As it comes, it greets each client "
        "and echoes what it gets behind OK...; --handler runs your own code instead."
    )

    def __init__(self) -> None:
        super().__init__()
        self.flags: dict[str, Any] = {}
        self.file: Path | None = None
        self._only: set[str] = set()

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
        """Freeze what was asked for as `settings`; or only print it, or say that it is good."""
        self.settings = self.configure()
        if "check" in self._only:
            self.check()
        if "print" in self._only:
            _print_and_exit(as_file(SETTINGS, self.settings))
        if self._only:
            _print_and_exit(f"echod: the configuration is good{self.proviso}\n")

    def configure(self) -> Settings:
        """Read the file, if one was named, and return the settings: at the start, and again.

        Raises:
            SettingError: the file cannot be read, or something in it is wrong.
        """
        if self.file is None:
            return configure(self.flags)
        try:
            text = self.file.read_text("utf-8-sig")  # some editors begin with a byte order mark
        except OSError as error:
            raise SettingError(f"--config {self.file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise SettingError(f"{self.file}: this is not UTF-8") from None
        except ValueError as error:  # no path can hold NUL
            raise SettingError(f"--config {self.file}: {error}") from None
        return configure(self.flags, text, str(self.file))

    def placed(self, error: str, settings: Settings | None = None) -> str:
        """Add to an error where each setting that it names was given.

        Args:
            error: one line, which names settings as flags.
            settings: what was asked for; None for what the daemon was started with.
        """
        chosen = {one.name for one in differences(Settings(), settings or self.settings)}
        return placed(error, self.flags, chosen - set(self.flags), str(self.file))

    @property
    def proviso(self) -> str:
        """What a check that has found everything good could not find out."""
        return ""

    def check(self) -> None:
        """Check what the settings name; what is wrong is a `SystemExit`.  Here: nothing more."""

    def opt_config(self, path: str) -> None:
        """A TOML file with settings; a flag wins over the file."""
        # Absolute: when it is read again, the daemon may be in another folder.
        try:
            self.file = Path(path).absolute()
        except OSError as error:
            raise usage.UsageError(f"--config {path}: {error.strerror}") from None

    def opt_check_config(self) -> None:
        """Check the settings and all they name, without listening; exit 0 if all is good."""
        self._only.add("check")

    def opt_print_config(self) -> None:
        """Print the settings that flags and file give, as a file for --config, and exit."""
        self._only.add("print")

    def opt_version(self) -> NoReturn:
        """Print echod's version, and exit."""
        _print_and_exit(f"echod {__version__}\n")

    def opt_help(self) -> NoReturn:
        """Print this, and exit."""
        _print_and_exit(str(self))

    def getUsage(self, width: int | None = None) -> str:
        """Return what `--help` prints: the settings, in sections."""
        width = width or min(shutil.get_terminal_size().columns, 100)
        own = ("config=FILE", "check-config", "print-config", "version", "help")
        lines = textwrap.wrap(self.longdesc, width)
        for section, members in by_section(SETTINGS).items():
            lines += ["", f"{section}:"]
            for one in members:
                flag = f"{one.flag}={one.placeholder}" if one.placeholder else one.flag
                lines += _entry(flag, one.sentence, width)
        lines += ["", "The settings themselves:"]
        for flag in own:
            method = getattr(self, f"opt_{flag.partition('=')[0].replace('-', '_')}")
            lines += _entry(f"--{flag}", " ".join(method.__doc__.split()), width)
        return "\n".join([*lines, ""])


def _print_and_exit(text: str) -> NoReturn:
    with printing():
        print(text, end="")
    raise SystemExit(0)


def _entry(flag: str, text: str, width: int) -> Iterator[str]:
    yield f"  {flag}"
    yield from textwrap.wrap(
        text, width, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
    )


def _reader(one: Setting) -> Callable[..., None]:
    """Return the method of `Options` that reads one flag."""

    def read(self: Options, text: str) -> None:
        try:
            value = one.from_flag(text)
        except SettingError as error:
            raise usage.UsageError(f"{one.flag}: {error}") from None
        # Of what does not repeat, the last one wins, as it does in twistd's own flags.
        self.flags[one.name] = (
            (*self.flags.get(one.name, ()), value) if one.text.repeats else value
        )

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
