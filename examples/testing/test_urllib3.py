"""How urllib3 tries again, and what it makes of half a reply: against a fake HTTP server.

The server is a script, http.txt; http_busy.txt is one that has no time.
"""

from pathlib import Path

import pytest
import urllib3
from urllib3.exceptions import MaxRetryError, ProtocolError, ReadTimeoutError

HERE = Path(__file__).parent
FAKE = f"script:file={HERE / 'http.txt'}"
BUSY = f"script:file={HERE / 'http_busy.txt'}"


@pytest.fixture
def http():
    with urllib3.PoolManager(timeout=20, retries=3) as pool:
        yield pool


def url(server):
    return f"http://127.0.0.1:{server.port}/"


def test_a_reset_before_the_reply_is_tried_again(echod_server, http):
    with echod_server(FAKE).fault("reset:first=2") as server:
        reply = http.request("GET", url(server))
        assert (reply.status, reply.data) == (200, b"hello\r\n")
        assert [c.faults for c in server.connections] == [("reset",), ("reset",), ()]


def test_a_post_is_not_tried_again(echod_server, http):
    with echod_server(FAKE).fault("reset:after=10") as server:
        with pytest.raises(ProtocolError, match="Connection reset by peer"):
            http.request("POST", url(server))
        assert len(server.connections) == 1


# The status line, the header and the empty line are 38 bytes: here two of the body have come.
@pytest.mark.parametrize("end", ["reset", "close"])
def test_half_a_body_is_an_error_and_is_tried_again(echod_server, http, end):
    with echod_server(FAKE).fault(f"{end}:after=40,first=2") as server:
        assert http.request("GET", url(server)).data == b"hello\r\n"
        assert [c.faults for c in server.connections] == [(end,), (end,), ()]


def test_half_a_body_that_you_read_yourself_is_not_tried_again(echod_server, http):
    with echod_server(FAKE).fault("close:after=40") as server:
        reply = http.request("GET", url(server), preload_content=False)
        with pytest.raises(ProtocolError, match="IncompleteRead"):
            reply.read()
        assert len(server.connections) == 1


def test_a_busy_server_is_asked_again_if_its_status_is_listed(echod_server, http):
    retries = urllib3.Retry(total=2, status_forcelist=[503])
    with echod_server(BUSY) as server:
        with pytest.raises(MaxRetryError, match="too many 503 error responses"):
            http.request("GET", url(server), retries=retries)
        assert len(server.connections) == 3


def test_a_server_that_never_answers_is_asked_as_often_as_retries_say(echod_server, http):
    with echod_server(FAKE).fault("never-answer") as server:
        with pytest.raises(MaxRetryError) as error:
            http.request("GET", url(server), timeout=0.2, retries=2)
        assert isinstance(error.value.reason, ReadTimeoutError)
        requests = [c.received.splitlines()[0] for c in server.connections]
        assert requests == [b"GET / HTTP/1.1"] * 3


def test_a_connection_of_the_pool_that_has_died_is_replaced_without_an_error(echod_server, http):
    with echod_server(FAKE) as server:
        http.request("GET", url(server), retries=False)
        server.fault("close:first=1")  # an idle server closes the connection that is in the pool
        server.wait_until(lambda: server.connections[0].faults)
        assert server.connections[0].faults == ("close",)
        reply = http.request("GET", url(server), retries=False)
        assert reply.data == b"hello\r\n"
        assert len(server.connections) == 2
