r"""The conversations of `script`: a text that reads like a transcript, seen from the server.

Pure: a text in, steps out, and a conversation that is given bytes and says the next action. Each
line of the text is one of these; empty lines, and lines that begin with `#`, are skipped.

===================  ==========================================================================
`> TEXT`             send the text and CRLF. `\1` is a group of the last match; `\r`, `\n`, `\t`,
                     `\\` and `\xNN` are as in Python
`>- TEXT`            the same, without CRLF
`< REGEX`            expect a line that matches as a whole; one more line for each `\n` in it
`until REGEX`        skip lines up to one that matches as a whole
`wait SECONDS`       wait
`close`, `reset`     end the connection, by FIN or by RST
`repeat [COUNT]`     repeat the lines up to `end`; without a count for ever
`repeat any`         for ever: take the first `<` of these lines that matches what has come, and
                     the steps behind it, up to the next `<`
`end`                the end of `repeat`
===================  ==========================================================================

After its last line the connection closes. A client's lines may end in CRLF or LF.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from echod.errors import UserError

# The most input that may wait for a match, in bytes.
MOST = 65536
# The longest wait, in seconds: more is probably a mistake.
LONGEST = 86400.0

_ESCAPE = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|([0-9]+)|(.)|$)", re.DOTALL)
_NAMED = {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"\\": b"\\"}


class ScriptError(UserError):
    """A script cannot be used; the text has the line's number and the reason."""


class Mismatch(Exception):
    """The client has not said what the script expects; the text says line, expected and got.

    Attributes:
        line: the line of the script.
        expected: the text of that line.
        got: what the client has sent, as a literal, or "the end of the stream".
    """

    def __init__(self, line: int, expected: str, got: str) -> None:
        super().__init__(f"line {line}: expected {expected}, got {got}")
        self.line = line
        self.expected = expected
        self.got = got


@dataclass(frozen=True)
class Send:
    """Send some text: bytes, and the numbers of groups."""

    number: int
    parts: tuple[bytes | int, ...]


@dataclass(frozen=True)
class Expect:
    """Expect so many lines; `skips`: after any number of others."""

    number: int
    text: str
    pattern: re.Pattern[bytes]
    lines: int
    skips: bool = False


@dataclass(frozen=True)
class Wait:
    """Wait."""

    seconds: float


@dataclass(frozen=True)
class End:
    """End the connection."""

    resets: bool


@dataclass(frozen=True)
class Repeat:
    """Repeat steps, `count` times or for ever."""

    count: int | None
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Choose:
    """For ever: take the branch whose first step matches."""

    branches: tuple[tuple[Expect, tuple[Step, ...]], ...]


Step = Send | Expect | Wait | End | Repeat | Choose


# The text.


def parse(text: str) -> tuple[Step, ...]:
    """Parse a script.

    Raises:
        ScriptError: a line is wrong.
    """
    return _Parser(text).parse()


def _why_no_line(sign: str, word: str) -> str:
    """Return why a line that begins with this sign, and this word, is none of a script."""
    if sign in "<>":
        return f"a space follows {sign}: write {sign} TEXT"
    if word == "until":
        return "until takes a regular expression"
    if word in ("close", "reset"):
        return f"{word} stands alone"
    return "a line begins with >, >-, <, until, wait, close, reset, repeat, end or #"


