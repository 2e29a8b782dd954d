"""Every setting, defined once: its name, default, unit, type, check and help are here.

A field of `Settings` is a setting. Its name gives the flag (`max_message`: `--max-message`) and
the key in a file (`max-message`). Its `Text` holds the help, and the function that parses a value
(see `schema.py`). `configure` makes settings from flags and a file.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from echod.addresses import Network
from echod.handlers.builtin import BANNER, PREFIX
from echod.handlers.contract import ConcurrencyModel
from echod.handlers.framings import FRAMINGS, parse_framing
from echod.handlers.kinds import Defaults
from echod.handlers.lookup import parse
from echod.handlers.naming import Spec
from echod.limits import HIGHEST_SEED, LOG_RATE, Limits
from echod.log.lines import FORMATS as LOG_FORMATS
from echod.log.observer import LEVELS as LOG_LEVELS
from echod.messages.framing import MOST, MOST_PREFIXED, Chunk, Framing, Line
from echod.settings.schema import (
    Need,
    Setting,
    SettingError,
    Text,
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
    without_effect,
)
from echod.text import escape, excerpt, unescaped
from echod.user_code import told_with_place
from echod.value import Value

if TYPE_CHECKING:
    from echod.faults import Rule  # imported once a fault is given

DEFAULT_PORT = 8888

# As many workers as there are processors that the daemon may use.
AUTO = "auto"

MOST_WORKERS = 256

# Trust only a proxy on the same machine by default: no other host can send from these addresses.
LOOPBACK: tuple[Network, ...] = (
    ipaddress.ip_network("127.0.0.0/8"),
    ipaddress.ip_network("::1/128"),
)


def fault_rule(text: str) -> Rule:
    """Parse a fault on purpose.

    Raises:
        FaultError: there is no such fault, or it takes no such key or value.
    """
    from echod.faults import parse_fault  # slow to import, and rarely needed

    return parse_fault(text)


def concurrency_model(text: str) -> ConcurrencyModel:
    """Parse the name of a concurrency model."""
    return ConcurrencyModel(one_of(ConcurrencyModel)(text))


def delimiter_bytes(text: str) -> bytes:
    """Parse a delimiter: at least one byte."""
    value = escaped_bytes(text)
    if not value:
        raise ValueError(r"at least one byte, as in '\r\n'")
    return value


def network(text: str) -> Network:
    """Parse a network with the length of its prefix, or one address."""
    wanted = "a network, as in 10.0.0.0/8 or fd00::/8, or an address"
    # Python would also accept a netmask, or its reverse, and the name of an interface.
    if not re.fullmatch("[0-9a-fA-F.:]+(/(0|[1-9][0-9]{0,2}))?", text):
        raise ValueError(wanted)
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(wanted) from None
    if "/" in text and meant.network_address != ipaddress.ip_address(text.partition("/")[0]):
        raise ValueError(f"a network: it has bits beyond its prefix; did you mean {meant}?")
    return meant


def worker_count(text: str) -> int | str:
    """Parse the number of workers, or `auto`."""
    try:
        return text if text == AUTO else whole_number(0, MOST_WORKERS)(text)
    except ValueError as error:
        raise ValueError(f"{AUTO}, or {error}") from None


def host_name(text: str) -> str:
    """Parse the name of a host, or `*`."""
    if not re.fullmatch(r"\*|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?", text):
        raise ValueError("the name of a host without a port, as in echod.example.org, or *")
    return text


def model_needed(model: ConcurrencyModel) -> Need:
    """Return the need of a concurrency model."""
    return Need(f"--concurrency {model}", lambda settings: settings.concurrency is model)


NEEDS_POOL = model_needed(ConcurrencyModel.DEFER_TO_THREAD)
NEEDS_THREADS = model_needed(ConcurrencyModel.THREAD_PER_CONNECTION)
NEEDS_SERIAL = model_needed(ConcurrencyModel.SERIAL)
NEEDS_PROXY = Need(
    "--listen proxy:...", lambda settings: any(map(_is_proxied, settings.endpoints))
)
NEEDS_TLS = Need("--listen tls:...", lambda settings: any(map(_is_secure, settings.endpoints)))
NEEDS_ADDRESSES = Need(
    "a listener other than unix:", lambda settings: any(map(_has_addresses, settings.endpoints))
)
NEEDS_MESSAGES = Need(
    "a --framing other than chunk", lambda settings: settings.framing.name != "chunk"
)
NEEDS_LOOP_OR_POOL = Need(
    "a --concurrency other than thread-per-connection",
    lambda settings: settings.concurrency is not ConcurrencyModel.THREAD_PER_CONNECTION,
)
NEEDS_PROGRAM = Need("--handler exec", lambda settings: settings.handler.name == "exec")
NEEDS_FAULT = Need("--fault", lambda settings: bool(settings.fault))
NEEDS_CONTROL = Need("--control", lambda settings: bool(settings.control))
NEEDS_STATUS = Need("--status", lambda settings: bool(settings.status))
NEEDS_WORKERS = Need("--workers", lambda settings: bool(settings.workers))


def _is_proxied(endpoint: str) -> bool:
    return endpoint.startswith("proxy:")


def _is_secure(endpoint: str) -> bool:
    return endpoint.removeprefix("proxy:").startswith(("tls:", "ssl:", "starttls:", "badtls:"))


def is_bad_tls(endpoint: str) -> bool:
    """Return whether an endpoint string is one of `badtls:`."""
    return endpoint.removeprefix("proxy:").startswith("badtls:")


def _starts_clear(endpoint: str) -> bool:
    return endpoint.removeprefix("proxy:").startswith("starttls:")


def _has_addresses(endpoint: str) -> bool:
    # A PROXY header brings the address of the proxy's client.
    return not re.match("((|bad|start)tls:|ssl:)?unix:", endpoint)


class Settings(Value):
    """All settings of a daemon.

    Raises:
        SettingError: two settings contradict each other.
    """

    port: tuple[int, ...] = setting(
        (),
        Text(
            "TCP port to listen on, on all IPv4 addresses: short for --listen tcp:N; repeats.",
            whole_number(0, 65535),
            unset=f"{DEFAULT_PORT}, if no other address is given",
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
            "systemd:name=echod. Put tls: before it for TLS, as in "
            "tls:8443:certificate=cert.pem:key=key.pem, starttls: if the handler begins it, or "
            "badtls: for certificates with mistakes, to test clients; "
            "and proxy: first behind a proxy that sends PROXY headers, as in proxy:tcp:8888; "
            "repeats.",
            unset="where --port says",
            repeats=True,
            example=("tcp:8888", "tcp6:8888"),
            replaces="port",
        ),
    )
    proxy_trust: tuple[Network, ...] = setting(
        LOOPBACK,
        Text(
            "Network of proxies whose PROXY headers --listen proxy:... accepts, as in "
            "10.0.0.0/8; repeats. Every client of a UNIX socket is trusted.",
            network,
            unset=" and ".join(str(each) for each in LOOPBACK),
            repeats=True,
            needs=NEEDS_PROXY,
        ),
    )
    handler: Spec = setting(
        Spec("echo"),
        Text(
            "The handler: an installed name (`echod handlers` lists them) or module:object, "
            "with arguments as NAME:key=value,...",
            parse,
            section="The handler",
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
    workers: int | str = setting(
        0,
        Text(
            "How many processes serve the listeners, each with an event loop of its own, under "
            "one supervisor: a number, or auto for one on each processor; 0: the daemon's own "
            "process does it alone.",
            worker_count,
            words=(AUTO,),
        ),
    )
    worker_timeout: float = setting(
        30.0,
        Text(
            "How long the event loop of a worker may be blocked: then the log shows where, and "
            "the worker is killed and replaced; 0: any time.",
            seconds_from(1),
            unit="seconds",
            needs=NEEDS_WORKERS,
            reload=True,
        ),
    )
    threads: int = setting(
        Limits.threads,
        Text("Threads in the pool of defer-to-thread.", whole_number(1, 10_000), needs=NEEDS_POOL),
    )
    max_queue: int = setting(
        Limits.max_queue,
        Text(
            "How many messages may wait for a thread in defer-to-thread; a client above that "
            "limit is told so and disconnected; 0: any number.",
            whole_number(0, 10**7),
            needs=NEEDS_POOL,
        ),
    )
    max_threads: int = setting(
        Limits.max_threads,
        Text(
            "How many connections thread-per-connection serves at once; a client above that "
            "limit is told so and disconnected.",
            whole_number(1, 10_000),
            needs=NEEDS_THREADS,
        ),
    )
    max_processes: int = setting(
        Limits.max_processes,
        Text(
            "How many programs --handler exec runs at once, one for each connection; a client "
            "above that limit is told so and disconnected.",
            whole_number(1, 100_000),
            needs=NEEDS_PROGRAM,
        ),
    )
    framing: Spec = setting(
        Spec("chunk"),
        Text(
            "How input is cut into messages: chunk (the data of one read), line, length (each "
            "message follows its length, 32 bits, big-endian), another installed name "
            "(`echod framings` lists them) or module:object, with arguments as "
            "NAME:key=value,...",
            parse_framing,
            section="Messages",
        ),
    )
    delimiter: bytes | None = setting(
        None,
        Text(
            r"The end of a line in --framing line; may contain escapes such as \r\n. Short for "
            "--framing line:delimiter=TEXT.",
            delimiter_bytes,
            unset=escape(Line.delimiter),
            example=b"\r\n",
        ),
    )
    max_message: int | None = setting(
        None,
        Text(
            "The longest message, in bytes; chunk cuts longer ones, the other framings refuse "
            "them. Short for --framing NAME:max_message=N.",
            whole_number(1, MOST, "bytes"),
            unset=f"chunk {Chunk.max_message}, line {Line.max_message}, length, netstring and "
            f"varint {MOST_PREFIXED}",
            unit="bytes",
            example=65536,
        ),
    )
    banner: bytes | None = setting(
        None,
        Text(
            "The greeting for each client, a line, instead of the handler's own.",
            escaped_bytes,
            unset=f"the handler's own; echo's is: {escape(BANNER.rstrip())}",
            section="Texts for clients",
            example=b"Good day",
            reload=True,
            replaces="no_banner",
        ),
    )
    no_banner: bool = setting(
        False, Text("Send no greeting, not even the handler's.", reload=True, replaces="banner")
    )
    prefix: str | None = setting(
        None,
        Text(
            "The text that the echo handler puts before each reply.",
            unset=escape(PREFIX),
            example="> ",
        ),
    )
    fault: tuple[Rule, ...] = setting(
        (),
        Text(
            "A fault on purpose, to test clients by, as NAME:key=value,...: reset, close, delay, "
            "stall, slice, corrupt and others (`echod faults` lists them); repeats, the fault "
            "nearest to the client first.",
            fault_rule,
            unset="none",
            repeats=True,
            section="Faults on purpose",
            example=("reset:after=10,first=2", "delay:time=0.2"),
        ),
    )
    fault_seed: int | None = setting(
        None,
        Text(
            "The number that decides all chance of --fault: with the same one, clients that "
            "connect in the same order get the same faults.",
            whole_number(0, HIGHEST_SEED),
            unset="another one at each start, which is logged",
            example=1,
            needs=NEEDS_FAULT,
        ),
    )
    control: str = setting(
        "",
        Text(
            "Where to serve the control over HTTP: it lists connections and ends them, changes "
            "the faults on purpose, and suspends the listeners. An endpoint string as for "
            "--listen, without proxy:. A UNIX socket is its user's alone (mode 600) unless it "
            "says mode=; anything else needs a token.",
            unset="nowhere",
            section="Control and verification",
            example="unix:/run/echod/control.sock",
        ),
    )
    control_token_file: str = setting(
        "",
        Text(
            "The file with the token that each request to --control has to have, except on UNIX "
            "sockets; at least 16 characters. SIGHUP reads it again.",
            unset="the environment's ECHOD_CONTROL_TOKEN",
            example="/etc/echod/control-token",
            needs=NEEDS_CONTROL,
        ),
    )
    control_host: tuple[str, ...] = setting(
        (),
        Text(
            "A host name, without the port, by which --control may be requested; * for any; "
            "repeats. Addresses and localhost are always allowed.",
            host_name,
            unset="only addresses and localhost",
            repeats=True,
            example=("echod.example.org",),
            needs=NEEDS_CONTROL,
        ),
    )
    journal: int = setting(
        0,
        Text(
            "How many connections that have ended are remembered, beside the open ones: who, "
            "when, by which listener, how many bytes, and why they ended; 0: none.",
            whole_number(0, 1_000_000),
            example=1000,
            needs=NEEDS_CONTROL,
        ),
    )
    journal_bytes: int = setting(
        0,
        Text(
            "How many of the first bytes of each connection are remembered, as its handler gets "
            "them; 0: none.",
            whole_number(0, 2**20, "bytes"),
            unit="bytes",
            example=1024,
            needs=NEEDS_CONTROL,
        ),
    )
    start_timeout: float = setting(
        60.0,
        Text(
            "Seconds that a service may take to open what it needs before its first client; after "
            "that the start fails; 0: any time.",
            seconds,
            unit="seconds",
            section="Starting",
        ),
    )
    drain_timeout: float = setting(
        10.0,
        Text(
            "Seconds after SIGTERM in which clients can still receive replies to their messages. "
            "A service has the last tenth, at most 1 second, for its part after yield. 0: "
            "disconnect all at once; a service then has half a second.",
            seconds,
            unit="seconds",
            section="Stopping",
            reload=True,
        ),
    )
    drain_spread: float = setting(
        0.0,
        Text(
            "Seconds over which the daemon disconnects clients after SIGTERM, a few at a time, so "
            "that they do not all reconnect at once; 0: all at once.",
            seconds,
            unit="seconds",
            reload=True,
        ),
    )
    max_connections: int = setting(
        Limits.max_connections,
        Text(
            "How many connections may be open on all listeners together; 0: as many as the number "
            "of files that the process may open, less some.",
            whole_number(0, 10**7),
            section="Limits on clients",
            reload=True,
        ),
    )
    max_connections_per_address: int = setting(
        Limits.max_connections_per_address,
        Text(
            "How many of them may come from one IPv4 address, or one IPv6 /64 network; 0: any "
            "number, and one address may also take all threads of thread-per-connection and all "
            "places in serial's queue. UNIX sockets have no addresses.",
            whole_number(0, 10**7),
            reload=True,
            needs=NEEDS_ADDRESSES,
        ),
    )
    max_accept_rate: int = setting(
        Limits.max_accept_rate,
        Text(
            "How many new connections are accepted a second, in the long run; 0: any number.",
            whole_number(0, 10**7),
            reload=True,
        ),
    )
    first_byte_timeout: float = setting(
        Limits.first_byte_timeout,
        Text(
            "Seconds after which a client that has sent nothing at all is disconnected, if "
            "--idle-timeout is not shorter; 0: use --idle-timeout.",
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
            "Seconds that a message in any framing but chunk may take from its first byte to its "
            "last, plus one second for each --min-rate bytes of it; 0: any time.",
            seconds,
            unit="seconds",
            reload=True,
            needs=NEEDS_MESSAGES,
        ),
    )
    min_rate: int = setting(
        Limits.min_rate,
        Text(
            "The lowest rate, in bytes a second, at which a client has to send a message, and to "
            "read; 0: none, and then every message has --message-timeout, even a long one.",
            whole_number(0, 10**9),
            reload=True,
        ),
    )
    write_timeout: float = setting(
        Limits.write_timeout,
        Text(
            "Seconds after which a client that does not read its replies, or reads them at less "
            "than --min-rate, is disconnected; 0: never.",
            seconds,
            unit="seconds",
            reload=True,
        ),
    )
    handshake_timeout: float = setting(
        Limits.handshake_timeout,
        Text(
            "Seconds that a TLS handshake may take; 0: any time.",
            seconds,
            unit="seconds",
            reload=True,
            needs=NEEDS_TLS,
        ),
    )
    max_pending: int = setting(
        Limits.max_pending,
        Text(
            "How many bytes of a client's input are held while its messages wait; above that, the "
            "daemon stops reading from it.",
            whole_number(1, MOST, "bytes"),
            unit="bytes",
            reload=True,
            needs=NEEDS_LOOP_OR_POOL,
        ),
    )
    max_unsent: int = setting(
        Limits.max_unsent,
        Text(
            "How many bytes may wait until a client reads them, beside the reply to its message; "
            "above that, nothing more can be sent to it.",
            whole_number(1, MOST, "bytes"),
            unit="bytes",
            reload=True,
        ),
    )
    proxy_timeout: float = setting(
        Limits.proxy_timeout,
        Text(
            "Seconds in which a proxy has to send its PROXY header; 0: any time.",
            seconds,
            unit="seconds",
            reload=True,
            needs=NEEDS_PROXY,
        ),
    )
    serial_timeout: float = setting(
        Limits.serial_timeout,
        Text(
            "Seconds for which each silent client may keep others waiting in serial; 0: until "
            "--idle-timeout.",
            seconds,
            unit="seconds",
            reload=True,
            needs=NEEDS_SERIAL,
        ),
    )
    # People begin to notice a delay of a tenth of a second.
    stall_threshold: float = setting(
        0.1,
        Text(
            "Seconds for which a handler may block the event loop before the log shows where it "
            "is; at least 0.01, because shorter intervals cost too much; 0: do not check.",
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
            "event loop, before the log shows where it is, and for which client; 0: do not check. "
            "30 is half the time that proxies commonly wait for an answer.",
            seconds,
            unit="seconds",
            reload=True,
        ),
    )
    handler_timeout: float = setting(
        Limits.handler_timeout,
        Text(
            "Seconds that a handler may take for a message, or from one piece of its answer to "
            "the next, without the time in which it waits for the client to read, or for the "
            "client's next bytes. After that the client is disconnected, and what waits in the "
            "event loop is cancelled; a thread cannot be stopped, and counts until the handler "
            "returns. Protocols and programs have no such time; 0: any time.",
            seconds,
            unit="seconds",
            reload=True,
        ),
    )
    status: str = setting(
        "",
        Text(
            "Where to serve health, metrics and a status page over HTTP: an endpoint string as "
            "for --listen, without proxy:. Every client that reaches it can read it.",
            unset="nowhere",
            example="tcp:9464:interface=127.0.0.1",
        ),
    )
    status_host: tuple[str, ...] = setting(
        (),
        Text(
            "A host name, without the port, by which Prometheus or a browser may request "
            "--status; * for any; repeats. Addresses and localhost are always allowed. Other "
            "names are refused because a web page could use one to read the status through a "
            "browser.",
            host_name,
            unset="only addresses and localhost",
            repeats=True,
            example=("echod.example.org",),
            needs=NEEDS_STATUS,
        ),
    )
    log_format: str = setting(
        "text",
        Text(
            "The format of the log: text, or json (one object on each line). twistd's --logfile "
            "or --syslog says where it goes.",
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
            "The most lines of one kind per second, averaged over ten seconds; the rest are "
            "counted, and one line says how many there were; 0: no limit.",
            whole_number(0, 1_000_000),
            reload=True,
        ),
    )
    log_files: int = setting(
        10,
        Text(
            "How many old log files are kept, if the log goes to a file: a new one begins every "
            "million bytes, and at SIGUSR1; 0: all.",
            whole_number(0, 1_000_000),
            reload=True,
        ),
    )

    # The names of those that a flag or a file has given.
    given: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.banner is not None and self.no_banner:
            raise SettingError("--banner and --no-banner contradict each other")
        if self.concurrency is ConcurrencyModel.SERIAL and self.banner is not None:
            raise SettingError(
                "--banner has no effect with --concurrency serial, which sends no greeting: "
                "leave it out, or use another model"
            )
        if self.drain_spread and self.drain_spread >= self.drain_timeout:
            raise SettingError(
                f"--drain-spread ({self.drain_spread:g}) must be shorter than "
                f"--drain-timeout ({self.drain_timeout:g})"
            )
        if self.concurrency is ConcurrencyModel.THREAD_PER_CONNECTION:
            for endpoint in self.clear_until_starttls:
                raise SettingError(
                    f"--listen {excerpt(endpoint)} has no effect with --concurrency "
                    f"{self.concurrency.value}: a handler can begin TLS there only by itself; use "
                    "another model, or tls:"
                )
        if self.workers:
            self.check_workers("--workers")
        self._check_framing()
        self._check_faults()
        self._refuse_to_listen_twice()

    def check_workers(self, flag: str) -> None:
        """Refuse what several workers, or one after another, cannot do.

        Args:
            flag: the flag that asks for workers.

        Raises:
            SettingError: they cannot.
        """
        if self.workers in (0, 1):  # one alone counts, and chooses, for the whole service
            pass
        elif self.concurrency is ConcurrencyModel.SERIAL:
            raise SettingError(
                f"{flag} contradicts --concurrency serial, which serves one client at a time: "
                f"leave out {flag}"
            )
        elif self.fault:
            raise SettingError(
                f"--fault and {flag}: its seed and counts hold for one process: leave out {flag}"
            )
        for endpoint in filter(is_bad_tls, self.endpoints):
            raise SettingError(
                f"--listen {excerpt(endpoint)} and {flag}: each worker would have an "
                f"authority of its own: leave out {flag}"
            )

    def _check_framing(self) -> None:
        """Refuse settings about the framing that it does not take, or that are given twice."""
        framing = self.framing
        if self.delimiter is not None and framing.name in FRAMINGS and framing.name != "line":
            raise SettingError(f"--delimiter needs --framing line, not {framing.name}")
        if self.max_message is not None and framing.name == "fixed":
            raise SettingError(
                "--max-message has no effect with --framing fixed: give fixed:size=N"
            )
        for name in self._framing_arguments:
            if name in framing.arguments:
                given = f"{name}={framing.arguments[name]}"
                raise SettingError(
                    f"--{name.replace('_', '-')} and --framing both give {name}: "
                    f"leave out {excerpt(given)} there"
                )

    def _check_faults(self) -> None:
        """Refuse faults that can hit no connection."""
        for rule in self.fault:
            listeners = [
                endpoint
                for number, endpoint in enumerate(self.endpoints, 1)
                if rule.selection.covers(number, endpoint)
            ]
            if not listeners:
                wanted = excerpt(rule.selection.listener)
                raise SettingError(
                    f"--fault {rule.fault.name}: listener={wanted} is none of the listeners: "
                    f"{escape(', '.join(self.endpoints))}"
                )
            needing = rule.tls_needed_by
            if needing and not any(map(_is_secure, listeners)):
                named = "" if needing == rule.fault.name else f": {needing}"
                raise SettingError(
                    f"--fault {rule.fault.name}{named} needs a listener with TLS, as "
                    "--listen tls:..."
                )

    @property
    def _framing_arguments(self) -> dict[str, str]:
        """The settings that are arguments of the framing, as texts."""
        given: dict[str, str] = {}
        if self.delimiter is not None:
            given["delimiter"] = unescaped(self.delimiter)
        if self.max_message is not None:
            given["max_message"] = str(self.max_message)
        return given

    def _refuse_to_listen_twice(self) -> None:
        """Refuse an address that is given twice: the second bind would blame another process."""
        if number := _repeated(one for one in self.port if one):
            raise SettingError(f"--port: {number} is given twice")
        places = [one for one in self.listen if not re.search(r"(^|:)0(:|$)", one)]
        if place := _repeated(places):
            raise SettingError(f"--listen: {place} is given twice")
        if place := _repeated([*(f"tcp:{number}" for number in set(self.port)), *places]):
            raise SettingError(f"--listen: {place} is given twice, also as --port")

    def with_defaults(self, defaults: Defaults) -> tuple[Settings, list[str]]:
        """Return the settings with those that the handler asks for, and the texts of these.

        Raises:
            SettingError: the handler asks for a value that there is not, or that contradicts
                other settings.
        """
        taken: dict[str, Any] = {}
        by_name = {one.name: one for one in SETTINGS}
        for name in ("framing", "concurrency"):
            text = getattr(defaults, name)
            if text is not None and not self._is_given(name):
                taken[name] = by_name[name].from_flag(text)
        if defaults.banner is not None and not (
            self._is_given("banner") or self._is_given("no_banner")
        ):
            taken |= {"banner": defaults.banner} if defaults.banner else {"no_banner": True}
        changed = replace(self, **taken)
        shown = {name: getattr(defaults, name, None) for name in taken}
        return changed, [
            by_name[name].key + (f" {excerpt(str(text))}" if text else "")
            for name, text in shown.items()
        ]

    def _is_given(self, name: str) -> bool:
        default = next(one.default for one in SETTINGS if one.name == name)
        return name in self.given or getattr(self, name) != default

    @property
    def without_effect(self) -> list[str]:
        """A line for each setting that was given, but changes nothing beside the others."""
        return without_effect(SETTINGS, self)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The endpoint strings to listen on."""
        ports = (f"tcp:{number}" for number in self.port)
        return (*ports, *self.listen) or (f"tcp:{DEFAULT_PORT}",)

    @property
    def trust_files(self) -> dict[str, list[str]]:
        """The files for the authority of wrong certificates, by the endpoint that writes them.

        That is the first one where such a fault may happen; "" is a temporary file.
        """
        found: dict[str, list[str]] = {}
        for rule in self.fault:
            path = getattr(rule.fault, "ca", None)
            if path is None or any(path in paths for paths in found.values()):
                continue
            for number, endpoint in enumerate(self.endpoints, 1):
                if _is_secure(endpoint) and rule.selection.covers(number, endpoint):
                    found.setdefault(endpoint, []).append(path)
                    break
        return found

    @property
    def faults_change(self) -> bool:
        """Whether the control may change the faults on purpose while the daemon runs."""
        return bool(self.control) and not self.workers

    @property
    def worker_count(self) -> int:
        """The number of workers; 0 for none."""
        if self.workers != AUTO:
            return int(self.workers)
        if hasattr(os, "sched_getaffinity"):  # not on macOS
            return min(MOST_WORKERS, len(os.sched_getaffinity(0)))
        return os.cpu_count() or 1

    @property
    def clear_until_starttls(self) -> list[str]:
        """The endpoint strings of listeners whose handler begins TLS."""
        return list(filter(_starts_clear, self.endpoints))

    @property
    def handler_spec(self) -> Spec:
        """The handler, with `--prefix` added to its arguments."""
        spec = self.handler
        if self.prefix is None:
            return spec
        return replace(spec, arguments={**spec.arguments, "prefix": self.prefix})

    @property
    def about_messages(self) -> list[str]:
        """The flags about messages that were given."""
        return self.flags_of(("framing", "delimiter", "max_message"))

    def flags_of(self, names: Iterable[str]) -> list[str]:
        """The flags of those settings among `names` that differ from their defaults."""
        return [
            one.flag
            for one in SETTINGS
            if one.name in names and getattr(self, one.name) != one.default
        ]

    @property
    def framing_spec(self) -> Spec:
        """The framing, with `--delimiter` and `--max-message` added to its arguments."""
        spec = self.framing
        return replace(spec, arguments={**spec.arguments, **self._framing_arguments})

    @property
    def about_greetings(self) -> list[str]:
        """The flags about greetings that were given."""
        return ["--banner"] if self.banner is not None else []

    def make_banner(self, framing: Framing) -> bytes | None:
        """Return the greeting as it is sent; None leaves it to the handler.

        Raises:
            SettingError: it cannot be framed.
        """
        if self.no_banner:
            return b""
        if self.banner is None:
            return None
        try:
            return framing.encode_line(self.banner.removesuffix(b"\n"))
        except ValueError as error:
            raise SettingError(f"--banner: {error}") from None
        except Exception as error:  # of a framing of a user's own
            why = f"{escape(self.framing.name)} cannot frame it: {told_with_place(error)}"
            raise SettingError(f"--banner: {why}") from error

    def make_limits(self) -> Limits:
        """Return the limits on clients."""
        names = {one.name for one in fields(Limits)} & {one.name for one in SETTINGS}
        return Limits(**{name: getattr(self, name) for name in names})


