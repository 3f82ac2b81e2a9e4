"""gRPC's header blocks: requests into calls, calls into requests, replies and their ends.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md. Pure functions; values of
``-bin`` metadata are passed on as the base64 they came as.
"""

from functools import lru_cache

from relay_service.core.evidence import Delivery
from relay_service.core.names import MAX_METHOD_NAME_BYTES, is_method_name
from relay_service.core.status import Code
from relay_service.ports import AttemptEnd, Headers, RepeatedHeaders
from relay_service.wire.codec import decode_message, decode_timeout, encode_message, encode_timeout
from relay_service.wire.status import code_of_http_status, parse_code

Field = tuple[bytes, bytes]

_CONTENT_TYPE_PREFIX = b"application/grpc"
_PLAIN_CONTENT_TYPES = frozenset({b"application/grpc", b"application/grpc+proto"})

_METHOD_POST: Field = (b":method", b"POST")
_STATUS_200: Field = (b":status", b"200")
_TE: Field = (b"te", b"trailers")
_CONTENT_TYPE: Field = (b"content-type", b"application/grpc")
_GRPC_STATUS: tuple[Field, ...] = tuple((b"grpc-status", b"%d" % code) for code in Code)


_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields that speak of one connection only (RFC 9110 section 7.6.1)."""

_PREVIOUS_ATTEMPTS = b"grpc-previous-rpc-attempts"
_NOT_METADATA = _HOP_BY_HOP | {
    b":method",
    b":path",
    b":scheme",
    b":authority",
    b":protocol",
    b"host",
    b"content-type",
    # The relay cuts DATA as it likes; the length of what it sends is its own.
    b"content-length",
    b"grpc-timeout",
    # Only a client library may set it (gRFC A6); our hops are counted in a field of our own.
    _PREVIOUS_ATTEMPTS,
}
"""Request fields that are not simply passed on."""

_RESPONSE_DROP = _HOP_BY_HOP | {b":status", b"content-type", b"content-length"}
_NOT_TRAILERS = _RESPONSE_DROP | {b"grpc-status", b"grpc-message"}


class NotGrpcError(Exception):
    """The request is no gRPC call; it is answered in HTTP's terms."""

    def __init__(self, http_status: bytes) -> None:
        super().__init__(http_status)
        self.http_status = http_status


class MalformedCallError(Exception):
    """The request is gRPC, but malformed; it is answered with a status."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def parse_request(headers: Headers) -> tuple[str, list[Field], float | None, bool]:
    """Method (``package.Service/Method``), metadata to pass on, the caller's timeout in seconds, and whether
    its client library has tried the call before.

    A content-type with a codec of its own (``application/grpc+json``) stays in the metadata, because the
    upstream must hear of it. Raises NotGrpcError and MalformedCallError.
    """
    special = dict(headers)
    if special.get(b":method") != b"POST":
        raise NotGrpcError(b"405")
    metadata = [field for field in headers if field[0] not in _NOT_METADATA]
    content_type = special.get(b"content-type", b"")
    if content_type not in _PLAIN_CONTENT_TYPES:
        if not _is_grpc(content_type):
            raise NotGrpcError(b"415")
        metadata.append((b"content-type", content_type))
    timeout = special.get(b"grpc-timeout")
    timeout_s = None if timeout is None else _timeout(timeout)
    return _method(special.get(b":path", b"")), metadata, timeout_s, _PREVIOUS_ATTEMPTS in special


def _timeout(value: bytes) -> float:
    try:
        return decode_timeout(value)
    except ValueError as error:
        raise MalformedCallError(Code.INTERNAL, str(error)) from None


def _method(path: bytes) -> str:
    method = method_of_path(path)
    if method is None:
        raise MalformedCallError(Code.UNIMPLEMENTED, f"malformed method name: {path[:256]!r}")
    return method


def method_of_path(path: bytes) -> str | None:
    """``package.Service/Method`` for ``/package.Service/Method``, None for a path that names no method."""
    return _known_method(path) if len(path) <= MAX_METHOD_NAME_BYTES + 1 else None


@lru_cache(maxsize=1024)
def _known_method(path: bytes) -> str | None:
    """Most calls are to a few methods: each is read once, and is the same string in all its calls."""
    name = path.decode("latin-1")
    return name[1:] if name.startswith("/") and is_method_name(name[1:]) else None


def _is_grpc(content_type: bytes) -> bool:
    if content_type in _PLAIN_CONTENT_TYPES:
        return True
    return content_type.startswith(_CONTENT_TYPE_PREFIX) and content_type[16:17] in (b"", b"+", b";")


class RequestTemplate:
    """The fields that all requests to one upstream share."""

    __slots__ = ("_authority", "_scheme")

    def __init__(self, scheme: str, authority: str) -> None:
        self._scheme = (b":scheme", scheme.encode("ascii"))
        self._authority = (b":authority", authority.encode("ascii"))

    def headers(self, method: str, metadata: Headers, timeout_s: float | None) -> list[Field]:
        """The header block of a request for ``method`` (``package.Service/Method``)."""
        fields = [_METHOD_POST, self._scheme, _path(method), self._authority, _TE]
        if timeout_s is not None:
            fields.append((b"grpc-timeout", encode_timeout(timeout_s)))
        if b"content-type" not in dict(metadata):
            fields.append(_CONTENT_TYPE)
        fields += metadata
        return fields


@lru_cache(maxsize=1024)
def _path(method: str) -> Field:
    return b":path", b"/" + method.encode("ascii")


def response_headers(metadata: Headers) -> list[Field]:
    """The header block that commits a reply."""
    return [_STATUS_200, _CONTENT_TYPE, *metadata]


def trailers(code: Code, message: str, rest: Headers) -> list[Field]:
    """The header block that ends a reply."""
    fields = [_GRPC_STATUS[code]]
    if message:
        fields.append((b"grpc-message", encode_message(message)))
    fields += rest
    return fields


def trailers_only(code: Code, message: str, rest: Headers) -> list[Field]:
    """The one header block that is a whole reply."""
    fields = [_STATUS_200, _CONTENT_TYPE, _GRPC_STATUS[code]]
    if message:
        fields.append((b"grpc-message", encode_message(message)))
    fields += rest
    return fields


@lru_cache(maxsize=1024)
def repeated_trailers_only(code: Code, message: str, rest: RepeatedHeaders) -> list[Field]:
    """The same for what is answered again and again, made once; nobody may write to it."""
    return trailers_only(code, message, rest)


def http_error(http_status: bytes) -> list[Field]:
    """A whole reply in HTTP's terms."""
    fields = [(b":status", http_status)]
    if http_status == b"405":
        fields.append((b"allow", b"POST"))
    return fields


