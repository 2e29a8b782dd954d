"""The faults, and the tests that check echod's promises about each.

Run as a program (`make docs` does), it writes the table of docs/reliability.md.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent.parent
PAGE = TESTS.parent / "docs" / "reliability.md"
BEGIN = "<!-- The table is written by `make docs`, from the tests. -->\n"
END = "<!-- End of the table. -->\n"

CATALOGUE: Mapping[str, Mapping[int, str]] = {
    "Lost bytes and hangs": {
        1: "A client sends and at once shuts down writing (`nc -N`)",
        2: "The same, with the handler in a thread",
        3: "The same over TLS: the client ends by close_notify, by FIN, or by both",
        4: "SIGTERM while 20 MB of replies are queued",
        5: "The daemon closes while input is unread",
        6: "SIGTERM while a handler's thread is blocked for ever",
        7: "SIGTERM while 30 messages wait for a thread",
        204: "A client connects as the daemon accepts the last ones",
        8: "A handler blocks the event loop",
        9: "Pipelined messages through the pool, each taking a different time",
        10: "A handler raises in a thread",
        11: "`connectionMade` raises",
        12: "`buildProtocol` raises",
        13: "A client sends 100 MB and never reads",
        14: "The clock is set an hour forward, or back",
        15: "Standard output is a pipe without a reader",
        16: "The port is in use",
        72: "A handler waits for its client in `select`, on its descriptor, or in a child process",
        73: "A client resets as soon as it has connected",
        74: "A handler's own error looks like an error of the connection",
        96: "The stream ends while a handler shakes hands in its own TLS",
        97: "A process that a handler has just forked receives a signal",
        98: "A handler uses a descriptor of its connection, where echod does not see it",
        77: "A connection is told to close while a producer is registered",
        208: "A protocol over Twisted's own TLS aborts its connection",
        209: "A client does not read, and data waits for it when the limit for that changes",
        210: "SIGTERM before a client's PROXY header, or the end of its handshake of TLS",
        211: "A program ends in the turn of the event loop in which another is started",
        212: "A program leaves a process behind, where the daemon is process 1",
        213: "A timed call removes the last descriptor in the turn in which it is ready",
        214: "The first request to the control of a daemon with workers",
        215: "300 clients request the status, or the control, at once",
    },
    "Exhaustion": {
        17: "No descriptor is left, and 200 clients connect",
        18: "No descriptor is left in the system, and none in reserve",
        19: "accept fails: ECONNABORTED, EPROTO, ENETDOWN, EPERM",
        20: "Sending fails: ENOBUFS, EAGAIN, ENOMEM",
        21: "The kernel takes a few bytes at a time",
        22: "Waiting for events is interrupted: EINTR",
        23: "A client sends one byte every ten seconds",
        24: "A client sends nothing",
        25: "A client of a TLS port sends nothing",
        26: "A client ignores close_notify",
        27: "Every thread of the pool is blocked",
        28: "More clients than `thread-per-connection` has threads",
        29: "Too many connections, in total or from one address",
        30: "10,000 clients connect and reset",
        31: "A handler forks without end, or allocates memory without end",
        32: "A segment for each byte; a message that never ends",
        33: "5,000 clients connect at once",
        34: "The network loses one packet in twenty",
        35: "The network has little bandwidth",
        36: "The log is on a full disk",
        37: "The reader of the log dies",
        38: "Clients make the log grow",
        69: "A client sends far more messages at once than can be answered in a moment",
        70: "Clients send and vanish while every thread is at work",
        71: "One address opens as many connections as there are threads, or places in a queue",
        216: "A worker has to stop where no thread can be started",
    },
    "Security": {
        39: "A client sends control characters",
        40: "A client sends text that looks like a format string",
        41: "A PROXY header arrives in pieces",
        42: "Greeting and log with a PROXY header",
        43: "A PROXY header is invalid",
        44: "A PROXY header never ends",
        45: "A PROXY header comes from an untrusted address",
        46: "haproxy itself: `send-proxy`, `send-proxy-v2`, LOCAL, TLVs",
        195: "Three hosts behind haproxy are restarted, one after another, under load",
        196: "A host is cut off from its load balancer",
        197: "One host of several answers slowly",
        198: "A load balancer checks the daemon every few seconds",
        47: "TLS below 1.2, renegotiation, early data",
        48: "Plain bytes before the TLS handshake",
        49: "Handlers run as root",
        140: "The user of `--uid` cannot run the program of `exec`",
        50: "The pidfile is a symbolic link",
        51: "`--gid` without `--uid`",
        52: "A plugin is in the current directory",
        53: "Other users can write `dropin.cache`",
        54: "Other users of the machine find a UNIX socket",
        55: "A UDP reply that is larger than its request",
        56: "WebSocket frames: unmasked, fragmented, huge",
        57: "Clients see the metrics, or make them grow",
        58: "A plugin cannot be imported",
        91: "Silent connections to the status",
        92: "A web page in an operator's browser requests the status (DNS rebinding)",
        79: "A ClientHello in pieces; a certificate with an unusual name",
    },
    "Life cycle": {
        59: "SIGHUP",
        60: "A second SIGTERM",
        61: "SIGTERM during the start",
        62: "systemd waits for notifications",
        63: "Socket activation: no names, another process, no socket or two",
        64: "100 restarts under load",
        65: "SIGSTOP for 30 seconds, then SIGCONT",
        66: "A certificate is renewed; a key cannot be read",
        67: "SIGKILL leaves a UNIX socket behind",
        78: "Subprocesses of asyncio and of Twisted, one after the other",
        192: "A reload reads a folder of a thousand certificates",
        80: "SIGHUP meets an unexpected error, or a file that is being written",
        221: "A FIFO, a device or a pipe in place of a file that the settings name",
        222: "The process in the background cannot be forked, or is killed while it starts",
        81: "The log's file is a device or a link, or is moved, removed or truncated",
        82: "Standard streams are closed",
        83: "A handler's module has open files, executors or functions of `atexit`",
        84: "A signal arrives while Python and twistd start, or the parent process has blocked it",
        85: "A handler's module replaces threads and sockets, as gevent and eventlet do",
        86: "A pidfile exists already, of twistd or of another process",
        87: "`--rundir`: the daemon runs in another folder than the one in which it is started",
    },
    "Handlers": {
        68: "A handler fails, or returns `Close`, in the middle of a long read",
        101: "A handler of asyncio streams answers after its client's end of stream",
        102: "SIGTERM while requests wait for a handler of asyncio streams",
        103: "A callback of an asyncio or Twisted protocol raises",
        104: "An asyncio or Twisted protocol goes on writing what its client does not read",
        105: "SIGTERM in the middle of a transaction of an asyncio or Twisted protocol",
        106: "SIGTERM with 1,000 idle clients of an asyncio or Twisted protocol",
        201: "A client connects while the start of the daemon fails",
        199: "The drain's deadline finds a handler of asyncio streams that waits in its `finally`",
        75: "A handler keeps its client's state in context variables",
        76: "A handler hangs, in a thread or in an `await`",
        88: "A handler makes its own factory drain, or abort",
        89: "A handler cannot be made: its constructor raises",
        90: "A handler waits while its client goes away, or after it has gone",
        93: "A handler's exception raises another one while it is being logged",
        94: "A handler prints what clients send, without ever ending the line",
        111: "`exec`: the client, or its program, does not read",
        112: "`exec`: a program does not end, or leaves processes behind",
        113: "`exec`: more clients than processes; the system allows no more",
        218: "`exec`: the program is removed, replaced or damaged while the daemon serves",
        114: "`exec`: SIGTERM while many programs run, idle or at work",
        115: "`exec`: a program writes to its standard error without end",
        116: "A Twisted protocol raises in one of its callbacks",
        117: "A Twisted protocol begins TLS by itself, and bytes in clear follow",
        118: "SIGTERM in the middle of a Twisted protocol's transaction",
        95: "A handler forks, and its child returns, raises or calls `sys.exit`",
        121: "A handler sends to other clients, from any thread",
        122: "A client that is sent to never reads",
        123: "Several threads send to a client while its messages are answered",
        124: "A stream's client is slow, or leaves",
        125: "A stream is cut off",
        126: "A client sends a command in clear behind STARTTLS",
        131: "An `async def` awaits Deferreds and asyncio's awaitables, and its client goes away",
        132: "A service takes long to open, cannot be opened, or takes long to close",
        133: "A handler works on a message for longer than `--handler-timeout`",
        134: "A client resets the connection of a protocol that reads no more",
        135: "A handler begins TLS, by a listener of any kind",
        141: "A listener has certificates for several hosts",
        142: "A client meets a certificate with a mistake (`badtls:`)",
        143: "`--fault` in the handshake, the certificate or the end of TLS",
        150: "`forward`: one side ends its stream, and the other goes on",
        151: "`forward`: the upstream is gone, or answers neither a connect nor a handshake",
        152: "`forward`: one side resets the connection",
        153: "`forward`: one side does not read",
        154: "`chargen`, or a `script` without end: the client does not read",
        155: "SIGTERM while `chargen` generates, or `forward` waits for its upstream",
        146: "One member of a chat of 1,000 never reads",
        147: "A stream of 200 MB to a client that reads 1 MB/s",
        166: "SIGTERM while clients wait to be accepted",
    },
    "Faults on purpose": {
        180: "Any `--fault`, in any model, in clear, over TLS, behind a proxy, on UNIX sockets",
        137: "A `--fault` begins with a message of the client",
        138: "`--fault endless`: a line or a length without end",
        139: "`--fault refuse`, `connect-timeout` or `slow-accept` hits a listener",
        136: "A daemon has no `--fault`, or a fault hits other connections",
        156: "The faults on purpose change while connections are open",
        157: "A fault that holds bytes is taken away",
        194: "A client waits for the port of `badtls:`, and then looks for the files",
        193: "A test's server first needs certificates with mistakes",
        158: "A test runs its client against a server that misbehaves",
        159: "A client meets a server that resets, closes early, falls silent or is slow",
        160: "`--fault reset` ends a connection in the middle of a reply",
        161: "Several `--fault` hit the same connection",
        162: "`--fault` delays, slices or slows down a conversation",
        163: "`--fault` changes, drops, doubles or adds bytes, with a seed",
        164: "SIGTERM in the middle of a `--fault`",
        165: "`--fault stall` lasts longer than a deadline",
    },
    "Workers": {
        170: "A worker is killed, or ended, with `--workers`",
        217: "A worker dies, and its successor cannot start",
        171: "A worker ends again and again, or none can start",
        172: "A worker stands still",
        173: "The supervisor dies, or a signal reaches every process",
        174: "New code, or new settings, for all workers",
        175: "Clients of all workers together reach a limit",
        186: "`--control` with `--workers`",
        203: "Workers hand on what has ended, to a control that remembers it",
        202: "Workers start, are replaced, or end while clients wait in their queues",
        187: "Workers, and a key that only root can read",
        188: "SIGHUP while workers are replaced",
        189: "A handler keeps workers busy that share one queue",
        190: "The code of a service is edited under load, with `--reload`",
        191: "Code that cannot start, with `--reload`",
    },
    "Control and verification": {
        181: "SIGTERM while the daemon is suspended, and clients wait",
        144: "Any number of connections end, with `--journal`",
        145: "A stranger, or a web page in a browser, sends requests to `--control`",
        148: "The listeners are suspended and resumed under load",
        149: "Clients of `--control` are silent, many, or ask for much",
    },
}

NOT_APPLICABLE: Mapping[int, str] = {
    55: "echod has no UDP listener",
    56: "echod has no WebSocket listener",
}


@dataclass(frozen=True)
class Proof:
    """A test that checks a promise.

    Attributes:
        faults: the numbers of the faults.
        promise: the rest of the docstring, as one line.
        path: the test's file, below the folder of tests.
        test: its name.
    """

    faults: tuple[int, ...]
    promise: str
    path: Path
    test: str


def proofs(folder: Path = TESTS) -> list[Proof]:
    """Return the proofs that the docstrings of the tests in `folder` declare."""
    found = (_proofs_in(path, folder) for path in sorted(folder.rglob("test_*.py")))
    return [proof for in_one_file in found for proof in in_one_file]


def _proofs_in(path: Path, folder: Path) -> Iterator[Proof]:
    text = path.read_text()
    if '"""Fault' not in text:
        return  # most files; to parse one takes a hundred times as long
    for node in ast.parse(text).body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = " ".join((ast.get_docstring(node) or "").split())
        if node.name.startswith("test_") and docstring.startswith("Fault"):
            match = re.fullmatch(r"Faults? ((?:\d|, | and |,)+): (.+)", docstring)
            if match is None:
                raise ValueError(f"{path}: {node.name}: not `Fault N: promise`")
            numbers = tuple(int(number) for number in re.findall(r"\d+", match[1]))
            yield Proof(numbers, match[2], path.relative_to(folder), node.name)


