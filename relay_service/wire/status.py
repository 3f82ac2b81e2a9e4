"""What HTTP's own ways of failing mean in gRPC."""

from relay_service.core.status import Code
from relay_service.wire.h2 import ErrorCode

_BY_HTTP_STATUS = {
    b"400": Code.INTERNAL,
    b"401": Code.UNAUTHENTICATED,
    b"403": Code.PERMISSION_DENIED,
    b"404": Code.UNIMPLEMENTED,
    b"429": Code.UNAVAILABLE,
    b"502": Code.UNAVAILABLE,
    b"503": Code.UNAVAILABLE,
    b"504": Code.UNAVAILABLE,
}

_BY_RESET: dict[int, Code] = {
    ErrorCode.NO_ERROR: Code.INTERNAL,
    ErrorCode.PROTOCOL_ERROR: Code.INTERNAL,
    ErrorCode.INTERNAL_ERROR: Code.INTERNAL,
    ErrorCode.FLOW_CONTROL_ERROR: Code.INTERNAL,
    ErrorCode.SETTINGS_TIMEOUT: Code.INTERNAL,
    ErrorCode.FRAME_SIZE_ERROR: Code.INTERNAL,
    ErrorCode.REFUSED_STREAM: Code.UNAVAILABLE,
    ErrorCode.CANCEL: Code.CANCELLED,
    ErrorCode.COMPRESSION_ERROR: Code.INTERNAL,
    ErrorCode.CONNECT_ERROR: Code.INTERNAL,
    ErrorCode.ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Code.PERMISSION_DENIED,
}

_BY_NUMBER: dict[bytes, Code] = {b"%d" % code: code for code in Code}


def code_of_http_status(status: bytes) -> Code:
    """For a response without ``grpc-status``.

    Source: https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md.
    """
    return _BY_HTTP_STATUS.get(status, Code.UNKNOWN)


def code_of_reset(error_code: int) -> Code:
    """For a stream ended by RST_STREAM. Source: PROTOCOL-HTTP2.md, "Errors"."""
    return _BY_RESET.get(error_code, Code.UNKNOWN)


def parse_code(value: bytes) -> Code | None:
    """The code in a ``grpc-status``: UNKNOWN for a number gRPC does not define, None for no number."""
    code = _BY_NUMBER.get(value)
    if code is not None:
        return code
    return Code.UNKNOWN if value.isdigit() else None