def parse_response(headers: Headers) -> list[Field] | AttemptEnd:
    """The metadata of a response that goes on, or, when it is none of gRPC's, the end it amounts to."""
    special = dict(headers)
    status, content_type = special.get(b":status", b""), special.get(b"content-type", b"")
    if status == b"200" and (content_type in _PLAIN_CONTENT_TYPES or _is_grpc(content_type)):
        return [field for field in headers if field[0] not in _RESPONSE_DROP]
    return _not_grpc(status, content_type)


_END_OK = AttemptEnd(Delivery.ANSWERED, Code.OK, "")


def parse_end(headers: Headers) -> AttemptEnd:
    """What trailers, or the headers of a Trailers-Only reply, say. ANSWERED only with a ``grpc-status``."""
    if len(headers) == 1 and headers[0] == _GRPC_STATUS[0]:
        return _END_OK  # which is how most calls end
    special = dict(headers)
    grpc_status = special.get(b"grpc-status")
    if grpc_status is not None:
        rest = [field for field in headers if field[0] not in _NOT_TRAILERS]
        return _status_end(grpc_status, special.get(b"grpc-message"), rest)
    http_status = special.get(b":status")
    if http_status is not None:
        return _not_grpc(http_status, special.get(b"content-type", b""))
    return missing_status()


def _status_end(grpc_status: bytes, grpc_message: bytes | None, rest: list[Field]) -> AttemptEnd:
    code = parse_code(grpc_status)
    if code is None:
        shown = grpc_status[:32].decode("latin-1")
        return AttemptEnd(Delivery.UNANSWERED, Code.UNKNOWN, f"malformed grpc-status from upstream: {shown}")
    message = decode_message(grpc_message) if grpc_message else ""
    return AttemptEnd(Delivery.ANSWERED, code, message, rest)


def missing_status() -> AttemptEnd:
    """The end of a response that had no trailers, or trailers without ``grpc-status``."""
    return AttemptEnd(Delivery.UNANSWERED, Code.UNKNOWN, "the upstream ended the call without a grpc-status")


def _not_grpc(http_status: bytes, content_type: bytes) -> AttemptEnd:
    shown = http_status.decode("latin-1")
    kind = content_type[:64].decode("latin-1") or "none"
    return AttemptEnd(
        Delivery.UNANSWERED,
        code_of_http_status(http_status),
        f"the upstream answered with HTTP status {shown}, content-type {kind}, and no grpc-status",
    )
