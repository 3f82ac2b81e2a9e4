"""What a dry run says of each letter, and that it holds: by the table, and through a real relay."""

from typing import Any

import pytest

from protos.relay.v1 import dead_letter_pb2, job_pb2
from relay_service.core.evidence import Delivery, Safety
from relay_service.core.idempotency import Record, RecordState, Scope
from relay_service.core.job import Cause, DeadLetter, LetterState, Try, Work
from relay_service.core.status import Code
from relay_service.jobs.forecast import Forecast, Happened, Protection, protection_of

CHARGE = "downstream.v1.PaymentService/Charge"
OPEN = dead_letter_pb2.LETTER_STATE_OPEN
RETRYABLE = frozenset({Code.UNAVAILABLE})
UNANSWERED, ANSWERED, NOT_SENT = Delivery.UNANSWERED, Delivery.ANSWERED, Delivery.NOT_SENT


def a_letter(*ends: tuple[Delivery, Code], attempts: int | None = None, key: bytes = b"k") -> DeadLetter:
    tries = tuple(Try(1.0, "w", code, "", delivery) for delivery, code in ends)
    return DeadLetter(
        "letter",
        Work("", "S/M", b"", key=key),
        Cause.RETRIES_EXHAUSTED,
        LetterState.OPEN,
        2.0,
        3.0,
        1.0,
        len(tries) if attempts is None else attempts,
        tries=tries,
        job_id="job",
    )


@pytest.mark.parametrize(
    ("letter", "safety", "wanted"),
    [
        (a_letter((NOT_SENT, Code.UNAVAILABLE)), Safety.NONE, Protection.NOT_EXECUTED),
        (a_letter((ANSWERED, Code.UNAVAILABLE)), Safety.NONE, Protection.NOT_EXECUTED),
        (a_letter((ANSWERED, Code.INVALID_ARGUMENT)), Safety.NONE, Protection.NOT_EXECUTED),
        (a_letter(), Safety.NONE, Protection.NOT_EXECUTED),
        (a_letter((UNANSWERED, Code.UNAVAILABLE)), Safety.NONE, Protection.UNPROTECTED),
        (a_letter((ANSWERED, Code.INTERNAL)), Safety.NONE, Protection.UNPROTECTED),
        (a_letter((NOT_SENT, Code.UNAVAILABLE), attempts=2), Safety.NONE, Protection.UNPROTECTED),
        (a_letter((ANSWERED, Code.UNKNOWN)), Safety.IDEMPOTENT, Protection.HARMLESS),
        (a_letter((UNANSWERED, Code.DEADLINE_EXCEEDED)), Safety.NO_SIDE_EFFECTS, Protection.HARMLESS),
        (a_letter((UNANSWERED, Code.UNAVAILABLE)), Safety.KEYED, Protection.KEY_EXPIRED),
        (a_letter((UNANSWERED, Code.UNAVAILABLE), key=b"job"), Safety.KEYED, Protection.KEYED),
    ],
)
def test_why_a_replay_has_at_most_one_effect(letter: DeadLetter, safety: Safety, wanted: Protection) -> None:
    """Without a record of its key: that one is known only to its job where it is the job's id."""
    assert protection_of(letter, None, safety, RETRYABLE) is wanted


def test_a_key_that_is_still_known_protects_and_one_that_expired_does_not() -> None:
    letter = a_letter((UNANSWERED, Code.UNAVAILABLE))
    for state, wanted in (
        (RecordState.DEAD_LETTERED, Protection.KEYED),
        (RecordState.EXPIRED, Protection.KEY_EXPIRED),
    ):
        record = Record(Scope("", "S/M", b"k"), b"", state, 1, "", 0.0, 0.0, 0.0, 0.0)
        assert protection_of(letter, record, Safety.KEYED, RETRYABLE) is wanted


