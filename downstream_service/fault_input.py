"""From what people write (protos, JSON, metadata) to checked faults, naming the field that makes no sense."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from downstream_service.capacity import CapacityModel
from downstream_service.errors import InvalidInputError
from downstream_service.faults import (
    LATENCY_MAX_S,
    Crash,
    Distribution,
    Exponential,
    Failure,
    Fault,
    Fixed,
    Hang,
    Latency,
    LogNormal,
    Moment,
    Uniform,
)
from protos.downstream.v1 import fault_pb2, payment_pb2

FAULTS_MAX: Final = 100
CALL_FAULTS_MAX: Final = 10
WORKERS_MAX: Final = 100_000
QUEUE_SIZE_MAX: Final = 1_000_000
SIGMA_MAX: Final = 10.0
SLOW_START_FACTOR_DEFAULT: Final = 10.0
FAULT_METADATA_KEY: Final = "fault"

_SERVICE: Final = payment_pb2.DESCRIPTOR.services_by_name["PaymentService"]
_METHODS: Final = frozenset(f"{_SERVICE.full_name}/{name}" for name in _SERVICE.methods_by_name)


def read_request(source: Path) -> fault_pb2.SetFaultsRequest:
    """Read a ``SetFaultsRequest`` as protobuf JSON from a file and check it.

    Raises ``InvalidInputError`` whose field is the file, or the file and the path within.
    """
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(str(source), f"cannot be read: {error}") from error
    return parse_request(text, str(source))


def parse_request(text: str, origin: str) -> fault_pb2.SetFaultsRequest:
    """Parse a ``SetFaultsRequest`` from protobuf JSON and check it; errors begin with ``origin``."""
    request = fault_pb2.SetFaultsRequest()
    _parse_json(text, request, origin)
    try:
        checked_faults(request.faults)
        checked_capacity(request.capacity)
    except InvalidInputError as error:
        raise InvalidInputError(f"{origin}: {error.field}", error.problem) from error
    return request


def faults_of_call(values: Sequence[str]) -> tuple[Fault, ...]:
    """Read the faults a call brings in its metadata, one JSON ``Fault`` a value."""
    if len(values) > CALL_FAULTS_MAX:
        raise InvalidInputError(
            FAULT_METADATA_KEY, f"at most {CALL_FAULTS_MAX} faults a call, not {len(values)}"
        )
    faults = []
    for value in values:
        message = fault_pb2.Fault()
        _parse_json(value, message, FAULT_METADATA_KEY)
        faults.append(_fault(message, FAULT_METADATA_KEY))
    return tuple(faults)


def checked_faults(messages: Sequence[fault_pb2.Fault]) -> tuple[Fault, ...]:
    """Turn the faults of a ``SetFaultsRequest`` into the plan's."""
    if len(messages) > FAULTS_MAX:
        raise InvalidInputError("faults", f"at most {FAULTS_MAX}, not {len(messages)}")
    return tuple(_fault(message, f"faults[{index}]") for index, message in enumerate(messages))


def checked_capacity(message: fault_pb2.Capacity) -> CapacityModel | None:
    """Turn the capacity of a ``SetFaultsRequest`` into a model; ``None`` when it has no workers."""
    path = "capacity"
    _check_range(message.workers, 0, WORKERS_MAX, f"{path}.workers")
    _check_range(message.queue_size, 0, QUEUE_SIZE_MAX, f"{path}.queue_size")
    service_time_s = _seconds(message.service_time, f"{path}.service_time")
    slow_start_s = _seconds(message.slow_start, f"{path}.slow_start")
    factor = message.slow_start_factor or SLOW_START_FACTOR_DEFAULT
    _check_range(factor, 1.0, 1_000.0, f"{path}.slow_start_factor")
    if message.workers == 0:
        return None
    if not message.HasField("service_time"):
        raise InvalidInputError(f"{path}.service_time", "must be set when there are workers")
    return CapacityModel(message.workers, service_time_s, message.queue_size, slow_start_s, factor)


