"""pydantic's errors in the words of this project: where it stands, what was found, what is allowed."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from relay_service.config.problems import Problem, json_path, shown

GRPC_FIELDS_WITHOUT_EFFECT = {
    "waitForReady": "not supported: an attempt without a connection ends as UNAVAILABLE and is retried",
    "maxRequestMessageBytes": "not supported: set maxMessageBytes in relay.methods",
    "maxResponseMessageBytes": "not supported: set maxMessageBytes in relay.methods",
    "loadBalancingPolicy": "not supported: connections are set in relay.upstreams",
    "loadBalancingConfig": "not supported: connections are set in relay.upstreams",
    "healthCheckConfig": "not supported: connections are set in relay.upstreams",
}
"""What a gRPC service config may hold and the relay does not act on; ignoring it would be a lie."""

_MISPLACED_AT_ROOT = ("name", "timeout", "retryPolicy", "hedgingPolicy")


def problems_of(error: ValidationError, where: str, model: type[BaseModel]) -> Iterator[Problem]:
    """Every error of a validation of ``model`` as a `Problem` in the file ``where``."""
    for detail in error.errors(include_url=False):
        parts = tuple(part for part in detail["loc"] if part != "[key]")
        yield Problem(where, json_path(parts), _found(detail), _allowed(detail, parts, model))


def _found(detail: ErrorDetails) -> str:
    return "" if detail["type"] == "missing" else f"got {shown(detail['input'])}"


def _allowed(detail: ErrorDetails, parts: Sequence[str | int], model: type[BaseModel]) -> str:
    context: dict[str, Any] = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_field(parts, model)
        case "missing":
            return "is required" + _note_on_names(parts)
        case "too_short":
            return "must not be an empty list" + _note_on_names(parts)
        case "value_error":
            return str(context["error"])
        case "string_pattern_mismatch":
            return f"must match {context['pattern']}"
        case "model_type":
            return "must be a JSON object"
        case _:
            return in_plain_words(detail["msg"])


def in_plain_words(message: str) -> str:
    """pydantic's "Input should be …", and our own ValueErrors, as "must be …"."""
    plain = message.removeprefix("Value error, ")
    for theirs in ("Input", "Value", "String", "List", "Dictionary"):
        plain = plain.removeprefix(theirs) if plain.startswith(f"{theirs} should ") else plain
    plain = plain.strip().replace("should ", "must ", 1)
    return plain[:1].lower() + plain[1:]


def _note_on_names(parts: Sequence[str | int]) -> str:
    is_name = parts[-1:] == ("name",)
    return ": [{}] means every method (gRPC silently ignores an entry that names none)" if is_name else ""


def _unknown_field(parts: Sequence[str | int], model: type[BaseModel]) -> str:
    field = str(parts[-1])
    if len(parts) == 1 and field in _MISPLACED_AT_ROOT:
        return f"belongs into an entry of methodConfig (gRPC silently ignores a {field} at the root)"
    if field in GRPC_FIELDS_WITHOUT_EFFECT and "relay" not in parts:
        return GRPC_FIELDS_WITHOUT_EFFECT[field]
    known = field_names(_model_at(model, parts[:-1]))
    close = difflib.get_close_matches(field, known, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return f"unknown field{meant}; known here: {', '.join(known)}"


def field_names(model: type[BaseModel]) -> list[str]:
    """The fields of an object as the file spells them."""
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_at(model: type[BaseModel], parts: Sequence[str | int]) -> type[BaseModel]:
    """The model of the object at a place; list indexes and the keys of maps lead no deeper."""
    for part in parts:
        for name, field in model.model_fields.items():
            if part == (field.alias or name):
                model = nested_model(field.annotation) or model
    return model


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """The model inside ``list[M]``, ``dict[str, M]``, ``M | None`` or an Annotated of these, if any."""
    if arguments := get_args(annotation):
        return next((found for argument in arguments if (found := nested_model(argument))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
