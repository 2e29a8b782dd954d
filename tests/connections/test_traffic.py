"""Traffic on sockets whose bytes the kernel does not count."""

from __future__ import annotations

import os
import resource
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.connections.traffic import TrafficWatch, WatchedSocket

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


class Watch(TrafficWatch):
    """Tells whether there was traffic since the last look."""

    def of(self, one: socket.socket) -> WatchedSocket:
        watched = self.watch(one.fileno())
        assert watched is not None
        return watched

    def moved(self, watched: WatchedSocket) -> bool:
        before = watched.count
        return self.look(watched) > before


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    yield watch
    for watched in list(watch._sockets.values()):
        watch.forget(watched)
    assert watch._epoll is None


def test_a_socket_at_rest_has_no_traffic(pair: Pair, watch: Watch) -> None:
    watched = watch.of(pair[0])
    assert watched.count == 0
    assert not watch.moved(watched)


def test_what_was_there_before_is_traffic(pair: Pair, watch: Watch) -> None:
    pair[1].send(b"x")
    watched = watch.of(pair[0])
    assert watched.count == 1
    assert not watch.moved(watched)


def by_another_thread(ours: socket.socket) -> None:
    thread = threading.Thread(target=ours.recv, args=(1,))
    thread.start()
    thread.join()


def by_a_child(ours: socket.socket) -> None:
    subprocess.run(["head", "-c1"], stdin=ours, stdout=subprocess.DEVNULL, check=True)


def by_a_duplicate(ours: socket.socket) -> None:
    with ours.dup() as other:
        other.recv(1)


def by_nobody(ours: socket.socket) -> None:
    pass


@pytest.mark.parametrize("read", [by_another_thread, by_a_child, by_a_duplicate, by_nobody])
def test_what_comes_is_traffic_whoever_has_read_it(
    pair: Pair, watch: Watch, read: Callable[[socket.socket], None]
) -> None:
    ours, theirs = pair
    watched = watch.of(ours)
    for _ in range(3):
        theirs.send(b"x")
        read(ours)
        assert watch.moved(watched)
        assert not watch.moved(watched)


def test_what_the_other_side_takes_is_traffic_and_what_it_leaves_is_not(
    pair: Pair, watch: Watch
) -> None:
    ours, theirs = pair
    watched = watch.of(ours)
    ours.send(b"x")
    assert not watch.moved(watched)
    theirs.recv(1)
    assert watch.moved(watched)
    assert not watch.moved(watched)


def test_who_waits_for_a_socket_makes_no_traffic(pair: Pair, watch: Watch) -> None:
    ours, _ = pair
    watched = watch.of(ours)
    select.select([ours], [], [], 0.001)
    with select.epoll() as epoll:
        epoll.register(ours, select.EPOLLIN | select.EPOLLET)
        epoll.poll(0.001)
    ours.setblocking(False)
    with pytest.raises(BlockingIOError):
        ours.recv(1)
    assert not watch.moved(watched)


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=20))
def test_each_socket_is_told_of_by_itself_whichever_is_looked_at(
    moves: list[tuple[int, bool]],
) -> None:
    watch, pairs = Watch(), [socket.socketpair() for _ in range(3)]
    every = [watch.of(ours) for ours, _ in pairs]
    try:
        seen, moved = [one.count for one in every], [False] * 3
        for number, looks in moves:
            if looks:
                count = watch.look(every[number])
                assert (count > seen[number]) is moved[number]
                seen[number], moved[number] = count, False
            else:
                pairs[number][1].send(b"x")
                pairs[number][0].recv(1)
                moved[number] = True
    finally:
        for one in every:
            watch.forget(one)
        for ours, theirs in pairs:
            ours.close()
            theirs.close()


def test_a_look_takes_all_that_has_happened_however_many_are_watched(watch: Watch) -> None:
    pairs = [socket.socketpair() for _ in range(100)]
    every = [watch.of(ours) for ours, _ in pairs]
    for _, theirs in pairs:
        theirs.send(b"x")
    watch.look(every[0])
    assert [one.count for one in every] == [1] * 100
    for one, pair in zip(every, pairs, strict=True):
        watch.forget(one)
        for end in pair:
            end.close()


def test_a_socket_that_is_forgotten_is_not_mistaken_for_the_next_of_its_number(
    pair: Pair, watch: Watch
) -> None:
    """Fault 98: A connection that a child still has, after the daemon has closed it, is not
    mistaken for a later one.
    """
    ours, theirs = pair
    kept, number = os.dup(ours.fileno()), ours.fileno()
    others = socket.socketpair()
    first = watch.of(ours)
    bystander = watch.of(others[1])  # or nothing would be left to watch, and all would be new
    watch.forget(first)
    ours.close()
    os.dup2(others[0].fileno(), number)
    second = watch.watch(number)
    assert second is not None
    theirs.send(b"x")
    os.read(kept, 1)
    assert not watch.moved(second)
    watch.forget(first)  # again, and the number is another's
    others[1].send(b"x")
    assert watch.moved(second)
    assert first.count == watch.look(first)
    watch.forget(second)
    watch.forget(bystander)
    for descriptor in (kept, number):
        os.close(descriptor)
    for end in others:
        end.close()


def test_a_socket_closed_before_it_is_forgotten_does_no_harm(pair: Pair, watch: Watch) -> None:
    ours, theirs = pair
    with ours.dup() as kept:
        closed = watch.of(ours)
        ours.close()
        watch.forget(closed)
        other, third = socket.socketpair()
        with other, third:
            watched = watch.of(other)
            theirs.send(b"x")
            third.send(b"x")
            kept.recv(1)
            assert watch.moved(watched)
            watch.forget(watched)


def test_without_a_descriptor_it_is_not_watched_and_the_next_is(pair: Pair, watch: Watch) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        assert watch.watch(pair[0].fileno()) is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert watch.of(pair[0]).count == 0


def test_what_cannot_be_watched_is_not(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(__file__).open() as file:
        assert watch.watch(file.fileno()) is None
    monkeypatch.delattr(select, "epoll")
    assert watch.watch(0) is None
