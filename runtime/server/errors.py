"""Errors as clients see them: one JSON shape, the right status, the name of the parameter to blame.

`{"error": {"message", "type", "param", "code"}}`, whatever went wrong: a parameter, a path, a key, or our own code, of
which a client learns no more than that it failed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ...errors import InvalidRequestError, QueueFullError, RequestError, ShuttingDownError

__all__ = [
    "INTERNAL_ERROR",
    "CutOffError",
    "ErrorBody",
    "ErrorObject",
    "error_response",
    "install_error_handlers",
    "public_error",
]

JsonScalar: TypeAlias = str | int | float | bool | None

_CODES = {  # by pydantic's error type; what is not here is an invalid_value, or by its ending an invalid_type
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "unsupported_parameter": "unsupported_parameter",
    "less_than": "above_max_value",
    "less_than_equal": "above_max_value",
    "greater_than": "below_min_value",
    "greater_than_equal": "below_min_value",
    "too_long": "array_above_max_length",
    "too_short": "empty_array",
    "string_too_long": "string_above_max_length",
    "string_too_short": "empty_string",
}
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
_RETRY_SECONDS = 1
_SHOWN_CHARACTERS = 80  # of an offending value


class CutOffError(ShuttingDownError):
    """503: the server stopped before the answer was complete."""

    def __init__(self) -> None:
        super().__init__("the server stopped before the answer was complete; ask again")


class ErrorObject(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """Body of every response that is not a success."""

    error: ErrorObject


INTERNAL_ERROR = ErrorBody(
    error=ErrorObject(
        message="the server failed to answer; the x-request-id of this response names the entry in its log",
        type="server_error",
        code="internal_server_error",
    )
)


def error_response(status: int, body: ErrorBody, headers: Mapping[str, str] | None = None) -> Response:
    """Returns an error as an HTTP response."""
    # Escaped to ASCII: a message may quote half a surrogate pair, which has no UTF-8.
    return Response(json.dumps(body.model_dump()), status, headers, media_type="application/json")


def public_error(error: RequestError) -> ErrorBody:
    """Returns what a client is told of a refusal."""
    return ErrorBody(error=ErrorObject(message=str(error), type=error.type, param=error.param, code=error.code))


def install_error_handlers(app: FastAPI) -> None:
    """Gives every error of an app the common shape."""
    app.add_exception_handler(RequestError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    is_temporary = isinstance(error, QueueFullError | ShuttingDownError)
    headers = {"retry-after": str(_RETRY_SECONDS)} if is_temporary else None
    return error_response(error.status, public_error(error), headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {
        404: f"there is no {request.url.path}; /docs lists what there is",
        405: f"{request.url.path} does not take {request.method}; /docs lists what it takes",
    }
    message = messages.get(error.status_code, error.detail)
    code = _HTTP_CODES.get(error.status_code, "invalid_request")
    body = ErrorBody(error=ErrorObject(message=message, type="invalid_request_error", code=code))
    return error_response(error.status_code, body, error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return error_response(400, public_error(_as_refusal(first["type"], first["loc"], first["msg"], first["input"])))


def _as_refusal(kind: str, location: Sequence[str | int], text: str, value: JsonScalar) -> InvalidRequestError:
    """Returns pydantic's complaint in OpenAI's terms."""
    if kind == "json_invalid":
        return InvalidRequestError("the body is not JSON", code="invalid_json")
    param = _param(location, is_key_of_client=kind == "extra_forbidden")
    if param is None:
        return InvalidRequestError(
            "the body must be a JSON object, sent with content-type: application/json", code="invalid_body"
        )
    return InvalidRequestError(_message(kind, param, text, value), param=param, code=_code(kind, value))


def _param(location: Sequence[str | int], *, is_key_of_client: bool) -> str | None:
    """Returns a location as clients write it: ("body", "messages", 0, "content") -> messages[0].content."""
    parts = list(location[1:])
    # Branches of a union are named "<...>" in the schemas; what the client calls a field is left alone.
    ours = [part for part in (parts[:-1] if is_key_of_client else parts) if not str(part).startswith("<")]
    path = ""
    for part in ours + (parts[-1:] if is_key_of_client else []):
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or None


def _message(kind: str, param: str, text: str, value: JsonScalar) -> str:
    if kind == "missing":
        return f"missing required parameter '{param}'"
    if kind == "extra_forbidden":
        return f"unknown or unsupported parameter '{param}'; leave it out"
    if isinstance(value, str | int | float) and kind != "unsupported_parameter":
        shown = json.dumps(value)
        shown = shown if len(shown) <= _SHOWN_CHARACTERS else shown[:_SHOWN_CHARACTERS] + "…"
        return f"'{param}' is {shown}: {text[:1].lower()}{text[1:]}"
    return f"'{param}': {text[:1].lower()}{text[1:]}"


def _code(kind: str, value: JsonScalar) -> str:
    if kind.endswith(("_type", "_unicode")):
        return "invalid_type"
    code = _CODES.get(kind, "invalid_value")
    if code.endswith("_value") and code != "invalid_value":
        return f"{'decimal' if isinstance(value, float) else 'integer'}_{code}"
    return code
