"""HTTP to one Toxiproxy, on top of the toxiproxy-python package.

The package keeps the server's address in class attributes, knows no timeouts and no PATCH, and reports a
failure without its status, or (for a 5xx) not at all. Its consumer works on whatever class it is called on,
so each client gets a subclass of its own, and every answer is checked here.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal
from urllib.parse import quote, urlsplit

import requests
from toxiproxy import exceptions
from toxiproxy.api import APIConsumer, validate_response

from chaos.toxiproxy import errors

DEFAULT_PORT: Final = 8474

Method = Literal["get", "post", "patch", "delete"]

# The package tells these statuses apart by the exception alone.
_STATUS_OF: Final[dict[type[Exception], int]] = {
    exceptions.NotFound: 404,
    exceptions.ProxyExists: 409,
    exceptions.InvalidToxic: 400,
}
_ERROR_OF: Final[dict[int, type[errors.RequestError]]] = {
    404: errors.NotFoundError,
    409: errors.AlreadyExistsError,
}


class _Consumer(APIConsumer):
    """The package's consumer, with the method it lacks."""

    @classmethod
    def patch(cls, url: str, **kwargs: Any) -> Any:
        """Use the PATCH method to change data through the API."""
        endpoint = f"http://{cls.host}:{cls.port}{url}"
        response = requests.patch(endpoint, **kwargs)  # noqa: S113  the transport passes a timeout
        return validate_response(response)  # type: ignore[no-untyped-call]  # the package has no types


class Transport:
    """Requests to the server at `url`, bounded by `timeout_s` to connect and again for each silence after.

    Talks to it directly, whatever proxy the environment names. Raises RequestError, never another exception.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
            raise ValueError(f"not the address of a Toxiproxy: {url!r}; use http://host:port")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        port = parts.port or DEFAULT_PORT
        self.url = f"http://{host}:{port}"
        self._timeout_s = timeout_s
        self._consumer = type("Consumer", (_Consumer,), {"host": host, "port": port})

    def request(self, method: Method, path: str, body: object = None) -> requests.Response:
        """Send a request and return its answer, which is a success. Raises RequestError."""
        request = f"{method.upper()} {self.url}{path}"
        options: dict[str, Any] = {"timeout": self._timeout_s, "proxies": {"no_proxy": "*"}}
        if body is not None:
            options["json"] = body
        try:
            response: requests.Response = getattr(self._consumer, method)(path, **options)
        except tuple(_STATUS_OF) as error:
            raise _refusal(request, _STATUS_OF[type(error)], error.args[0]) from None
        except requests.Timeout:
            raise errors.UnreachableError(request, f"no answer within {self._timeout_s:g} s") from None
        except requests.RequestException as error:
            raise errors.UnreachableError(request, _innermost(error)) from None
        if not response.ok:
            raise _refusal(request, response.status_code, response.content)
        return response

    def json(self, method: Method, path: str, body: object = None) -> Any:
        """Send a request and return the JSON of its answer. Raises RequestError."""
        response = self.request(method, path, body)
        try:
            return response.json()
        except requests.JSONDecodeError:
            request = f"{method.upper()} {self.url}{path}"
            raise errors.UnreachableError(request, f"not JSON: {response.text[:200]!r}") from None


def path(*segments: str) -> str:
    """A path of these segments, each escaped."""
    return "".join(f"/{quote(segment, safe='')}" for segment in segments)


def _refusal(request: str, status: int, content: bytes) -> errors.RequestError:
    error = _ERROR_OF.get(status, errors.ServerFailedError if status >= 500 else errors.RejectedError)
    return error(request, _said(content), status)


def _said(content: bytes) -> str:
    """The server's own words: the `error` of its JSON, or whatever the body says."""
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return content.decode(errors="replace").strip() or "no reason given"


def _innermost(error: BaseException) -> str:
    """The reason at the bottom of a chain of wrapped exceptions: the others only repeat it at length."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__
