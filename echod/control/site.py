"""The web site of the control: the token, the paths, and JSON in and out."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import IO, TYPE_CHECKING, ClassVar

from echod.control.selection import QueryError
from echod.control.token import is_right
from echod.web.site import BAD_REQUEST, Answer, Responder, WebRequest, WebSite, header

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime
    from twisted.web.server import Request

    from echod.web.hosts import Hosts

JSON = "application/json"

# A value that JSON can hold.
Value = object


def told(status: int, value: Value, headers: Mapping[bytes, bytes] | None = None) -> Answer:
    """Return an answer of JSON."""
    return Answer(status, JSON, json.dumps(value).encode() + b"\n", headers or {})


class Refused(Exception):
    """A request is refused."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.answer = told(status, {"error": why})


class ControlSite(WebSite):
    """The site.

    Attributes:
        token: the token that every request over a network has to have; None: no token is right.
    """

    headers: ClassVar = {b"Content-Security-Policy": b"default-src 'none'"}
    methods = b"GET, HEAD, PUT, POST, DELETE"
    most_body = 64 * 1024
    works_long = True
    not_allowed = told(
        401,
        {"error": "this needs the header Authorization: Bearer TOKEN"},
        {b"WWW-Authenticate": b'Bearer realm="echod"'},
    )

    def __init__(self, api: Responder, reactor: IReactorTime, token: bytes | None) -> None:
        """Set up.

        Args:
            api: answers the requests that have the token.
            reactor: for deadlines.
            token: see above.
        """
        super().__init__(api, reactor)
        self.token = token

    def allows(self, request: Request) -> bool:
        assert isinstance(request, WebRequest)
        return not request.on_network or is_right(header(request, b"Authorization"), self.token)

    def bad_request(self, request: Request | None) -> bytes:
        if request is not None and self.allows(request):
            return BAD_REQUEST
        return b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer\r\n\r\n"


class Call:
    """A request to the API.

    Attributes:
        query: the text after the question mark.
        number: the number in the path; 0 if there is none.
    """

    def __init__(self, query: bytes, number: int, content: IO[bytes] | None = None) -> None:
        self.query = query
        self.number = number
        self._content = content

    def body(self) -> Mapping[str, object]:
        """Return the object in the body.

        Raises:
            Refused: there is none.
        """
        assert self._content is not None
        self._content.seek(0)
        try:
            value = json.loads(self._content.read())
        except (ValueError, RecursionError):
            raise Refused(400, "the body is not JSON") from None
        if not isinstance(value, dict):
            raise Refused(400, 'the body is an object, as in {"faults": []}')
        return value


Operation = Callable[[Call], Awaitable[Answer]]

# The operations of each path, by method.
Routes = Mapping[str, Mapping[str, Operation]]


class API(Responder):
    """Answers every path by its operation."""

    def __init__(self, routes: Routes, hosts: Hosts) -> None:
        """Set up.

        Args:
            routes: the operations; `{id}` in a path stands for a number.
            hosts: the allowed host names.
        """
        super().__init__(
            hosts, told(421, {"error": "nothing is here under that name: list it in control-host"})
        )
        self._routes = [
            (re.compile(re.escape(path).replace(r"\{id\}", "(?P<id>[1-9][0-9]{0,15})")), methods)
            for path, methods in routes.items()
        ]

    async def answer(self, request: WebRequest) -> Answer:
        if request.is_too_long:
            return told(413, {"error": f"a body has {ControlSite.most_body} bytes at most"})
        path = request.path.decode("latin-1")
        for pattern, methods in self._routes:
            if found := pattern.fullmatch(path):
                number = int(found.groupdict().get("id") or 0)
                return await _by_method(methods, request, number)
        return told(404, {"error": "there is nothing here: /openapi.json lists the paths"})


async def _by_method(methods: Mapping[str, Operation], request: WebRequest, number: int) -> Answer:
    method = bytes(request.method).decode("latin-1")
    operation = methods.get("GET" if method == "HEAD" else method)
    if operation is None:
        known = ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])
        return told(405, {"error": f"this takes {known}"}, {b"Allow": known.encode()})
    return await perform(operation, Call(request.query, number, request.content))


async def perform(operation: Operation, call: Call) -> Answer:
    """Perform an operation; return its answer, or why it is refused."""
    try:
        return await operation(call)
    except Refused as refused:
        return refused.answer
    except QueryError as error:
        return told(400, {"error": str(error)})
