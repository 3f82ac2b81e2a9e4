"""Dead letters, forecasts and reports as lines for people."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from relay_service.cli.work import moment, name_of
from relay_service.core.status import Code

LINES_MAX = 20
"""Of letters named one by one; `--json` names them all."""


def letter_row(letter: Any) -> tuple[str, ...]:
    """One line of a listing."""
    return (
        letter.id,
        _state(letter.state),
        _cause(letter.cause),
        letter.work.method,
        letter.work.idempotency_key,
        moment(letter.death_time),
        str(letter.attempts),
        f"{_code(letter.code)}: {letter.message}"[:80],
    )


def group_row(group: Any) -> tuple[str, ...]:
    """One line of the groups."""
    return (
        str(group.count),
        _state(group.state),
        _cause(group.cause),
        _code(group.code),
        group.method,
        moment(group.oldest_time),
        moment(group.newest_time),
        f"{group.sample_id}: {group.sample_message}"[:100],
    )


def counted(forecasts: Sequence[Any]) -> str:
    """How many replays are protected by what."""
    from protos.relay.v1 import dead_letter_pb2

    counts = Counter(name_of(dead_letter_pb2.Protection, one.protection, "PROTECTION_") for one in forecasts)
    parts = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return f"{len(forecasts)} letters would be replayed: {parts or 'none'}"


def surprise_lines(forecasts: Sequence[Any]) -> Iterator[str]:
    """The letters whose replay may have a second effect, or would break their order."""
    from protos.relay.v1 import dead_letter_pb2

    harmful = (dead_letter_pb2.PROTECTION_KEY_EXPIRED, dead_letter_pb2.PROTECTION_UNPROTECTED)
    risky = [one for one in forecasts if one.protection in harmful or one.breaks_order]
    for one in risky[:LINES_MAX]:
        why = name_of(dead_letter_pb2.Protection, one.protection, "PROTECTION_")
        yield f"  {one.letter_id}: {why}{', breaks its order' if one.breaks_order else ''}"
    if len(risky) > LINES_MAX:
        yield f"  … and {len(risky) - LINES_MAX} more"


def report_lines(report: Any) -> Iterator[str]:
    """What a replay did, and where the forecast was wrong."""
    yield (
        f"{report.total} letters: {report.executed} executed, {report.already_executed} had been executed, "
        f"{report.failed} failed, {report.not_started} not started, {report.unfinished} unfinished"
    )
    if report.stopped:
        yield f"stopped early: {report.stopped}"
    for end in report.contradicted[:LINES_MAX]:
        yield f"  not as forecast: {end.forecast.letter_id}: {end.detail}"


def _state(number: int) -> str:
    from protos.relay.v1 import dead_letter_pb2

    return name_of(dead_letter_pb2.LetterState, number, "LETTER_STATE_")


def _cause(number: int) -> str:
    from protos.relay.v1 import dead_letter_pb2

    return name_of(dead_letter_pb2.Cause, number, "CAUSE_")


def _code(number: int) -> str:
    return Code(number).name if number in set(Code) else str(number)
