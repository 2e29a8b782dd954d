"""How redis-py tries again, and how long it waits: against a fake Redis that misbehaves.

The fake Redis is a script, ../scripts/redis.txt. Before the first command, redis-py gets two `+OK`
of 5 bytes each; `$5`, `happy` and their line ends are 11 more. So byte 14 is in the middle of the
reply to GET.
"""

from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

FAKE = f"script:file={Path(__file__).parent.parent / 'scripts' / 'redis.txt'}"


def client(port, retries=3, **options):
    """Return a client that does not wait between its tries."""
    options = {"socket_timeout": 20, **options}
    return redis.Redis(port=port, protocol=2, retry=Retry(NoBackoff(), retries), **options)


def test_a_reset_in_the_middle_of_a_reply_is_tried_again(echod_server):
    with echod_server(FAKE).fault("reset:after=14,first=2") as server:
        with client(server.port) as db:
            assert db.get("mood") == b"happy"
        assert [c.reason for c in server.connections] == ["fault", "fault", "client closed"]
        assert server.connections[0].received.endswith(b"GET\r\n$4\r\nmood\r\n")


def test_so_is_an_increment_that_the_server_has_done_already(echod_server):
    seen = []

    def increment(line):
        if line == b"visits":
            seen.append(line)
            return b":%d" % len(seen)
        return b"+OK" if line == b"SETINFO" else None

    # A handler of your own keeps what a script cannot: how often an INCR has reached the server.
    with echod_server(increment, framing="line", delimiter=r"\r\n", no_banner=True) as server:
        server.fault("reset:after=12,first=2")
        with client(server.port) as db:
            assert db.incr("visits") == 3
    assert len(seen) == 3


def test_a_client_without_retries_gives_up_at_once(echod_server):
    with echod_server(FAKE).fault("reset:after=14") as server:
        with client(server.port, retries=0) as db, pytest.raises(redis.ConnectionError) as error:
            db.get("mood")
        assert "Connection reset by peer" in str(error.value)
        assert len(server.connections) == 1


def test_a_server_that_falls_silent_is_asked_once_and_then_as_often_as_retries_say(echod_server):
    with echod_server(FAKE).fault("stall:after=10") as server:
        with (
            client(server.port, retries=2, socket_timeout=0.2) as db,
            pytest.raises(redis.TimeoutError),
        ):
            db.get("mood")
        gets = [c.received.count(b"GET") for c in server.connections]
        assert gets == [1, 1, 1]


def test_a_connection_of_the_pool_that_has_died_is_replaced_without_an_error(echod_server):
    with echod_server(FAKE) as server, client(server.port, retries=0) as db:
        assert db.get("mood") == b"happy"
        server.fault("close:first=1")  # an idle server closes the connection that is in the pool
        server.wait_until(lambda: server.connections[0].faults)
        assert server.connections[0].faults == ("close",)
        assert db.get("mood") == b"happy"
        assert len(server.connections) == 2


def test_a_slow_server_is_waited_for(echod_server):
    with echod_server(FAKE).fault("drip:pause=0.01,after=10") as server:
        with client(server.port, retries=0, socket_timeout=10) as db:
            assert db.get("mood") == b"happy"
        assert server.connections[0].faults == ("drip",)
