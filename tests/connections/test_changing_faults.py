"""Faults on purpose that change while connections are open, in every model, on every way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import example, given
from hypothesis import strategies as st

from echod.connections.factory import EchoFactory
from echod.faults import FaultPlan, Rule, parse_fault
from echod.faults.choice import Course
from echod.limits import Limits
from echod.testing.in_memory import PEER, MemoryTransport, VirtualReactor
from tests.connections.test_faulty import BANNER, WAYS, Handler, UNIXServer
from tests.support.daemon import CONCURRENT, MODELS
from tests.support.reactor import reactor
from tests.support.serving import Server, Talker, eventually, make_model, server_by, turns


def rules(*texts: str) -> list[Rule]:
    return [parse_fault(text) for text in texts]


@pytest.fixture
def serve(certificate: Path, tmp_path: Path) -> Any:
    """Return a function that serves with faults that may change; it returns these, too."""

    def start(
        *faults: str, way: str = "clear", model: str = "reactor", **options: Any
    ) -> tuple[FaultPlan, Server]:
        plan = FaultPlan(rules(*faults), 1, changeable=True)
        factory = EchoFactory(
            reactor,
            handler=options.pop("handler", Handler),
            model=make_model(model),
            faults=plan.for_listener(1, ""),
            banner=BANNER if model == "thread-per-connection" else None,
            **options,
        )
        if way == "UNIX":
            return plan, UNIXServer(factory, tmp_path / "s")
        return plan, server_by(way, factory, certificate)

    return start


async def greeted(server: Server) -> Talker:
    client = await server.connect()
    await client.receive(BANNER)
    return client


async def only_layer(plan: FaultPlan) -> Any:
    """Return the layer of the only connection, once it is there."""
    (faults,) = plan._listeners
    await eventually(lambda: faults.open)
    (layer,) = faults.open
    return layer


@pytest.mark.parametrize("way", [*WAYS, "Twisted's TLS"])
@pytest.mark.parametrize("model", CONCURRENT)
@pytest_twisted.ensureDeferred
async def test_a_new_fault_holds_for_open_connections_and_for_new_ones(
    serve: Any, model: str, way: str
) -> None:
    """Fault 156: It begins in open connections and in new ones, until it is taken away."""
    plan, server = serve(way=way, model=model)
    async with server:
        client = await greeted(server)
        client.send(b"before")
        await client.receive(b"before")
        plan.change(rules("reset:after=3"))
        client.send(b"abcdef")
        assert await client.receive_all() == b"abc"
        new = await server.connect()
        assert await new.receive_all() == BANNER[:3]
        plan.change([])
        unharmed = await greeted(server)
        unharmed.send(b"quit")
        assert await unharmed.receive_all() == b"bye"
        assert unharmed.clean
        if way != "UNIX":  # which has no reset
            assert not client.clean
            assert not new.clean
        await eventually(lambda: not server.factory.connections)
        assert server.factory.metrics.faults == {"reset": 2}
        assert server.factory.metrics.ended == {"fault": 2, "handler closed": 1}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("direction", ["in", "out"])
@pytest.mark.parametrize("model", MODELS)
@pytest_twisted.ensureDeferred
async def test_bytes_that_a_stall_holds_pass_when_it_is_taken_away(
    serve: Any, model: str, direction: str, way: str
) -> None:
    """Fault 157: The held bytes pass at once, in order, and the end after them."""
    plan, server = serve(f"stall:direction={direction}", "delay:time=5000", way=way, model=model)
    sent = bytes(range(256)) * 4
    async with server:
        client = await server.connect()
        client.send(sent[:1000] if model == "serial" else sent)
        client.finish()
        layer = await only_layer(plan)
        await eventually(lambda: layer.held_in if direction == "in" else layer.held_out)
        assert not client.data
        plan.change([])
        expected = sent[:1000] if model == "serial" else BANNER + sent
        assert await client.receive_all() == expected
        assert client.clean


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
@pytest_twisted.ensureDeferred
async def test_a_server_reads_on_when_never_read_is_taken_away(
    serve: Any, model: str, way: str
) -> None:
    """Fault 157: The server reads all that the client has sent meanwhile."""
    plan, server = serve("never-read:after=3", way=way, model=model)
    sent = bytes(range(256)) * (3 if model == "serial" else 3000)
    async with server:
        client = await server.connect()
        client.send(sent)
        client.finish()
        layer = await only_layer(plan)
        await eventually(lambda: layer.faults)
        await turns(10)
        plan.change([])
        received = await client.receive_all()
        assert client.clean
        if model == "serial":  # it answers the first message alone
            assert received == sent[:3]
        else:
            assert received == BANNER + sent


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", CONCURRENT)
@pytest_twisted.ensureDeferred
async def test_an_end_comes_when_never_close_is_taken_away(
    serve: Any, model: str, way: str
) -> None:
    plan, server = serve("never-close", way=way, model=model)
    async with server:
        client = await greeted(server)
        client.send(b"quit")
        await client.receive(b"bye")
        await turns(10)
        assert not client.ended
        plan.change([])
        assert await client.receive_all() == b""
        assert client.clean


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_an_end_that_comes_late_comes_at_once_when_its_fault_is_taken_away(
    serve: Any, way: str
) -> None:
    limits = Limits(write_timeout=0.5, idle_timeout=0.5)
    plan, server = serve("never-close:time=1.5,first=1", way=way, limits=limits)
    async with server:
        client = await greeted(server)
        client.send(b"quit")
        await client.receive(b"bye")
        layer = await only_layer(plan)
        assert layer.holds
        assert await client.receive_all() == b""
        assert client.clean
        plan.change(rules("never-close:time=1000"))
        client = await greeted(server)
        client.send(b"quit")
        await client.receive(b"bye")
        assert not client.ended
        plan.change([])
        assert await client.receive_all() == b""
        await eventually(lambda: server.factory.metrics.ended == {"handler closed": 2})


@pytest_twisted.ensureDeferred
async def test_a_fault_that_stays_goes_on_where_it_is(serve: Any) -> None:
    plan, server = serve("reset:after=106")
    async with server:
        client = await greeted(server)
        client.send(b"abc")
        await client.receive(b"abc")
        plan.change([*plan.rules, *rules("delay:time=0.01")])
        client.send(b"defghi")
        assert await client.receive_all() == b"def"


@pytest_twisted.ensureDeferred
async def test_a_stall_that_stays_holds_what_a_delay_held_before_it(serve: Any) -> None:
    plan, server = serve("stall:after=102", "delay:time=0.01")
    async with server:
        client = await greeted(server)
        client.send(b"abc")
        await client.receive(b"ab")
        plan.change(plan.rules[:1])
        await turns(10)
        assert not client.data
        plan.change([])
        await client.receive(b"c")


@pytest_twisted.ensureDeferred
async def test_open_connections_come_first_in_the_order_in_which_they_came(serve: Any) -> None:
    plan, server = serve()
    async with server:
        clients = [await greeted(server) for _ in range(3)]
        plan.change(rules("reset:first=2"))
        assert [await one.receive_all() for one in clients[:2]] == [b"", b""]
        clients.append(await greeted(server))
        for client in clients[2:]:
            client.send(b"x")
            await client.receive(b"x")


@pytest_twisted.ensureDeferred
async def test_an_act_that_a_delay_holds_does_not_happen_if_its_fault_is_taken_away(
    serve: Any,
) -> None:
    plan, server = serve("delay:time=1000", "reset:after=100")
    async with server:
        client = await server.connect()
        await eventually(lambda: server.factory.connections)
        await turns(5)
        plan.change(plan.rules[:1])
        await client.receive(BANNER)
        assert not client.ended


@pytest_twisted.ensureDeferred
async def test_silence_after_the_client_has_spoken_begins_in_an_open_connection(
    serve: Any,
) -> None:
    plan, server = serve()
    async with server:
        client = await greeted(server)
        client.send(b"x")
        await client.receive(b"x")
        plan.change(rules("never-answer"))
        client.send(b"y")
        client.finish()
        assert await client.receive_all() == b""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", CONCURRENT)
@pytest_twisted.ensureDeferred
async def test_deadlines_stand_still_only_while_a_fault_holds(
    serve: Any, model: str, way: str
) -> None:
    limits = Limits(idle_timeout=0.5)
    plan, server = serve("stall", way=way, model=model, limits=limits)
    async with server:
        client = await server.connect()
        client.send(b"x")
        await eventually(lambda: server.factory.connections)
        plan.change([])
        await client.receive(BANNER)
        await client.receive_all()
        await eventually(lambda: server.factory.metrics.ended == {"idle-timeout": 1})


@pytest.mark.parametrize("fault", ["stall", "never-read", "delay:time=1000", "drip:pause=100"])
@pytest_twisted.ensureDeferred
async def test_a_connection_that_ends_after_a_change_leaves_nothing(
    serve: Any, fault: str
) -> None:
    """Fault 156: No timer and no held byte is left of a connection whose faults changed."""
    plan, server = serve(fault)
    async with server:
        client = await server.connect()
        client.send(b"x" * 50)
        await eventually(lambda: server.factory.connections)
        await turns(5)
        plan.change(rules("bandwidth:rate=1", fault))
        await turns(5)
        client.transport.abortConnection()
        server.factory.abort()
        await client.receive_all()
        await eventually(lambda: not server.factory.connections)
        (faults,) = plan._listeners
        assert not faults.open
        plan.change([])


def test_faults_that_were_not_set_up_to_change_cannot() -> None:
    plan = FaultPlan(rules("reset"), 1)
    with pytest.raises(RuntimeError, match="not set up to change"):
        plan.change([])


def test_a_listener_without_faults_that_cannot_change_has_no_layer() -> None:
    assert FaultPlan([], 1).for_listener(1, "tcp:0") is None
    assert FaultPlan(rules("reset:listener=2"), 1).for_listener(1, "tcp:0") is None


TIMES = ["delay:time=3", "stall", "stall:time=2", "slice:size=7,pause=0.5", "bandwidth:rate=20"]
PLACES = ["", ",after=30", ",direction=in", ",direction=in,after=10", ",p=0.5"]
STEPS = st.one_of(
    st.binary(min_size=1, max_size=60),
    st.floats(0.1, 10),
    st.lists(st.tuples(st.sampled_from(TIMES), st.sampled_from(PLACES)), max_size=3),
    st.integers(0, 3),
)


@given(st.lists(STEPS, max_size=20))
@example([[("slice:size=7,pause=0.5", "")], bytes(22)])
def test_no_byte_is_lost_or_moved_by_any_changes_of_faults_of_time(steps: list[Any]) -> None:
    clock = VirtualReactor()
    plan = FaultPlan([], 1, changeable=True)
    factory = EchoFactory(clock, handler=Handler, faults=plan.for_listener(1, ""))
    transport = MemoryTransport(clock, factory.buildProtocol(PEER))
    transport.connect()
    sent = b""
    for step in steps:
        if isinstance(step, bytes):
            data = step.replace(b"quit", b"")
            sent += data
            transport.deliver(data) if data else None
        elif isinstance(step, float):
            clock.run_for(step)
        elif isinstance(step, int):
            plan.change(plan.rules[step:])
        else:
            texts = [a + (b if ":" in a else b.replace(",", ":", 1)) for a, b in step]
            plan.change([*plan.rules[:2], *rules(*texts)])
        assert (BANNER + sent).startswith(bytes(transport.written))
    plan.change([])
    transport.finish()
    clock.run_for(1)
    assert bytes(transport.written) == BANNER + sent
    clock.run_for(100)
    assert not factory.connections


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", CONCURRENT)
@pytest_twisted.ensureDeferred
async def test_until_a_fault_comes_bytes_pass_by_its_machinery(
    serve: Any, model: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, server = serve(model=model, way=way)
    async with server:
        client = await greeted(server)
        with monkeypatch.context() as patch:
            patch.delattr(Course, "take")
            client.send(b"first")
            await client.receive(b"first")
        plan.change(rules("truncate"))
        client.send(b"second")
        await eventually(lambda: server.factory.metrics.faults["truncate"])
        assert not client.data