class _Parser:
    def __init__(self, text: str) -> None:
        lines = enumerate(text.split("\n"), 1)
        kept = ((number, line.rstrip("\r").lstrip()) for number, line in lines)
        self._lines = [(number, line) for number, line in kept if line and line[0] != "#"]
        self._at = 0
        # How many groups the last `<` has.
        self._groups = 0

    def parse(self) -> tuple[Step, ...]:
        steps = self._block(None)
        if not steps:
            raise ScriptError("1: the script is empty")
        return steps

    def _block(self, opened: int | None) -> tuple[Step, ...]:
        """Parse up to `end`, or to the end of the text if no line has opened the block."""
        steps: list[Step] = []
        while self._at < len(self._lines):
            number, line = self._lines[self._at]
            self._at += 1
            if line.strip() == "end":
                if opened is None:
                    raise ScriptError(f"{number}: end without repeat")
                if not steps:
                    raise ScriptError(f"{opened}: there is nothing to repeat")
                return tuple(steps)
            steps.append(self._step(number, line))
        if opened is not None:
            raise ScriptError(f"{opened}: repeat without end")
        return tuple(steps)

    def _step(self, number: int, line: str) -> Step:
        if line[:2] == ">-" and line[2:3] in ("", " "):
            return Send(number, self._template(number, line[3:]))
        if line[0] == ">" and line[1:2] in ("", " "):
            return Send(number, (*self._template(number, line[2:]), b"\r\n"))
        if line[0] == "<" and line[1:2] in ("", " "):
            return self._expect(number, line[2:])
        word, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if word == "until" and rest:
            return self._expect(number, rest, skips=True)
        if word == "wait":
            return Wait(self._seconds(number, rest))
        if word in ("close", "reset") and not rest:
            return End(word == "reset")
        if word == "repeat":
            return self._repeat(number, rest)
        raise ScriptError(f"{number}: {_why_no_line(line[0], word)}")

    def _expect(self, number: int, text: str, *, skips: bool = False) -> Expect:
        try:
            pattern = re.compile(text.encode())
        except (re.error, OverflowError, RecursionError) as error:
            raise ScriptError(f"{number}: not a regular expression: {error}") from None
        self._groups = pattern.groups
        lines = 1 + len(re.findall(r"(?<!\\)(?:\\\\)*\\n", text))
        if skips and lines > 1:
            raise ScriptError(f"{number}: until takes one line")
        return Expect(number, text, pattern, lines, skips)

    def _template(self, number: int, text: str) -> tuple[bytes | int, ...]:
        data, at = text.encode(), 0
        found: list[bytes | int] = []
        for match in _ESCAPE.finditer(data):
            found.append(data[at : match.start()])
            at = match.end()
            found.append(self._escape(number, match))
        found.append(data[at:])
        return tuple(part for part in found if part != b"")

    def _escape(self, number: int, match: re.Match[bytes]) -> bytes | int:
        if match[1]:
            return bytes.fromhex(match[1].decode())
        if match[2]:
            group = int(match[2][:9])
            if group > self._groups:
                raise ScriptError(f"{number}: the last match has no group {group}")
            return group
        if match[3] in _NAMED:
            return _NAMED[match[3]]
        shown = match[0].decode("utf-8", "replace")
        raise ScriptError(rf"{number}: {shown} is no escape; a backslash is \\")

    def _seconds(self, number: int, text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or float(text) > LONGEST:
            raise ScriptError(f"{number}: wait takes seconds, at most {LONGEST:.0f}")
        return float(text)

    def _repeat(self, number: int, text: str) -> Step:
        if text == "any":
            return self._choose(number, self._block(number))
        if text and not re.fullmatch(r"[1-9][0-9]{0,8}", text):
            raise ScriptError(f"{number}: repeat takes a count, any, or nothing")
        return Repeat(int(text) if text else None, self._block(number))

    def _choose(self, number: int, steps: Sequence[Step]) -> Choose:
        branches: list[tuple[Expect, list[Step]]] = []
        for step in steps:
            if isinstance(step, Expect) and not step.skips:
                branches.append((step, []))
            elif not branches:
                raise ScriptError(f"{number}: after repeat any comes a line that begins with <")
            else:
                branches[-1][1].append(step)
        return Choose(tuple((first, tuple(rest)) for first, rest in branches))


# The conversation.


@dataclass
class Input:
    """The bytes that have come and are not matched yet; and whether no more come."""

    data: bytearray = field(default_factory=bytearray)
    ended: bool = False

    def lines(self, count: int) -> bytes | None:
        """Return the first lines, with their ends; None if there are fewer."""
        at = 0
        for _ in range(count):
            at = self.data.find(b"\n", at) + 1
            if not at:
                return bytes(self.data) if self.ended and self._is_rest(count) else None
        return bytes(self.data[:at])

    def _is_rest(self, count: int) -> bool:
        return bool(self.data) and self.data.count(b"\n") == count - 1

    @property
    def is_over(self) -> bool:
        """Whether nothing is left, and nothing more comes."""
        return self.ended and not self.data


# The next action: bytes to send, a wait, an end; or None, which asks for more input.
Action = bytes | Wait | End | None
_Run = Generator[Action, None, re.Match[bytes] | None]


def converse(steps: Sequence[Step], given: Input) -> Generator[Action, None, None]:
    """Yield the actions of a conversation; it is over when the generator is.

    Args:
        steps: the script.
        given: the client's input, which the caller fills; after None, before it goes on.

    Raises:
        Mismatch: the client has said something else.
    """
    try:
        yield from _steps(steps, given, None)
    except _Over:
        return


class _Over(Exception):
    """The client has ended its stream where a `repeat` for ever could end."""


def _steps(steps: Sequence[Step], given: Input, last: re.Match[bytes] | None) -> _Run:
    for step in steps:
        match step:
            case Send():
                yield b"".join(_filled(part, last) for part in step.parts)
            case Expect():
                last = yield from _expected(step, given)
            case Wait() | End():
                yield step
            case Repeat():
                last = yield from _repeated(step, given, last)
            case Choose():
                while True:
                    yield from _until_input(given)
                    last, then = yield from _chosen(step, given)
                    last = yield from _steps(then, given, last)
    return last


def _repeated(step: Repeat, given: Input, last: re.Match[bytes] | None) -> _Run:
    done = 0
    while step.count is None or done < step.count:
        if step.count is None and isinstance(step.steps[0], Expect):
            yield from _until_input(given)
        last = yield from _steps(step.steps, given, last)
        done += 1
    return last


def _until_input(given: Input) -> Generator[Action, None, None]:
    while not given.data:
        if given.ended:
            raise _Over
        yield None


def _filled(part: bytes | int, last: re.Match[bytes] | None) -> bytes:
    if isinstance(part, bytes):
        return part
    return (last[part] if last is not None else b"") or b""


def _expected(step: Expect, given: Input) -> _Run:
    while True:
        data = given.lines(step.lines)
        if data is None:
            yield from _more(given, step)
            continue
        matched = step.pattern.fullmatch(_without_end(data))
        if matched is None and not step.skips:
            raise _mismatch((step,), data)
        del given.data[: len(data)]
        if matched is not None:
            return matched


def _chosen(
    step: Choose, given: Input
) -> Generator[Action, None, tuple[re.Match[bytes], tuple[Step, ...]]]:
    firsts = tuple(first for first, _ in step.branches)
    while True:
        missing = False
        for first, then in step.branches:
            data = given.lines(first.lines)
            if data is None:
                missing = True
            elif matched := first.pattern.fullmatch(_without_end(data)):
                del given.data[: len(data)]
                return matched, then
        if not missing or given.ended:
            raise _mismatch(firsts, bytes(given.data))
        yield from _more(given, *firsts)


def _more(given: Input, *wanted: Expect) -> Generator[Action, None, None]:
    if given.ended or len(given.data) > MOST:
        raise _mismatch(wanted, bytes(given.data))
    yield None


def _without_end(data: bytes) -> bytes:
    return data.removesuffix(b"\n").removesuffix(b"\r")


def _mismatch(wanted: Sequence[Expect], data: bytes) -> Mismatch:
    expected = " or ".join(one.text for one in wanted)
    got = "the end of the stream" if not data else ascii(data[:200])[1:]
    return Mismatch(wanted[0].number, expected, got)
