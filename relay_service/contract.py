"""What the relay says at its edge: request metadata it reads, trailers and error details it writes.

This is the only place that knows their names and forms.
"""

import base64
import hashlib
from collections.abc import Iterable
from functools import lru_cache

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status

from relay_service.core.criticality import DEFAULT_CRITICALITY, Criticality
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.value import value
from relay_service.core.verdict import Fate, Origin, Verdict
from relay_service.ports import Headers, RepeatedHeaders
from relay_service.times import seconds

_OK = Code.OK

DOMAIN = "resilient-relay"
"""The ``domain`` of every ErrorInfo made here."""

IDEMPOTENCY_KEY = b"idempotency-key"
HOPS = b"relay-attempt"
CRITICALITY = b"relay-criticality"
CLIENT_ID = b"relay-client-id"
PUSHBACK = b"grpc-retry-pushback-ms"
DETAILS = b"grpc-status-details-bin"
KEY_STATUS = b"idempotency-status"
FIRST_SEEN = b"idempotency-first-seen"
DEAD_LETTER_ID = b"relay-dead-letter-id"
DURABILITY = b"relay-durability"
PREVIOUS_ATTEMPTS = b"grpc-previous-rpc-attempts"

REPLACED = frozenset({HOPS, IDEMPOTENCY_KEY, b"traceparent", b"tracestate", b"baggage"})
"""Request metadata that is not passed on as it came: every attempt gets its own instead."""

IDENTITY = b"relay-identity-bin"
"""Inside the relay only: who the caller of one of its own services is, as far as that was verified."""

TOLD_TO_OWN_SERVICES = REPLACED | {IDENTITY}
"""Request metadata that the relay's own services get from the data plane and from nobody else."""

KEY_LENGTH_MAX = 255
CLIENT_ID_LENGTH_MAX = 128
"""Of a longer name only the beginning is looked at."""

_CLASSES = {one.name.encode(): one for one in Criticality}
_QUOTA_REASONS = frozenset(
    {
        Reason.QUEUE_FULL,
        Reason.SHED_BY_CRITICALITY,
        Reason.FAIR_SHARE,
        Reason.CLIENT_QUOTA,
        Reason.QUEUE_STANDING,
        Reason.CONCURRENCY_LIMIT,
        Reason.STREAM_LIMIT,
        Reason.ADAPTIVE_THROTTLE,
    }
)
_DO_NOT_RETURN_MS = -1
_NOT_STORED = REPLACED | {
    b"authorization",
    b"proxy-authorization",
    b"cookie",
    b"x-api-key",
    b"grpc-encoding",
    b"grpc-accept-encoding",
    b"user-agent",
}
_EXECUTED_AT_ONCE: Headers = (
    (b"relay-attempts", b"1"),
    (b"relay-decision", b"FORWARDED"),
    (b"relay-origin", b"upstream"),
    (b"relay-outcome", b"executed"),
)
_OUR_TRAILERS = frozenset(name for name, _ in _EXECUTED_AT_ONCE) | {
    KEY_STATUS,
    FIRST_SEEN,
    DEAD_LETTER_ID,
    DURABILITY,
}
MESSAGE_CHARS_MAX = 1_000
"""Of a status message that stands in error details: it may quote what an upstream said."""


_ASKING = REPLACED | {CRITICALITY, CLIENT_ID}
"""Request metadata that asks something of the relay, or that is not passed on as it came."""


@value
class Asked:
    """What a caller's metadata asks of the relay."""

    hops: int = 0
    """Relays the call has passed through before."""
    criticality: Criticality = DEFAULT_CRITICALITY
    client: bytes = b""
    """The client that the caller says it is."""
    keyed: bool = False
    """Whether it names a key, well-formed or not."""
    is_nothing: bool = False
    """Whether all of the metadata is to be passed on as it came."""


_NOTHING_ASKED = Asked(is_nothing=True)


def asked(metadata: Headers) -> Asked:
    """Read the metadata; most callers' asks nothing."""
    names = dict(metadata)
    if _ASKING.isdisjoint(names):
        return _NOTHING_ASKED
    return Asked(hops(metadata), criticality(metadata), client_id(metadata), IDEMPOTENCY_KEY in names)