T = TypeVar("T", int, str)


def _repeated(values: Iterable[T]) -> T | None:
    """Return the first of `values` that occurs a second time; None if each occurs once."""
    seen: set[T] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


SETTINGS = describe(Settings)

# Flags and keys that other servers have, and the flags that they are here.
ELSEWHERE = {
    **dict.fromkeys(
        ("address", "bind", "host", "interface"), "--listen tcp:8888:interface=127.0.0.1"
    ),
    **dict.fromkeys(
        ("tls", "ssl", "cert", "certfile", "ssl-certfile", "key", "keyfile", "ssl-keyfile"),
        "--listen tls:8443:certificate=cert.pem:key=key.pem",
    ),
    **dict.fromkeys(("unix", "uds", "socket"), "--listen unix:/run/echod/echod.sock"),
    **dict.fromkeys(("v", "verbose", "debug"), "--log-level debug"),
    **dict.fromkeys(("daemon", "daemonize"), "twistd echod, without -n"),
    "p": "--port 8888",
    "reload": "--reload, an option of echod serve",
    **{name: f"--{name}" for name in ("config", "check-config", "print-config")},
    **dict.fromkeys(("user", "uid"), "--uid USER, an option of twistd"),
    **dict.fromkeys(("log-file", "logfile"), "--logfile FILE, an option of twistd"),
}


def configure(flags: Mapping[str, Any], text: str = "", file: str = "") -> Settings:
    """Return the settings from flags and a file; flags win.

    Args:
        flags: values by name, as `Setting.from_flag` returns them.
        text: the content of the file.
        file: the file's name in errors; "" without a file.

    Raises:
        SettingError: something in the file is wrong, or two settings contradict each other.
    """
    written = set_aside(SETTINGS, read_file(SETTINGS, text, file, ELSEWHERE), flags)
    try:
        return Settings(**written, **flags, given=frozenset({*written, *flags}))
    except SettingError as error:
        raise SettingError(placed(str(error), flags, written, file)) from None


def differences(old: Settings, new: Settings) -> list[Setting]:
    """Return the settings whose values differ between the two."""
    return [one for one in SETTINGS if getattr(old, one.name) != getattr(new, one.name)]


def reloaded(old: Settings, new: Settings) -> Settings:
    """Return `old` with the values of `new` that a running daemon can apply.

    Raises:
        SettingError: they contradict settings that only a restart can change.
    """
    taken = {one.name: getattr(new, one.name) for one in SETTINGS if one.text.reload}
    return replace(old, **taken)
