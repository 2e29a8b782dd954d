"""The OpenAPI description of the control."""

from __future__ import annotations

from typing import Any

from echod import __version__
from echod.control.selection import DEFAULT, HIGHEST, MOST, MOST_FAULTS, REASONS
from echod.faults import FAULTS
from echod.limits import HIGHEST_SEED

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
_COUNT: Schema = {"type": "integer", "minimum": 0}


def describe() -> Schema:
    """Return the description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "echod control",
            "version": __version__,
            "description": "Lists connections and ends them, changes the faults on purpose, and "
            "suspends the listeners of a running daemon.",
        },
        "security": [{"token": []}],
        "paths": {
            "/connections": {
                "get": _operation(
                    "List connections, the open ones and the last that ended, by their numbers",
                    _ref("Connections"),
                    also=(404, 503),
                    parameters=[*_FILTERS, *_MORE_FILTERS],
                ),
                "delete": _operation(
                    "End the open connections that are selected, all by default",
                    _ref("Disconnected"),
                    parameters=[*_FILTERS, _HOW],
                    also=(404, 503),
                ),
            },
            "/connections/{id}": {
                "get": _operation(
                    "Show one connection", _ref("Connection"), parameters=[_ID], also=(404, 503)
                ),
                "delete": _operation(
                    "End one open connection",
                    _ref("Disconnected"),
                    parameters=[_ID, _HOW],
                    also=(404, 503),
                ),
            },
            "/faults": {
                "get": _operation("Show the faults on purpose", _ref("Faults"), also=(409,)),
                "put": _operation(
                    "Replace the faults on purpose, for new connections and open ones; each "
                    "begins anew",
                    _ref("Faults"),
                    body=_ref("NewFaults"),
                    also=(409,),
                ),
                "post": _operation(
                    "Add faults on purpose; those that are there go on",
                    _ref("Faults"),
                    body=_ref("MoreFaults"),
                    also=(409,),
                ),
                "delete": _operation(
                    "Remove the faults on purpose",
                    _ref("Faults"),
                    parameters=[
                        _query("fault", _TEXT, "only those that are written exactly like this")
                    ],
                    also=(404, 409),
                ),
            },
            "/suspend": {
                "post": _operation(
                    "Accept no more clients: they wait; open connections are served on",
                    _ref("State"),
                    also=(409, 503),
                )
            },
            "/resume": {
                "post": _operation(
                    "Accept clients again, those that wait first", _ref("State"), also=(409, 503)
                )
            },
            "/openapi.json": {"get": _operation("Return this description", {"type": "object"})},
        },
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Over a UNIX socket none is needed.",
                }
            },
            "schemas": _SCHEMAS,
        },
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _query(name: str, schema: Schema, meaning: str) -> Schema:
    return {"name": name, "in": "query", "schema": schema, "description": meaning}


def _operation(
    summary: str,
    result: Schema,
    *,
    parameters: list[Schema] | None = None,
    body: Schema | None = None,
    also: tuple[int, ...] = (),
) -> Schema:
    described: Schema = {
        "summary": summary,
        "responses": {
            "200": _response("Done", result),
            **{
                str(status): _response(_ERRORS[status], _ref("Error"))
                for status in sorted({400, 401, 421, *also, *([413] if body else [])})
            },
        },
    }
    if parameters:
        described["parameters"] = parameters
    if body:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": body}},
        }
    return described


def _response(meaning: str, schema: Schema) -> Schema:
    return {"description": meaning, "content": {"application/json": {"schema": schema}}}


_ERRORS = {
    400: "The request makes no sense",
    401: "The token is missing or wrong",
    404: "There is no such connection, listener or fault",
    409: "The daemon drains, or has workers",
    413: "The body is too long",
    421: "The host name is not allowed",
    503: "A worker does not answer",
}

_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_ADDRESS = {
    "type": "string",
    "anyOf": [
        {"format": "ipv6"},
        {"pattern": rf"^({_BYTE}\.){{3}}{_BYTE}(/(3[0-2]|[12]?[0-9])|:[0-9]{{1,5}})?$"},
        {"pattern": "^/"},
    ],
}
_FILTERS = [
    _query(
        "address",
        _ADDRESS,
        "clients of this network or address, with or without a port, or of this socket's path",
    ),
    _query("listener", _TEXT, "clients of this listener: its number, from 1, or its endpoint"),
]
_MORE_FILTERS = [
    _query("state", {"enum": ["open", "ended"]}, "only open ones, or only ended ones"),
    _query("reason", {"enum": [*REASONS]}, "only ended ones, with this reason"),
    _query("fault", {"enum": [*FAULTS]}, "connections in which this fault has happened"),
    _query(
        "after",
        {"type": "integer", "minimum": 0, "maximum": HIGHEST, "default": 0},
        "connections with a higher number",
    ),
    _query(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": MOST, "default": DEFAULT},
        "how many at most; `more` says whether there are others",
    ),
]
_HOW = _query(
    "how",
    {"enum": ["reset", "drain"], "default": "reset"},
    "reset: at once, by RST; drain: answer what was received, and close, as at SIGTERM",
)
_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "integer", "minimum": 1, "maximum": HIGHEST},
    "description": "the number of the connection",
}


def _object(properties: dict[str, Schema], optional: tuple[str, ...] = ()) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


_FAULT_LIST: Schema = {
    "type": "array",
    "maxItems": MOST_FAULTS,
    "items": {"type": "string", "description": "as for --fault: NAME[:key=value,...]"},
}
_SEED: Schema = {"type": "integer", "minimum": 0, "maximum": HIGHEST_SEED}

_SCHEMAS: Schema = {
    "Connection": _object(
        {
            "id": {"type": "integer", "minimum": 1},
            "worker": {
                "type": "integer",
                "minimum": 1,
                "description": "the number of its worker; only with --workers",
            },
            "state": {"enum": ["open", "ended"]},
            "reason": _TEXT_OR_NULL,
            "peer": _TEXT,
            "local": _TEXT,
            "listener": _TEXT,
            "began": {"type": "string", "format": "date-time"},
            "seconds": {"type": "number", "minimum": 0},
            "messages": {"type": ["integer", "null"], "minimum": 0},
            "bytes_in": _COUNT,
            "bytes_out": _COUNT,
            "tls": {
                "oneOf": [
                    {"type": "null"},
                    _object(
                        {
                            "version": _TEXT,
                            "cipher": _TEXT,
                            "server_name": _TEXT_OR_NULL,
                            "alpn": _TEXT_OR_NULL,
                            "common_name": _TEXT_OR_NULL,
                            "resumed": {"type": "boolean"},
                        }
                    ),
                ]
            },
            "proxy": {
                "oneOf": [
                    {"type": "null"},
                    _object(
                        {
                            "through": _TEXT,
                            "version": {"enum": [1, 2]},
                            "command": {"enum": ["PROXY", "LOCAL"]},
                            "source": _TEXT_OR_NULL,
                            "destination": _TEXT_OR_NULL,
                        }
                    ),
                ]
            },
            "received": {
                "type": "string",
                "description": "the first bytes, as UTF-8; others are written as \\xNN",
            },
            "received_base64": {"type": "string", "contentEncoding": "base64"},
            "faults": {"type": "array", "items": _TEXT},
            "mismatches": {
                "type": "array",
                "items": _object({"line": _COUNT, "expected": _TEXT, "got": _TEXT}),
            },
        },
        optional=("worker",),
    ),
    "Connections": _object(
        {
            "connections": {"type": "array", "items": _ref("Connection")},
            "more": {"type": "boolean"},
            "journal": _object({"most": _COUNT, "bytes": _COUNT}),
        }
    ),
    "Disconnected": _object({"disconnected": _COUNT}),
    "Faults": _object(
        {
            "faults": {"type": "array", "items": _TEXT},
            "seed": _SEED,
            "happened": {"type": "object", "additionalProperties": _COUNT},
        }
    ),
    "NewFaults": _object({"faults": _FAULT_LIST, "seed": _SEED}, optional=("seed",)),
    "MoreFaults": _object({"faults": _FAULT_LIST}),
    "State": _object({"state": {"enum": ["starting", "ready", "suspended", "draining"]}}),
    "Error": _object({"error": _TEXT}),
}