class MalformedKeyError(ValueError):
    """The caller's idempotency key is not one."""


def header(metadata: Headers, name: bytes) -> bytes | None:
    """The value of ``name``, None when it is absent; the first one when it is given twice."""
    for key, content in metadata:
        if key == name:
            return content
    return None


def idempotency_key(metadata: Headers) -> bytes | None:
    """The caller's key. Raises `MalformedKeyError` unless it is 1 to 255 printable ASCII bytes, once."""
    keys = [value for name, value in metadata if name == IDEMPOTENCY_KEY]
    if not keys:
        return None
    key = keys[0]
    if len(keys) > 1 or not is_key(key):
        raise MalformedKeyError
    return key


def is_key(key: bytes) -> bool:
    """Whether a key is 1 to 255 printable ASCII bytes."""
    return 1 <= len(key) <= KEY_LENGTH_MAX and all(0x20 <= byte <= 0x7E for byte in key)


def is_derived(key: bytes) -> bool:
    """Whether a key has the form that `derived_key` gives."""
    return len(key) == 64 and not set(key) - set(b"0123456789abcdef")


def derived_key(tenant: str, method: str, key: bytes) -> bytes:
    """The key the upstream gets: the same for every attempt, relay and replay of (tenant, method, key).

    It hides the caller's key from the upstream and keeps two tenants' equal keys apart.
    """
    scope = b"\0".join((DOMAIN.encode(), tenant.encode(), method.encode(), key))
    return hashlib.sha256(scope).hexdigest().encode()


def payload_key(fingerprint: bytes) -> bytes:
    """The key of a call that came without one, where the policy makes one of its request."""
    return b"sha256:" + fingerprint.hex().encode()


def without_credentials(metadata: Headers) -> tuple[tuple[str, bytes], ...]:
    """What of a caller's metadata may be stored: nothing that lets its reader act for the caller, nothing
    that belongs to this one connection."""
    return tuple(
        (name.decode("ascii", "replace"), value) for name, value in metadata if name not in _NOT_STORED
    )


def hops(metadata: Headers) -> int:
    """Relays the call has passed through before; a value that is no number counts as one."""
    value = header(metadata, HOPS)
    if value is None:
        return 0
    return int(value) if value.isdigit() and len(value) < 4 else 1


def criticality(metadata: Headers) -> Criticality:
    """The class the caller names, in any case; CRITICAL when it names none or one not known here."""
    value = header(metadata, CRITICALITY)
    return DEFAULT_CRITICALITY if value is None else _CLASSES.get(value.upper(), DEFAULT_CRITICALITY)


def client_id(metadata: Headers) -> bytes:
    """The client that the caller says it is; empty when it says none. A claim: it may decide about quotas
    and turns, and about nothing else."""
    return (header(metadata, CLIENT_ID) or b"")[:CLIENT_ID_LENGTH_MAX]


def pushback_s(trailers: Headers) -> float | None:
    """When the upstream says to come back; negative means not at all, None that it said nothing.

    ``grpc-retry-pushback-ms`` goes before RetryInfo; a malformed value means "do not retry" (gRFC A6).
    """
    value = header(trailers, PUSHBACK)
    if value is not None:
        text = value.decode("ascii", "replace")
        return int(text) / 1000 if text.removeprefix("-").isdigit() and len(text) <= 10 else -1.0
    details = header(trailers, DETAILS)
    return _retry_info_s(details) if details else None


def _retry_info_s(details: bytes) -> float | None:
    """RetryInfo's delay; None without one, and for bytes that are no details at all."""
    try:
        status = Status.FromString(base64.b64decode(details + b"=" * (-len(details) % 4)))
        for detail in status.details:
            if detail.TypeName() == RetryInfo.DESCRIPTOR.full_name:
                info = RetryInfo.FromString(detail.value)
                return seconds(info.retry_delay)
    except (DecodeError, ValueError):
        pass
    return None


