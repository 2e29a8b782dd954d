from __future__ import annotations

import importlib
import os
import socketserver
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any, Optional

import pytest

from echod.handlers.builtin import HANDLERS, Count, Echo
from echod.handlers.contract import ConcurrencyModel, Handler, HandlerError
from echod.handlers.kinds import Kind, kind_of
from echod.handlers.lookup import NAMES, adopt, installed, parse, resolve
from echod.handlers.naming import Spec
from echod.handlers.parameters import described, parameters_of
from tests.support.log import Log
from tests.support.needs import needs_root
from twisted import plugins

REACTOR = ConcurrencyModel.REACTOR
OWN_THREAD = ConcurrencyModel.THREAD_PER_CONNECTION


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module, on the path."""
    (tmp_path / "users_handlers.py").write_text(
        dedent(
            '''
            from __future__ import annotations

            class Inner:
                @staticmethod
                def shout(message: bytes, times: int = 1, loud: bool = False) -> bytes:
                    """Shouts."""
                    return message.upper() * times + (b"!" if loud else b"")

            def conversation(conn): ...

            def tag(message, *, name, gap: bytes = b" ", rate=1.5):
                return name.encode() + gap + message

            instance = Inner()
            instance.received = lambda message: message
            nothing = None

            def deaf(*, loud: bool = False): ...
            unmarked = lambda: asyncio.Protocol()

            class NoSelf:
                def received(message): ...

            class Static:
                @staticmethod
                def received(message): ...

            class TwoMessages:
                def received(self, message, other): ...

            silent = Inner()
            silent.received = lambda: b""

            class NoClient:
                def opened(self): ...
                def received(self, message): ...

            class NoReason:
                def received(self, message): ...
                async def closed(self): ...

            class Heir(NoReason): ...

            heir = Heir()

            class Deaf:
                def opened(self, client): ...
                def received(self): ...
                @staticmethod
                def closed(reason): ...

            class Hooks:
                def opened(self, *anything): ...
                def received(self, message): ...
                closed = print
            '''
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_handlers", raising=False)
    return "users_handlers"


@pytest.fixture
def dropin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> Path:
    """A folder of Twisted plugins with a handler in it."""
    folder = tmp_path / "dropins"
    folder.mkdir()
    (folder / "users_dropin.py").write_text(
        "from echod import HandlerPlugin\n"
        f"shout = HandlerPlugin('dropped', '{module}:Inner.shout')\n"
    )
    monkeypatch.setattr(plugins, "__path__", [*plugins.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "twisted.plugins.users_dropin", raising=False)
    return folder


def test_a_built_in_handler_is_found_by_name() -> None:
    handler = resolve(parse("echo:prefix=\\x3e"), REACTOR)
    assert (handler.kind, handler.target) == (Kind.MESSAGE, Echo)
    assert handler.message_handler().received(b"x") == b">x"


def test_each_connection_has_an_instance_of_its_own() -> None:
    handler = resolve(parse("count:start=5"), REACTOR)
    one, other = handler.message_handler(), handler.message_handler()
    assert one.received(b"a") == b"5: a"
    assert other.received(b"a") == b"5: a"


def test_a_handler_is_found_as_module_and_object(module: str) -> None:
    handler = resolve(parse(f"{module}:Inner.shout:times=2,loud=yes"), REACTOR)
    assert handler.message_handler().received(b"ab") == b"ABAB!"
    plain = resolve(parse(f"{module}:Inner.shout"), REACTOR)
    assert plain.message_handler().received(b"ab") == b"AB"


def test_a_handler_is_found_as_a_twisted_plugin(dropin: Path) -> None:
    assert resolve(parse("dropped"), REACTOR).message_handler().received(b"ab") == b"AB"


def test_an_instance_serves_every_connection(module: str) -> None:
    handler = resolve(parse(f"{module}:instance"), REACTOR)
    assert handler.message_handler() is handler.message_handler()
    with pytest.raises(HandlerError, match="takes no argument 'a'; it takes: none"):
        resolve(parse(f"{module}:instance:a=b"), REACTOR)


def test_an_unmarked_function_is_what_the_model_makes_of_it(module: str) -> None:
    spec = parse(f"{module}:conversation")
    assert resolve(spec, REACTOR).kind is Kind.MESSAGE
    assert resolve(spec, OWN_THREAD).kind is Kind.CONNECTION


def test_arguments_become_what_the_parameters_are_annotated_with(module: str) -> None:
    handler = resolve(parse(rf"{module}:tag:name=n,gap=\t,rate=2"), REACTOR)
    assert handler.arguments == {"name": "n", "gap": b"\t", "rate": 2.0}
    assert handler.message_handler().received(b"m") == b"n\tm"


def test_an_argument_that_may_be_none_is_converted_too() -> None:
    def pad(
        message: bytes,
        width: int | None = None,
        fill: Optional[bytes] = None,  # noqa: UP045 - as users write it
    ) -> bytes:
        return message

    handler = adopt(pad, REACTOR, arguments={"width": "7", "fill": r"\t"})
    assert handler.arguments == {"width": 7, "fill": b"\t"}
    with pytest.raises(HandlerError, match="pad: width=wide is not of type int"):
        adopt(pad, REACTOR, arguments={"width": "wide"})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nosuch", f"no handler is named 'nosuch'; installed: {', '.join(sorted(HANDLERS))}"),
        ("no.such:thing", "no.such:thing cannot be imported: ModuleNotFoundError"),
        ("echod:nothing", "echod:nothing cannot be imported: AttributeError"),
        ("users_handlers:nothing", "None is not callable"),
        ("eco", r"no handler is named 'eco'; installed: .* \(did you mean echo\?\)"),
        ("greeter.Greeter", r"or give module:object, as in greeter:Greeter\)"),
        ("./greeter.py", r"\(or give module:object\)"),
        ("no.such:thing", r"no/such\.py has to be in /.*, in a folder of PYTHONPATH, or inst"),
        ("echo:prefix", "an argument has a value: echo:prefix=..."),
        ("exec:tr a-z A-Z", "; write exec:command=tr a-z A-Z$"),
        ("exec:command", "an argument has a value: exec:command=..."),
        ("exec:tr a,b A,B", r"\(write exec:command=tr a\\,b A\\,B\)"),
        ("exec:env A=b", r"\(write exec:command=env A=b\)"),
        ("nosuch.py:thing", "nosuch.py:thing cannot be imported: .*; write nosuch:thing"),
        ("./no/such.py:thing", "; write no.such:thing"),
        ("users_handlers:conversion", "did you mean users_handlers:conversation\\?"),
        ("users_handlers:importing.x", "AttributeError: .*importing"),
        (
            "echo:colour=red",
            "echo takes no argument 'colour'; it takes: banner, prefix; as in echo:banner=red",
        ),
        ("echo:prefx=>", r"it takes: banner, prefix; did you mean echo:prefix=>\?"),
        ("upper:x=1", "upper takes no argument 'x'; it takes: none; write: upper"),
        *(
            (
                f"echo:prefix=a{wrong}banner=b",
                r"arguments are separated by commas: echo:prefix=a,banner=b \(or, if '.' belongs",
            )
            for wrong in (":", ";", "&", " ", ": ")
        ),
        (
            "count:start=soon",
            "count: start=soon is not of type int: write a whole number, as in 6",
        ),
        ("count:start=1_0", "count: start=1_0 is not of type int"),
        ("count:start=\u0967", "is not of type int"),
        ("users_handlers:tag:name=n,rate=nan", "rate=nan is not of type float"),
        (
            "users_handlers:tag:name=n,rate=1_0",
            "rate=1_0 is not of type float: write a number, as in 90 or 0.5$",
        ),
        ("count:start=" + "9" * 5000, r"start=9{57}\.\.\. is not of type int"),
        (
            "users_handlers:Inner.shout:loud=perhaps",
            "loud=perhaps is not of type bool: write true or false$",
        ),
        ("users_handlers:tag", "needs the argument 'name': users_handlers:tag:name=..."),
        (
            "users_handlers:NoClient.received",
            r"; or name the method of an object: users_handlers:made.received, with made = NoCl",
        ),
        (
            "users_handlers:deaf",
            r"users_handlers:deaf takes no message: let its parameters be \(message\)",
        ),
        (
            "users_handlers:unmarked",
            r"be \(message\); if it makes a protocol, mark it with @protocol_factory$",
        ),
        ("users_handlers:NoSelf", r"takes no message: let its parameters be \(self, message\)"),
        (
            "users_handlers:TwoMessages",
            r"takes no message: let its parameters be \(self, message\)",
        ),
        ("users_handlers:silent", r"takes no message: let its parameters be \(message\)"),
        (
            "users_handlers:NoClient",
            r"NoClient: `opened` takes no client: let its parameters be \(self, client\)$",
        ),
        (
            "users_handlers:NoReason",
            r"NoReason: `closed` takes no reason: let its parameters be \(self, reason\)$",
        ),
        (
            "users_handlers:Heir",
            r"`closed` takes no reason: let its parameters be \(self, reason\)",
        ),
        ("users_handlers:Deaf", r"Deaf takes no message: let its parameters be \(self, message\)"),
        ("users_handlers:heir", r"`closed` takes no reason: let its parameters be \(reason\)"),
    ],
)
def test_what_cannot_be_had_says_why(module: str, text: str, why: str) -> None:
    with pytest.raises(HandlerError, match=why):
        resolve(parse(text), REACTOR)


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        (r"echo:prefix=a\:banner=b", b"a:banner=b"),
        ("echo:prefix=a:banner=b,banner=c", b"a:banner=b"),
        ("echo:prefix=a:colour=b", b"a:colour=b"),
        ("echo:prefix=http://banner?a=b", b"http://banner?a=b"),
    ],
)
def test_a_value_may_hold_what_looks_like_an_argument(text: str, prefix: bytes) -> None:
    assert resolve(parse(text), REACTOR).arguments["prefix"] == prefix


def test_a_module_that_lacks_another_is_not_said_to_be_missing(
    module: str, tmp_path: Path
) -> None:
    (tmp_path / "users_lacking.py").write_text("import users_lacked\n")
    with pytest.raises(HandlerError, match=r"No module named 'users_lacked' \(/.*, line 1\)$"):
        resolve(parse("users_lacking:f"), REACTOR)


def test_a_handler_is_written_as_it_was() -> None:
    text = r"echo:prefix=a\:b\,c\x3e"
    assert str(parse(text)) == text
    assert str(Spec("echo", {"prefix": "a,b"})) == r"echo:prefix=a\,b"


def test_a_module_that_exits_when_it_is_imported_says_so(module: str, tmp_path: Path) -> None:
    (tmp_path / "users_script.py").write_text("import sys\nsys.exit()\n")
    with pytest.raises(HandlerError) as raised:
        resolve(parse("users_script:f"), REACTOR)
    assert str(raised.value) == (
        f"users_script:f cannot be imported: SystemExit ({tmp_path}/users_script.py, line 2); "
        'the module is a program: put what runs it under `if __name__ == "__main__"`'
    )


def test_a_connection_handler_without_a_parameter_is_refused(module: str) -> None:
    with pytest.raises(HandlerError, match="deaf takes no connection: let its parameters be"):
        resolve(parse("users_handlers:deaf"), OWN_THREAD)


@pytest.mark.parametrize(
    "text",
    [
        "users_handlers:Static",
        "users_handlers:instance",
        "users_handlers:Hooks",
        "os:fsencode",
    ],
)
def test_whatever_takes_a_message_will_do(module: str, text: str) -> None:
    assert resolve(parse(text), REACTOR).message_handler().received(b"x") in (None, b"x")


def test_a_handler_that_cannot_run_in_the_model_says_where_it_can() -> None:
    async def wait(message: bytes) -> bytes:
        return message

    with pytest.raises(
        HandlerError,
        match="wait is an async handler: it runs with --concurrency reactor or serial, not def",
    ):
        adopt(wait, ConcurrencyModel.DEFER_TO_THREAD)


def test_a_dropin_that_fails_to_import_hides_no_other(dropin: Path, log: Log) -> None:
    """Fault 58: The error names the plugin and the reason, and other plugins are found."""
    (dropin / "users_broken_dropin.py").write_text("raise RuntimeError('no good')\n")
    *found, broken = installed()
    assert [handler.name for handler in found] == sorted([*HANDLERS, "dropped"])
    assert broken.name == "users_broken_dropin"
    assert broken.origin == str(dropin / "users_broken_dropin.py")
    assert broken.error == "cannot be imported: RuntimeError: no good"
    assert "no good" in "".join(log.take_errors())


@pytest.mark.parametrize("hook", ["opened", "closed"])
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("is_made", [False, True])
def test_a_generator_is_refused_where_no_stream_is_sent(
    hook: str, is_async: bool, is_made: bool
) -> None:
    def pieces(self: object, given: object) -> Iterator[bytes]:
        yield b"never sent"

    async def async_pieces(self: object, given: object) -> AsyncIterator[bytes]:
        yield b"never sent"

    generator = async_pieces if is_async else pieces
    made = type("Greets", (Handler,), {hook: generator, "received": lambda self, message: b""})
    with pytest.raises(HandlerError, match=f"`{hook}` must not yield: send the pieces by client"):
        adopt(made() if is_made else made, REACTOR)


def test_a_builtin_without_a_signature_takes_no_arguments() -> None:
    class NoSignature:
        __signature__ = "none"

        def __call__(self, message: bytes) -> bytes:
            return message

    assert adopt(NoSignature(), REACTOR).kind is Kind.MESSAGE


def test_a_function_handler_is_a_handler() -> None:
    handler = adopt(bytes.upper, REACTOR).message_handler()
    assert isinstance(handler, Handler)
    assert handler.received(b"a") == b"A"
    assert isinstance(adopt(Count, REACTOR).message_handler(), Count)


class Demanding:
    """Can be made of some arguments only."""

    made = 0

    def __init__(self, *, size: int = 1) -> None:
        Demanding.made += 1
        if size < 0:
            raise OSError("no room")
        if not size:
            raise ValueError("size must\nnot be 0")

    def received(self, message: bytes) -> bytes:
        return message


def test_a_constructor_that_never_succeeds_is_found_by_a_trial() -> None:
    for size in ("1", "-1", "0"):
        Demanding.made = 0
        handler = adopt(Demanding, ConcurrencyModel.REACTOR, "x:Demanding", {"size": size})
        assert Demanding.made == 0
        if size == "0":
            with pytest.raises(HandlerError) as caught:
                handler.try_constructor()
            said, line = str(caught.value).rsplit(" line ", 1)
            assert said == (
                r"x:Demanding cannot be made: ValueError: size must\nnot be 0"
                f" ({__file__},"
            )
            assert line == f"{Demanding.__init__.__code__.co_firstlineno + 5})"
        else:
            handler.try_constructor()
        assert Demanding.made == 1


def test_only_a_class_of_message_handlers_is_tried() -> None:
    calls: list[object] = []

    class Lines(socketserver.StreamRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            calls.append(arguments)

    for target, model in (
        (calls.append, ConcurrencyModel.REACTOR),
        (Demanding(), ConcurrencyModel.REACTOR),
        (Lines, ConcurrencyModel.THREAD_PER_CONNECTION),
    ):
        adopt(target, model).try_constructor()
    assert not calls


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which is at the end of the path, as in the daemon."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return tmp_path


def test_a_module_that_the_standard_library_hides_is_named_with_the_one_found(here: Path) -> None:
    (here / "email.py").write_text("def mine(message): ...\n")
    with pytest.raises(HandlerError, match=r"that module is /.*/email/__init__\.py") as raised:
        resolve(parse("email:mine"), REACTOR)
    assert str(raised.value).endswith(f"and hides {here / 'email.py'}: rename yours")


@pytest.mark.parametrize(
    "helper", ["\n1 / 0\n", "\nimport nosuchmod\n", "\nraise SystemExit(1)\n"]
)
def test_an_error_at_import_names_the_file_and_line(
    here: Path, helper: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "users_helper.py").write_text(helper)
    (here / "users_via.py").write_text("import users_helper\n")
    with pytest.raises(HandlerError) as raised:
        resolve(parse("users_via:f"), REACTOR)
    assert f"({here / 'users_helper.py'}, line 2)" in str(raised.value)


def test_a_name_without_a_function_finds_the_file_in_the_folder(here: Path) -> None:
    (here / "mine.py").write_text("def f(message): ...\n")
    with pytest.raises(HandlerError, match=r"mine\.py is in this folder: give mine:FUNCTION"):
        resolve(parse("mine"), REACTOR)


def test_a_service_without_a_yield_names_the_line_of_its_own_file(here: Path) -> None:
    (here / "unyielding.py").write_text(
        "import echod\n\n@echod.service\ndef f(service):\n    return 1\n"
    )
    with pytest.raises(HandlerError, match=r"has no `yield`.* \(/.*/unyielding\.py, line 3\)$"):
        resolve(parse("unyielding:f"), REACTOR)


@pytest.mark.parametrize(
    ("definition", "model", "why"),
    [
        ("def f(conn, addr)", REACTOR, "it runs with --concurrency thread-per-connection"),
        ("def f(reader, writer)", REACTOR, "make it async def"),
        ("def f(reader, writer)", OWN_THREAD, "make it async def"),
        ("async def f()", REACTOR, "name the function that it gives to start_server"),
        (
            "async def f(cfg, reader, writer)",
            REACTOR,
            "let its parameters be (reader, writer, *, cfg)",
        ),
    ],
)
def test_the_parameters_of_another_library_get_their_remedy(
    here: Path, definition: str, model: ConcurrencyModel, why: str
) -> None:
    (here / "foreign.py").write_text(f"{definition}: ...\n")
    sys.modules.pop("foreign", None)
    importlib.invalidate_caches()
    with pytest.raises(HandlerError) as caught:
        resolve(parse("foreign:f"), model)
    assert str(caught.value).startswith("foreign:f: ")
    assert str(caught.value).endswith(why)


class Connected:
    """As much of a socket as `_given_the_address` needs."""

    def getpeername(self) -> tuple[str, int]:
        return "192.0.2.1", 60225


def greet(conn: Any, addr: object, size: int = 1) -> object:
    return conn, addr, size


class Room:
    def talk(self, conn: Any, client_address: object, /) -> object:
        return conn, client_address, 1


@pytest.mark.parametrize("target", [greet, Room().talk])
def test_a_second_parameter_for_the_address_is_given_that_of_the_client(target: Any) -> None:
    conn = Connected()
    found = adopt(target, OWN_THREAD)
    assert found.kind is Kind.CONNECTION
    assert found.converse(conn) == (conn, ("192.0.2.1", 60225), 1)
    assert found.name == target.__name__


def test_an_address_is_no_argument_in_the_list_of_handlers(dropin: Path, tmp_path: Path) -> None:
    (tmp_path / "addressed.py").write_text(
        "import socket\ndef loop(conn: socket.socket, addr, size=1): ...\n"
    )
    (dropin / "users_dropin.py").write_text(
        "from echod import HandlerPlugin\nloop = HandlerPlugin('loop', 'addressed:loop')\n"
    )
    (found,) = [one for one in installed() if one.name == "loop"]
    assert found.arguments == ("size: int = 1",)


def test_its_other_arguments_are_converted() -> None:
    conn = Connected()
    found = adopt(greet, OWN_THREAD, arguments={"size": "3"})
    assert found.converse(conn) == (conn, ("192.0.2.1", 60225), 3)
    with pytest.raises(HandlerError, match=r"takes no argument 'sise'"):
        adopt(greet, OWN_THREAD, arguments={"sise": "3"})


def test_an_address_that_is_given_or_has_a_default_is_an_argument() -> None:
    def given(conn: Any, addr: str) -> None: ...
    def default(conn: Any, addr: str = "") -> None: ...

    assert adopt(given, OWN_THREAD, arguments={"addr": "a"}).arguments == {"addr": "a"}
    assert adopt(default, OWN_THREAD).arguments == {}


TYPED = """
from __future__ import annotations
from functools import partial
from typing import TYPE_CHECKING
from twisted.internet.protocol import Protocol
if TYPE_CHECKING:
    import socket
    from pathlib import Path

