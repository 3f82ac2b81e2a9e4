"""What can go wrong with a Toxiproxy, as one small hierarchy: where, what was said, what to do."""

from __future__ import annotations


class ToxiproxyError(Exception):
    """The root: catch this to catch them all."""


class RequestError(ToxiproxyError):
    """A request to the API did not succeed.

    `request` is the method and URL, `status` the HTTP code (None where there was no answer), `message` what
    the server said, or why nothing was heard.
    """

    advice = ""

    def __init__(self, request: str, message: str, status: int | None = None) -> None:
        answered = f" answered {status}" if status is not None else ""
        super().__init__(f"{request}{answered}: {message}" + (f" ({self.advice})" if self.advice else ""))
        self.request = request
        self.message = message
        self.status = status


class UnreachableError(RequestError):
    """No Toxiproxy answered in time: refused, timed out, broken off, or not HTTP."""

    advice = "is Toxiproxy running there? `relay-chaos toxiproxy which` says which one would be used"


class NotFoundError(RequestError):
    """No proxy or toxic of that name (404)."""

    advice = "create it first, or look at what the server has with proxies() and toxics()"


class AlreadyExistsError(RequestError):
    """A proxy or toxic of that name is there already (409)."""

    advice = "choose another name, update the existing one, or delete it first"


class RejectedError(RequestError):
    """The server does not take the request as it is (400, 403, 405, 413)."""


class ServerFailedError(RequestError):
    """The server could not do what was asked (5xx): above all, an address that cannot be listened on."""

    advice = "a busy port is the usual reason: let the proxy listen on port 0 and read back its address"


class LaunchError(ToxiproxyError):
    """A Toxiproxy process did not become ready; the message carries the end of its log."""


class DiedError(ToxiproxyError):
    """A Toxiproxy process that was ready has ended by itself; the message carries its exit code and log."""


class GoMissingError(ToxiproxyError):
    """Installing needs Go, and no `go` is on PATH."""


class InstallError(ToxiproxyError):
    """`go install` failed; the message carries the end of what it printed."""