def table(found: list[Proof]) -> str:
    """Return the table, as Markdown."""
    lines: list[str] = []
    for heading, faults in CATALOGUE.items():
        lines += [
            f"### {heading}",
            "",
            "| | fault | promise | test |",
            "| --- | --- | --- | --- |",
        ]
        for number, what in faults.items():
            lines += _rows(number, what, found)
        lines.append("")
    return "\n".join(lines)


def _rows(number: int, what: str, found: list[Proof]) -> Iterator[str]:
    """Yield a row for each promise about a fault; the first row names the fault."""
    held: dict[str, list[str]] = {}
    for proof in found:
        if number in proof.faults:
            held.setdefault(proof.promise, []).append(_link(proof))
    if not held:
        reason = NOT_APPLICABLE.get(number)
        held[f"Not applicable: {reason}" if reason else "None yet"] = []
    start = f"| {number} | {what} |"
    for promise, links in held.items():
        yield f"{start} {promise} | {'; '.join(links)} |"
        start = "| | |"


def _link(proof: Proof) -> str:
    path = os.path.relpath(TESTS / proof.path, PAGE.parent)
    return f"[{proof.test.removeprefix('test_').replace('_', ' ')}]({path})"


def page(before: str, found: list[Proof]) -> str:
    """Return the page with the new table in it."""
    head, rest = before.split(BEGIN)
    return f"{head}{BEGIN}\n{table(found)}\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Write the table into the page."""
    found = proofs()
    PAGE.write_text(page(PAGE.read_text(), found))
    held = {number for proof in found for number in proof.faults} | set(NOT_APPLICABLE)
    if left := [n for faults in CATALOGUE.values() for n in faults if n not in held]:
        print(f"no test yet for faults {', '.join(map(str, left))}", file=sys.stderr)


if __name__ == "__main__":
    main()