def _parse_json(text: str, message: Message, origin: str) -> None:
    try:
        json_format.Parse(text, message, max_recursion_depth=20)
    except json_format.ParseError as error:
        raise InvalidInputError(origin, " ".join(str(error).split())) from error


def _fault(message: fault_pb2.Fault, path: str) -> Fault:
    kind_name = message.WhichOneof("kind")
    for index, method in enumerate(message.methods):
        if method not in _METHODS:
            known = ", ".join(sorted(_METHODS))
            raise InvalidInputError(f"{path}.methods[{index}]", f"{method!r} is none of {known}")
    probability = message.probability if message.HasField("probability") else 1.0
    _check_range(probability, 0.0, 1.0, f"{path}.probability")
    _check_range(message.max_strikes, 0, 2**63, f"{path}.max_strikes")
    match kind_name:
        case "failure":
            kind: Failure | Latency | Hang | Crash = _failure(message.failure, f"{path}.failure")
        case "latency":
            kind = Latency(_distribution(message.latency, f"{path}.latency"))
        case "hang":
            kind = Hang(_moment(message.hang.when, f"{path}.hang.when"))
        case "crash":
            kind = Crash(_moment(message.crash.when, f"{path}.crash.when"))
        case _:
            raise InvalidInputError(path, "one of failure, latency, hang or crash must be set")
    name = message.name or kind_name
    return Fault(name, kind, probability, frozenset(message.methods), message.max_strikes)


def _failure(message: fault_pb2.Failure, path: str) -> Failure:
    _check_range(message.code, 1, 16, f"{path}.code")
    pushback = message.retry_pushback_ms if message.HasField("retry_pushback_ms") else None
    text = message.message or "a fault struck this call"
    return Failure(message.code, text, _moment(message.when, f"{path}.when"), pushback)


def _moment(when: int, path: str) -> Moment:
    match when:
        case fault_pb2.Failure.WHEN_UNSPECIFIED | fault_pb2.Failure.WHEN_BEFORE_EFFECT:
            return Moment.BEFORE_EFFECT
        case fault_pb2.Failure.WHEN_AFTER_EFFECT:
            return Moment.AFTER_EFFECT
    raise InvalidInputError(path, f"{when} is no known moment")


def _distribution(message: fault_pb2.Latency, path: str) -> Distribution:
    match message.WhichOneof("distribution"):
        case "fixed":
            return Fixed(_seconds(message.fixed, f"{path}.fixed"))
        case "uniform":
            path = f"{path}.uniform"
            min_s, max_s = (
                _seconds(message.uniform.min, f"{path}.min"),
                _seconds(message.uniform.max, f"{path}.max"),
            )
            if min_s > max_s:
                raise InvalidInputError(f"{path}.max", f"must not be below min ({max_s} s < {min_s} s)")
            return Uniform(min_s, max_s)
        case "log_normal":
            path = f"{path}.log_normal"
            _check_range(message.log_normal.sigma, 0.0, SIGMA_MAX, f"{path}.sigma")
            return LogNormal(_seconds(message.log_normal.median, f"{path}.median"), message.log_normal.sigma)
        case "exponential":
            return Exponential(_seconds(message.exponential.mean, f"{path}.exponential.mean"))
    raise InvalidInputError(path, "one of fixed, uniform, log_normal or exponential must be set")


def _seconds(duration: Duration, path: str) -> float:
    seconds = duration.seconds + duration.nanos / 1e9
    _check_range(seconds, 0.0, LATENCY_MAX_S, path, " s")
    return seconds


def _check_range(value: float, low: float, high: float, path: str, unit: str = "") -> None:
    if math.isnan(value) or not low <= value <= high:
        raise InvalidInputError(path, f"must be from {low:g}{unit} to {high:g}{unit}, not {value:g}{unit}")
