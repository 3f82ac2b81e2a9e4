"""Dead letters, forecasts and reports as lines for people."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from relay_service.cli.job_view import pairs, try_lines, work_pairs
from relay_service.cli.work import code_name, counted, moment, name_of

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool

LINES_MAX = 20
"""Of letters named one by one; `--json` names them all."""


def letter_row(letter: Any) -> tuple[str, ...]:
    """One line of a listing."""
    return (
        letter.id,
        letter_state(letter),
        _cause(letter.cause),
        letter.work.method,
        letter.work.idempotency_key,
        moment(letter.death_time),
        str(letter.attempts),
        f"{code_name(letter.code)}: {letter.message}"[:80],
    )


def letter_state(letter: Any) -> str:
    """Where a letter stands, in one word."""
    return _state(letter.state)


def letter_lines(letter: Any, known: "DescriptorPool | None") -> Iterator[str]:
    """All of one letter."""
    yield from pairs(
        ("letter", letter.id),
        ("state", f"{letter_state(letter)}{f' ({letter.note})' if letter.note else ''}"),
        ("cause", f"{_cause(letter.cause)}, {code_name(letter.code)}: {letter.message}"),
        *work_pairs(letter.work, known),
        ("tenant", letter.tenant),
        ("job", letter.job_id),
        ("submitted", moment(letter.submit_time)),
        ("died", f"{moment(letter.death_time)} after {counted(letter.attempts, 'run')}"),
        ("kept until", moment(letter.expire_time)),
        ("trace", letter.traceparent),
        ("policy", letter.policy),
    )
    yield from try_lines(letter.tries)
    for number, one in enumerate(letter.replays):
        head = "replays" if number == 0 else ""
        yield f"{head:12} {moment(one.time)}  by {one.by}, job {one.job_id}: {one.outcome or 'under way'}"


def group_row(group: Any) -> tuple[str, ...]:
    """One line of the groups."""
    return (
        str(group.count),
        _state(group.state),
        _cause(group.cause),
        code_name(group.code),
        group.method,
        moment(group.oldest_time),
        moment(group.newest_time),
        f"{group.sample_id}: {group.sample_message}"[:100],
    )


def forecast_lines(forecasts: Sequence[Any]) -> Iterator[str]:
    """How many replays are protected by what, and the letters whose replay may have a second effect or
    would break their order."""
    from protos.relay.v1 import dead_letter_pb2

    counts = Counter(_protection(one) for one in forecasts)
    parts = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    yield f"{counted(len(forecasts), 'letter')} would be replayed: {parts or 'none'}"
    harmful = (dead_letter_pb2.PROTECTION_KEY_EXPIRED, dead_letter_pb2.PROTECTION_UNPROTECTED)
    risky = [one for one in forecasts if one.protection in harmful or one.breaks_order]
    for one in risky[:LINES_MAX]:
        yield f"  {one.letter_id}: {_protection(one)}{', breaks its order' if one.breaks_order else ''}"
    if len(risky) > LINES_MAX:
        yield f"  … and {len(risky) - LINES_MAX} more"


def report_lines(report: Any) -> Iterator[str]:
    """What a replay did, and where the forecast was wrong."""
    yield (
        f"{counted(report.total, 'letter')}: {report.executed} executed,"
        f" {report.already_executed} had been executed, "
        f"{report.failed} failed, {report.not_started} not started, {report.unfinished} unfinished"
    )
    if report.stopped:
        yield f"stopped early: {report.stopped}"
    for end in report.contradicted[:LINES_MAX]:
        yield f"  not as forecast: {end.forecast.letter_id}: {end.detail}"


def compared_lines(ends: Sequence[Any]) -> Iterator[str]:
    """What was forecast beside what happened."""
    from protos.relay.v1 import dead_letter_pb2

    seen = Counter(
        (_protection(end.forecast), name_of(dead_letter_pb2.Happened, end.happened, "HAPPENED_"))
        for end in ends
    )
    for name in sorted({name for name, _ in seen}):
        parts = ", ".join(f"{n} {happened}" for (of, happened), n in sorted(seen.items()) if of == name)
        yield f"  forecast {name}: {parts}"


def _protection(forecast: Any) -> str:
    from protos.relay.v1 import dead_letter_pb2

    return name_of(dead_letter_pb2.Protection, forecast.protection, "PROTECTION_")


def _state(number: int) -> str:
    from protos.relay.v1 import dead_letter_pb2

    return name_of(dead_letter_pb2.LetterState, number, "LETTER_STATE_")


def _cause(number: int) -> str:
    from protos.relay.v1 import dead_letter_pb2

    return name_of(dead_letter_pb2.Cause, number, "CAUSE_")
