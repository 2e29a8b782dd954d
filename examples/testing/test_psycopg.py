"""How psycopg waits, and which host it takes: against a fake PostgreSQL that misbehaves.

psycopg tries no query again; libpq goes on to the next host if a connection fails.
"""

import time

import psycopg
import pytest
from fake_postgres import postgres


@pytest.fixture
def database(echod_server):
    """Return a function that starts a server."""
    return lambda: echod_server(postgres, concurrency="thread-per-connection")


def connect(*servers, **options):
    ports = ",".join(str(server.port) for server in servers)
    hosts = ",".join("127.0.0.1" for _ in servers)
    return psycopg.connect(
        f"host={hosts} port={ports} sslmode=disable gssencmode=disable", autocommit=True, **options
    )


def test_a_query_is_answered(database):
    server = database()
    with connect(server) as connection:
        assert connection.execute("SELECT mood").fetchone() == ("happy",)
    assert b"SELECT mood" in server.connections[0].received


@pytest.mark.parametrize("fault", ["reset", "close"])
def test_an_end_in_the_middle_of_a_reply_is_an_error_and_not_tried_again(database, fault):
    server = database()
    with connect(server) as connection:
        server.fault(f"{fault}:after=40")  # a part of the row has come
        with pytest.raises(psycopg.OperationalError, match="closed the connection unexpectedly"):
            connection.execute("SELECT mood")
        assert connection.broken
    assert [c.reason for c in server.connections] == ["fault"]


def test_the_next_host_is_taken_if_the_first_one_resets(database):
    first, second = database().fault("reset"), database()
    with connect(first, second) as connection:
        assert connection.info.port == second.port
        assert connection.execute("SELECT mood").fetchone() == ("happy",)
    assert [c.reason for c in first.connections] == ["fault"]


def test_connect_timeout_bounds_the_wait_for_a_server_that_never_answers(database):
    server = database().fault("never-answer")
    began = time.monotonic()
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        connect(server, connect_timeout=2)  # its least
    assert time.monotonic() - began >= 2


def test_connect_timeout_leaves_time_for_the_next_host(database):
    first, second = database().fault("never-answer"), database()
    with connect(first, second, connect_timeout=2) as connection:
        assert connection.info.port == second.port


def test_a_query_waits_for_as_long_as_the_server_is_silent(database):
    server = database()
    with connect(server) as connection:
        server.fault("delay:time=0.5")
        began = time.monotonic()
        assert connection.execute("SELECT mood").fetchone() == ("happy",)
        assert time.monotonic() - began >= 0.5