def test_what_contradicts_a_forecast() -> None:
    never = Forecast("letter", Protection.NOT_EXECUTED, breaks_order=False, is_open=True)
    keyed = Forecast("letter", Protection.KEYED, breaks_order=False, is_open=True)
    assert never.is_contradicted(Happened.ALREADY_EXECUTED)
    assert not keyed.is_contradicted(Happened.ALREADY_EXECUTED)
    assert keyed.is_contradicted(Happened.NOT_STARTED)
    assert not never.is_contradicted(Happened.EXECUTED)


async def test_a_dry_run_names_what_would_do_harm_and_does_none(lab: Any, helpers: Any) -> None:
    """A letter that may have been executed and has no protection, and one whose order key has gone on."""
    rules = helpers.policy(jobs={"maxAttempts": 1})
    rules["relay"]["methods"][0]["safety"] = "NONE"
    relay = await lab.relay(rules)
    await lab.set_faults({"failure": {"code": 13, "when": "WHEN_AFTER_EFFECT"}, "methods": [CHARGE]})
    await relay.submit("unprotected", account="unprotected")
    await helpers.all_ended(relay, 1)
    await lab.set_faults({"failure": {"code": 14}, "methods": [CHARGE]})
    await relay.submit("overtaken", account="overtaken", order_key="orders")
    await helpers.all_ended(relay, 2)
    await lab.heal()
    await relay.submit("later", account="later", order_key="orders")
    await helpers.all_ended(relay, 3)

    calls = await lab.calls()
    which = dead_letter_pb2.LetterFilter(states=[OPEN])
    request = dead_letter_pb2.PlanReplayRequest(filter=which)
    planned = [answer.forecast async for answer in relay.letters.PlanReplay(request, timeout=30)]
    keys = {letter.id: letter.work.idempotency_key for letter in await relay.all_letters()}
    said = {keys[one.letter_id]: (one.protection, one.breaks_order) for one in planned}
    assert said == {
        "unprotected": (dead_letter_pb2.PROTECTION_UNPROTECTED, False),
        "overtaken": (dead_letter_pb2.PROTECTION_NOT_EXECUTED, True),
    }
    assert await lab.calls() == calls
    assert {letter.state for letter in await relay.all_letters()} == {OPEN}
    assert await lab.effects() == {"unprotected": 1, "later": 1}


async def test_letters_are_recovered_by_their_causes_and_only_as_often_as_allowed(
    lab: Any, helpers: Any
) -> None:
    """Requeued while it may help, discarded where the policy says so, and left to somebody otherwise."""
    recovery = {
        "RETRIES_EXHAUSTED": {"action": "requeue", "delay": "0.1s", "limit": 2},
        "EXPIRED": {"action": "discard", "delay": "0.1s"},
    }
    relay = await lab.relay(helpers.policy(jobs={"maxAttempts": 1}, deadLetters={"recovery": recovery}))
    await lab.set_faults({"failure": {"code": 14}, "methods": [CHARGE]})
    await relay.submit("exhausted", account="exhausted")

    async def given_up() -> bool:
        (letter,) = await relay.all_letters()
        return letter.state == OPEN and len(letter.replays) == 2

    await helpers.all_ended(relay, 1)
    await helpers.eventually(given_up)
    await lab.heal()
    await relay.submit("refused", account="refused", amount=-1)
    late = job_pb2.SubmitRequest(work=helpers.a_charge("late", account="late", order_key="late"))
    late.delay.seconds = 3
    late.time_to_live.FromMilliseconds(3100)
    await relay.jobs.Submit(late)
    which = job_pb2.JobFilter(order_key="late")
    assert (await relay.jobs.PauseJobs(job_pb2.PauseJobsRequest(filter=which))).paused == 1

    async def discarded() -> bool:
        return bool((await relay.job_stats()).recovered["DISCARD"])

    await helpers.eventually(discarded)
    states = {letter.work.idempotency_key: letter.state for letter in await relay.all_letters()}
    assert states == {
        "exhausted": OPEN,
        "refused": OPEN,
        "late": dead_letter_pb2.LETTER_STATE_DISCARDED,
    }
    stats = await relay.job_stats()
    assert (stats.recovered["REQUEUE"], stats.replayed, stats.reopened) == (2, 2, 2)
    assert await lab.effects() == {}
