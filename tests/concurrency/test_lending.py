"""Coroutines that await asyncio's and Twisted's awaitables alike, and the tasks lent to them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
import pytest_twisted
import trio
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from echod.concurrency.lending import Lender, LentTask
from echod.concurrency.model import Abandoned, Pending
from echod.concurrency.models import InReactor
from echod.handlers.client import Client
from echod.handlers.contract import Handler
from echod.messages.framing import Chunk, Framing, Line
from tests.support.log import Log
from tests.support.needs import not_here
from tests.support.reactor import reactor
from tests.support.serving import eventually, serving


@pytest.fixture(autouse=True)
def _with_a_loop() -> None:
    if not hasattr(reactor, "_asyncioEventloop"):
        not_here("no asyncio loop runs")


async def sleeps() -> object:
    return await asyncio.sleep(0.001, "slept")


async def yields() -> object:
    await asyncio.sleep(0)
    return "yielded"


async def times_out() -> object:
    try:
        async with asyncio.timeout(0.001):
            await asyncio.sleep(60)
    except TimeoutError:
        return "timed out"
    return None


async def times_out_at_once() -> object:
    try:
        async with asyncio.timeout(0):
            await asyncio.sleep(60)
    except TimeoutError:
        return "timed out"
    return None


async def in_time() -> object:
    async with asyncio.timeout(60):
        return "in time"


async def waits_in_time() -> object:
    async with asyncio.timeout(60):
        return await asyncio.sleep(0, "in time")


async def waits_for() -> object:
    return await asyncio.wait_for(asyncio.sleep(0.001, "in time"), 60)


async def gathers() -> object:
    return await asyncio.gather(sleeps(), yields(), awaits_deferred())


async def groups() -> object:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each()) for each in (sleeps, awaits_deferred)]  # type: ignore[operator,var-annotated]
    return [task.result() for task in tasks]


async def in_a_thread() -> object:
    with ThreadPoolExecutor(1) as threads:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(threads, lambda: "from a thread")


async def awaits_deferred() -> object:
    return await deferLater(reactor, 0.001, lambda: "fired")


async def awaits_both() -> object:
    return [await sleeps(), await awaits_deferred(), await sleeps()]


async def awaits_a_result() -> object:
    return await succeed("there")


async def awaits_a_failure() -> object:
    with contextlib.suppress(ZeroDivisionError):
        await fail(ZeroDivisionError())
    try:
        await deferLater(reactor, 0, lambda: 1 // 0)
    except ZeroDivisionError:
        return "failed"
    return None


async def waits_for_deferred() -> object:
    return await asyncio.wait_for(awaits_deferred(), 60)


async def shields() -> object:
    return await asyncio.shield(asyncio.ensure_future(sleeps()))


async def has_a_task() -> object:
    first = asyncio.current_task()
    await asyncio.sleep(0)
    return first is not None and first is asyncio.current_task()


@pytest.mark.parametrize(
    ("coroutine", "expected"),
    [
        (sleeps, "slept"),
        (yields, "yielded"),
        (times_out, "timed out"),
        (times_out_at_once, "timed out"),
        (in_time, "in time"),
        (waits_in_time, "in time"),
        (waits_for, "in time"),
        (gathers, ["slept", "yielded", "fired"]),
        (groups, ["slept", "fired"]),
        (in_a_thread, "from a thread"),
        (awaits_deferred, "fired"),
        (awaits_both, ["slept", "fired", "slept"]),
        (awaits_a_result, "there"),
        (awaits_a_failure, "failed"),
        (waits_for_deferred, "fired"),
        (shields, "slept"),
        (has_a_task, True),
    ],
)
@pytest.mark.parametrize("framing", [Chunk(), Line()])
@pytest_twisted.ensureDeferred
async def test_a_handler_awaits_what_it_likes(
    coroutine: Any, expected: object, framing: Framing
) -> None:
    """Fault 131: A handler may await Deferreds and asyncio's awaitables alike, from its first line
    on.
    """

    async def handler(message: bytes) -> bytes:
        return repr(await coroutine()).encode()

    async with serving(handler=handler, framing=framing, banner=b"") as server:
        client = await server.connect()
        for _ in range(3):
            client.send(b"x\n")
            await client.receive(framing.encode(repr(expected).encode()))


@pytest_twisted.ensureDeferred
async def test_opened_and_closed_await_what_they_like() -> None:
    closed = []

    class Waiting(Handler):
        async def opened(self, client: Client) -> bytes:
            return repr(await awaits_both()).encode()

        async def closed(self, reason: str) -> None:
            closed.append(await awaits_both())

        def received(self, message: bytes) -> bytes:
            return message

    async with serving(handler=Waiting) as server:
        client = await server.connect()
        await client.receive(b"['slept', 'fired', 'slept']")
        client.finish()
        await client.receive_all()
        await eventually(lambda: closed == [["slept", "fired", "slept"]])


@pytest_twisted.ensureDeferred
async def test_two_handlers_may_wait_for_the_same_future() -> None:
    shared = asyncio.get_running_loop().create_future()
    begun = []

    async def handler(message: bytes) -> bytes:
        begun.append(message)
        return await shared + b"!"

    async with serving(handler=handler, banner=b"") as server:
        clients = [await server.connect() for _ in range(3)]
        for client in clients:
            client.send(b"x")
        await eventually(lambda: len(begun) == 3)
        shared.set_result(b"done")
        for client in clients:
            await client.receive(b"done!")


@pytest_twisted.ensureDeferred
async def test_futures_that_are_waited_for_in_the_same_turn_are_taken_by_each() -> None:
    results: list[object] = []
    shared: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    model = InReactor()

    async def wait() -> str:
        return await shared

    for _ in range(3):
        assert isinstance(model.call(results.append, wait), Pending)
    shared.set_result("done")
    await eventually(lambda: results == ["done"] * 3)


REQUEST: ContextVar[object] = ContextVar("request", default=None)


@pytest_twisted.ensureDeferred
async def test_a_variable_that_is_set_before_waiting_can_be_reset_after_it() -> None:
    """Fault 131: All steps of an `async def` run in the context of its conversation."""
    knew = []

    async def handler(message: bytes) -> bytes:
        knew.append(REQUEST.get())
        token = REQUEST.set(message)
        await asyncio.sleep(0)
        knew.append(REQUEST.get())
        await deferLater(reactor, 0)
        knew.append(REQUEST.get())
        REQUEST.reset(token)
        return message

    async with serving(handler=handler, banner=b"") as server:
        client, other = await server.connect(), await server.connect()
        for each in (client, other, client):
            each.send(b"happy")
            await each.receive(b"happy")
    assert knew == [None, b"happy", b"happy"] * 3


@pytest_twisted.ensureDeferred
async def test_a_variable_outlives_a_message_but_reaches_no_other_client() -> None:
    async def handler(message: bytes) -> bytes:
        before = REQUEST.get()
        await asyncio.sleep(0)
        REQUEST.set(message)
        return repr(before).encode()

    async with serving(handler=handler, banner=b"") as server:
        client, other = await server.connect(), await server.connect()
        client.send(b"a")
        await client.receive(b"None")
        other.send(b"b")
        await other.receive(b"None")
        client.send(b"c")
        await client.receive(b"b'a'")


@pytest.mark.parametrize("wait", ["sleep", "deferred", "task", "timeout", "first"])
@pytest.mark.parametrize("ends", ["reset", "aborted"])
@pytest_twisted.ensureDeferred
async def test_a_cancelled_handler_sees_asyncios_error(wait: str, ends: str) -> None:
    """Fault 131: A handler whose client goes away gets asyncio's `CancelledError`, also when it
    awaits a Deferred.
    """
    begun: list[object] = []
    saw: list[type[BaseException]] = []
    inner: list[str] = []

    async def child() -> None:
        try:
            await asyncio.sleep(60)
        except BaseException as error:
            inner.append(type(error).__name__)
            raise

    async def in_time() -> None:
        async with asyncio.timeout(60):
            await asyncio.sleep(0)
            await Deferred()

    async def later() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(60)

    waits: dict[str, Callable[[], Any]] = {
        "sleep": lambda: asyncio.sleep(60),
        "deferred": Deferred,
        "task": lambda: asyncio.create_task(child()),
        "timeout": in_time,
        "first": later,
    }

    async def handler(message: bytes) -> bytes:
        begun.append(None)
        try:
            await waits[wait]()
        except BaseException as error:
            saw.append(type(error))
            raise
        return message

    async with serving(handler=handler, banner=b"") as server:
        client = await server.connect()
        client.send(b"x")
        await eventually(lambda: bool(begun))
        if wait == "task":
            await deferLater(reactor, 0.01)
        client.reset() if ends == "reset" else server.factory.abort()
        await eventually(lambda: bool(saw))
        assert saw == [asyncio.CancelledError]
        assert inner == (["CancelledError"] if wait == "task" else [])
        await server.factory.drain()
        assert not server.factory.metrics.handler_errors


@pytest.mark.parametrize("awaits", ["future", "deferred", "done", "nothing"])
@pytest_twisted.ensureDeferred
async def test_a_task_that_is_cancelled_before_it_takes_over_cancels_what_is_awaited(
    awaits: str,
) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    deferred: Deferred[None] = Deferred()
    results: list[Any] = []

    async def wait() -> None:
        match awaits:
            case "future":
                await future
            case "deferred":
                await deferred
            case "done":
                await future
            case "nothing":
                await asyncio.sleep(0)

    model = InReactor()
    pending = model.call(results.append, wait)
    assert isinstance(pending, Pending)
    if awaits == "done":
        future.set_result(None)
    model.abandon(pending.handle)
    await eventually(lambda: bool(results))
    assert isinstance(results[0].value, Abandoned)
    if awaits == "future":
        assert future.cancelled()
    if awaits == "deferred":
        assert deferred.called


async def quick() -> None:
    pass


def lent(lender: Lender) -> LentTask | None:
    return lender._idle[0] if lender._idle else None


@pytest_twisted.ensureDeferred
async def test_the_same_task_is_lent_again_and_again() -> None:
    lender, tasks = Lender(asyncio.get_running_loop()), set()

    async def timed() -> None:
        async with asyncio.timeout(60):
            tasks.add(id(asyncio.current_task()))

    for _ in range(10):
        assert lender.start(timed()) is None
        await deferLater(reactor, 0)
    assert len(tasks) == 1
    lender.stop()


@pytest.mark.parametrize("keeps", ["reference", "callback", "cancels", "raises"])
@pytest_twisted.ensureDeferred
async def test_a_task_that_other_code_knows_is_not_lent_again(keeps: str) -> None:
    """Fault 131: Cancelling a task that one message has kept never reaches another message."""
    lender = Lender(asyncio.get_running_loop())
    kept: list[asyncio.Task[Any]] = []
    ended: list[object] = []

    async def keeping() -> None:
        task = asyncio.current_task()
        assert task is not None
        match keeps:
            case "reference":
                kept.append(task)
            case "callback":
                task.add_done_callback(ended.append)
            case "cancels":
                task.cancel()
            case "raises":
                kept.append(task)
                raise ZeroDivisionError

    with contextlib.suppress(ZeroDivisionError):
        assert lender.start(keeping()) is None
    before = lent(lender)
    assert lender.start(quick()) is None
    assert lent(lender) not in (before, None)
    lender.stop()
    await eventually(lambda: all(task.done() for task in kept))
    if keeps == "callback":
        await eventually(lambda: bool(ended))


@pytest_twisted.ensureDeferred
async def test_a_call_within_the_step_of_another_task_has_a_task_of_its_own() -> None:
    model, seen = InReactor(), []

    async def inner() -> None:
        seen.append(asyncio.current_task())

    async def outer() -> None:
        seen.append(asyncio.current_task())
        model.call(pytest.fail, inner)
        seen.append(asyncio.current_task())

    model.call(pytest.fail, outer)
    await Deferred.fromFuture(asyncio.ensure_future(outer()))
    assert seen[0] is seen[2] and seen[3] is seen[5]
    assert seen[0] is not seen[1] and seen[3] is not seen[4]
    model.stop()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("later", [False, True])
@pytest_twisted.ensureDeferred
async def test_no_error_of_a_handler_ends_the_loop(
    error: type[BaseException], later: bool, log: Log
) -> None:
    async def handler(message: bytes) -> bytes:
        if later:
            await asyncio.sleep(0)
        raise error("on purpose")

    async with serving(handler=handler, banner=b"") as server:
        client = await server.connect()
        client.send(b"x")
        assert await client.receive_all() == b""
        await eventually(lambda: server.factory.metrics.ended == {"handler error": 1})
        (shown,) = log.take_errors()
        assert "on purpose" in shown


@pytest.mark.parametrize("wrong", ["a number", "a Deferred", "a coroutine"])
@pytest.mark.parametrize("framing", [Chunk(64), Line()])
@pytest.mark.parametrize("before", [0, 1, 3])
@pytest_twisted.ensureDeferred
async def test_a_coroutines_result_means_the_same_at_the_first_message_and_later(
    wrong: str, framing: Framing, before: int, log: Log
) -> None:
    inner = sleeps()
    results: dict[bytes, Any] = {
        b"reply": b"reply",
        b"nothing": None,
        b"wrong": {"a number": 1, "a Deferred": succeed(b""), "a coroutine": inner}[wrong],
    }

    async def handler(message: bytes) -> Any:
        return results[message]

    async with serving(handler=handler, framing=framing, banner=b"") as server:
        client = await server.connect()
        for _ in range(before):
            client.send(framing.encode(b"reply"))
            await client.receive(framing.encode(b"reply"))
            client.send(framing.encode(b"nothing"))
            await eventually(
                lambda: sum(one.figures[0] for one in server.factory.connections) % 2 == 0
            )
        client.send(framing.encode(b"wrong"))
        assert await client.receive_all() == b""
        await eventually(lambda: server.factory.metrics.ended == {"handler error": 1})
        (error,) = log.take_errors()
        name = type(results[b"wrong"]).__name__
        assert f"a handler returns bytes, None or Close, not {name}" in error
    inner.close()


@pytest_twisted.ensureDeferred
async def test_a_cancelled_task_of_twisteds_is_an_error_of_the_handlers(log: Log) -> None:
    results: list[Any] = []

    async def wait() -> None:
        await asyncio.sleep(0)
        raise CancelledError

    InReactor().call(results.append, wait)
    await eventually(lambda: bool(results))
    assert isinstance(results[0], Failure)
    assert results[0].check(CancelledError)


@pytest_twisted.ensureDeferred
async def test_anyio_finds_its_task() -> None:
    async def handler(message: bytes) -> bytes:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, 0.001)
            with anyio.move_on_after(0.001) as scope:
                await anyio.sleep(60)
            assert scope.cancelled_caught
            return await anyio.to_thread.run_sync(lambda: message)

    async with serving(handler=handler, banner=b"") as server:
        client = await server.connect()
        for _ in range(3):
            client.send(b"happy")
            await client.receive(b"happy")


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("run", "remedy"),
    [
        (lambda: anyio.run(anyio.sleep, 0), "begins an event loop within echod's"),
        (lambda: anyio.run(anyio.sleep, 0, backend="trio"), "begins an event loop within echod's"),
        (lambda: asyncio.run(asyncio.sleep(0)), "begins an event loop within echod's"),
        (lambda: trio.sleep(0), "awaits trio, which needs a loop of its own"),
        (trio.lowlevel.current_task, "awaits trio, which needs a loop of its own"),
        (trio.lowlevel.checkpoint, "awaits trio, which needs a loop of its own"),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine '.*sleep' was never awaited:RuntimeWarning")
async def test_another_event_loop_is_refused_with_the_remedy(
    run: Callable[[], Any], remedy: str, log: Log
) -> None:
    async def handler(message: bytes) -> bytes:
        result = run()
        return b"" if result is None else await result

    async with serving(handler=handler, banner=b"") as server:
        client = await server.connect()
        client.send(b"happy")
        await eventually(lambda: remedy in log.text)
        assert len(log.take_errors()) == 1
