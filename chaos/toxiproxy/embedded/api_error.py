"""The refusals of the HTTP API, with Toxiproxy's words and codes."""

from __future__ import annotations


class ApiError(Exception):
    """A request that cannot be served: what the body's `error` says and the HTTP status it goes with."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


def bad_request_body(why: object) -> ApiError:
    """The body is not the JSON that was expected; `why` is the decoder's text."""
    return ApiError(f"bad request body: {why}", 400)


def missing_field(name: str) -> ApiError:
    """A field that must not be empty is."""
    return ApiError(f"missing required field: {name}", 400)


def invalid_stream() -> ApiError:
    """A toxic names a direction that does not exist."""
    return ApiError("stream was invalid, can be either upstream or downstream", 400)


def invalid_toxic_type() -> ApiError:
    """A toxic names a type that does not exist."""
    return ApiError("invalid toxic type", 400)


def proxy_not_found() -> ApiError:
    """No proxy has the name in the path."""
    return ApiError("proxy not found", 404)


def toxic_not_found() -> ApiError:
    """No toxic of the proxy has the name in the path."""
    return ApiError("toxic not found", 404)


def proxy_exists() -> ApiError:
    """A proxy of this name is there already."""
    return ApiError("proxy already exists", 409)


def toxic_exists() -> ApiError:
    """A toxic of this name is there already, in either direction."""
    return ApiError("toxic already exists", 409)


def cannot_listen(why: object) -> ApiError:
    """The proxy's address cannot be resolved or bound."""
    return ApiError(str(why), 500)