def f(message: bytes, *, times: int | None = 2, where: Path | None = None) -> Path: ...

def loop(connection: socket.socket, *, size: int = 1) -> None: ...

class Kept:
    def __init__(self, *, where: Path, size: int = 3) -> None:
        self.values = where, size

    def received(self, message: bytes) -> bytes: ...

class Stored(Protocol):
    def __init__(self, store: Path, size: int = 1) -> None: ...

made = partial(Stored, {})
"""


@pytest.fixture
def typed(here: Path) -> Iterator[str]:
    """A module whose annotations name what only type checkers import."""
    (here / "users_typed.py").write_text(TYPED)
    yield "users_typed"
    sys.modules.pop("users_typed", None)


def test_a_type_that_only_type_checkers_import_stands_for_a_text(typed: str) -> None:
    made = resolve(parse(f"{typed}:Kept:where=/tmp,size=5"), REACTOR).message_handler()
    assert made.values == ("/tmp", 5)  # type: ignore[attr-defined]
    handler = resolve(parse(f"{typed}:f:times=3,where=x"), REACTOR)
    assert handler.arguments == {"times": 3, "where": "x"}
    target = NAMES.find(f"{typed}:f")
    assert described(parameters_of(target)) == ("times: int = 2", "where: str")


def test_a_kind_is_told_by_annotations_that_only_type_checkers_import(typed: str) -> None:
    assert kind_of(NAMES.find(f"{typed}:f")) is Kind.MESSAGE
    assert kind_of(NAMES.find(f"{typed}:loop")) is Kind.CONNECTION
    threaded = ConcurrencyModel.THREAD_PER_CONNECTION
    assert resolve(parse(f"{typed}:loop:size=2"), threaded).arguments == {"size": 2}


def test_a_protocol_that_needs_an_object_may_be_a_partial(typed: str) -> None:
    with pytest.raises(HandlerError) as raised:
        resolve(parse(f"{typed}:Stored"), REACTOR)
    assert str(raised.value).endswith(
        "name a partial of it, as in made = functools.partial(Stored, store=...)"
    )
    handler = resolve(parse(f"{typed}:made:size=2"), REACTOR)
    assert handler.kind is Kind.TWISTED_PROTOCOL


def test_an_installed_handler_that_needs_an_argument_is_answered_without_code() -> None:
    with pytest.raises(HandlerError) as raised:
        resolve(parse("forward"), REACTOR)
    assert str(raised.value) == "forward needs the argument 'to': forward:to=..."


def test_a_program_that_is_named_as_a_handler_is_answered_with_exec(here: Path) -> None:
    (here / "talk.sh").touch()
    for written in ("talk.sh", "./talk.sh"):
        with pytest.raises(
            HandlerError, match=f"if it is a program, write exec:command={written}"
        ):
            resolve(parse(written), REACTOR)


def test_a_folder_that_its_user_may_not_enter_hides_no_handler_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_root("become another user")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    tmp_path.chmod(0)
    os.seteuid(65534)
    try:
        assert HANDLERS.keys() <= {offer.name for offer in installed()}
        with pytest.raises(HandlerError, match="no handler is named "):
            resolve(parse(f"{tmp_path}/closed/mine"), REACTOR)
    finally:
        os.seteuid(0)


def test_the_path_of_a_file_is_answered_with_its_module(
    here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (here / "mine.py").write_text("def f(message): ...\n")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for written, remedy in (
        ("mine.py:f", "; write mine:f"),
        ("./mine.py:f", "; write mine:f"),
        (f"{here}/mine.py:f", "; write mine:f"),
        (
            f"{elsewhere}/mine.py:f",
            f"; start in {elsewhere}, or add it to PYTHONPATH, and write mine:f",
        ),
        ("mnie:f", "; did you mean mine:f?"),
    ):
        with pytest.raises(HandlerError) as raised:
            resolve(parse(written), REACTOR)
        assert str(raised.value).endswith(remedy)