def trailers_of(verdict: Verdict, method: str, upstream_trailers: Headers) -> Headers:
    """The trailers of a call that an attempt answered or failed: the upstream's, then ours."""
    # An upstream that is a relay itself has said all this of its own attempts.
    theirs = upstream_trailers and [field for field in upstream_trailers if field[0] not in _OUR_TRAILERS]
    if verdict.code is _OK and verdict.attempts == 1 and not verdict.fell_back:
        return (*theirs, *_EXECUTED_AT_ONCE) if theirs else _EXECUTED_AT_ONCE
    ours = [
        (b"relay-attempts", str(verdict.attempts).encode()),
        (b"relay-decision", verdict.decision.encode()),
        (b"relay-origin", verdict.origin.value.encode()),
        (b"relay-outcome", verdict.outcome.encode()),
    ]
    if verdict.origin is Origin.UPSTREAM:
        return (*theirs, *ours)
    return (*ours, *_relay_details(verdict, method))


def trailers_of_refusal(verdict: Verdict, method: str) -> Headers:
    """The trailers of a call that no attempt was made for."""
    reason = verdict.reason
    assert reason is not None, "a refusal has a reason"  # noqa: S101 (states that cannot be)
    if verdict.message != reason.meaning:
        return trailers_of(verdict, method, ())  # it quotes its caller: nobody else is told the same
    pushback_ms = None
    if verdict.pushback_s is not None:
        pushback_ms = _pushback_ms(verdict.pushback_s)
    return _refused(reason, verdict.code, verdict.message, method, pushback_ms, subject=verdict.subject)


@lru_cache(maxsize=1024)
def _refused(
    reason: Reason, code: Code, message: str, method: str, pushback_ms: int | None, *, subject: str
) -> Headers:
    """A flood is refused with few different answers, so each is made once."""
    pushback_s = None if pushback_ms is None else pushback_ms / 1000
    verdict = Verdict(
        code, message, Origin.RELAY, Fate.REFUSED, reason, pushback_s=pushback_s, subject=subject
    )
    return RepeatedHeaders(trailers_of(verdict, method, ()))


def _relay_details(verdict: Verdict, method: str) -> Iterable[tuple[bytes, bytes]]:
    if verdict.reason is None:
        return
    pushback_ms = None
    if verdict.pushback_s is not None:
        pushback_ms = _pushback_ms(verdict.pushback_s)
        yield PUSHBACK, str(pushback_ms).encode()
    message = verdict.message[:MESSAGE_CHARS_MAX]
    yield (
        DETAILS,
        _details(verdict.code, message, verdict.reason, method, pushback_ms, subject=verdict.subject),
    )


def _pushback_ms(pushback_s: float) -> int:
    """Two significant digits: jitter enough, and few enough values for the answers to be kept."""
    if pushback_s < 0:
        return _DO_NOT_RETURN_MS
    pushback_ms = round(pushback_s * 1000)
    unit = 1
    while pushback_ms >= 100 * unit:
        unit *= 10
    return pushback_ms // unit * unit


def _details(
    code: Code, message: str, reason: Reason, method: str, pushback_ms: int | None, *, subject: str
) -> bytes:
    """``grpc-status-details-bin``: ErrorInfo, and RetryInfo and QuotaFailure where they apply.

    Unpadded base64, as gRPC writes it.
    """
    status = Status(code=int(code), message=message)
    metadata = {"method": method}
    whose, _, name = subject.partition(":")
    if name:
        metadata[whose] = name
    details = [ErrorInfo(reason=reason.name, domain=DOMAIN, metadata=metadata)]
    packed = [_pack(detail) for detail in details]
    if pushback_ms is not None and pushback_ms >= 0:
        delay = Duration(seconds=pushback_ms // 1000, nanos=pushback_ms % 1000 * 1_000_000)
        packed.append(_pack(RetryInfo(retry_delay=delay)))
    if reason in _QUOTA_REASONS:
        violation = QuotaFailure.Violation(subject=subject, description=reason.meaning)
        packed.append(_pack(QuotaFailure(violations=[violation])))
    status.details.extend(packed)
    return base64.b64encode(status.SerializeToString()).rstrip(b"=")


def _pack(message: ErrorInfo | RetryInfo | QuotaFailure) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
