"""The tables of a stream's life: complete, drawn, and never wrong about what was sent."""

import importlib.util
from itertools import product
from pathlib import Path

import pytest

from relay_service.core.evidence import Delivery
from relay_service.wire.phases import ATTEMPTS, REPLIES, AttemptPhase, AttemptStep, ReplyPhase, ReplyStep

SCRIPT = Path(__file__).parents[2] / "docs" / "draw_streams.py"
spec = importlib.util.spec_from_file_location("draw_streams", SCRIPT)
assert spec is not None
assert spec.loader is not None
draw_streams = importlib.util.module_from_spec(spec)
spec.loader.exec_module(draw_streams)

ENDS = [step for step in AttemptStep if step not in (AttemptStep.BIND, AttemptStep.RESPOND)]
NEEDS_A_CONNECTION = {AttemptStep.ANSWER, AttemptStep.MALFORM, AttemptStep.REFUSE, AttemptStep.RESET}
ALIVE = [phase for phase in AttemptPhase if phase is not AttemptPhase.OVER]


def test_the_page_shows_the_tables() -> None:
    page = draw_streams.PAGE.read_text()
    assert page == draw_streams.with_diagrams(page), "run docs/draw_streams.py"
    for diagram in (draw_streams.reply_diagram(), draw_streams.attempt_diagram()):
        assert diagram in page


@pytest.mark.parametrize(("phase", "step"), list(product(ALIVE, ENDS)))
def test_an_attempt_can_end_in_every_phase_and_then_says_what_is_known(
    phase: AttemptPhase, step: AttemptStep
) -> None:
    if phase is AttemptPhase.WAITING and step in NEEDS_A_CONNECTION:
        assert (phase, step) not in ATTEMPTS
        return
    after, known = ATTEMPTS[phase, step]
    assert after is AttemptPhase.OVER
    assert known is not None


def test_nothing_follows_an_end() -> None:
    assert not [key for key in ATTEMPTS if key[0] is AttemptPhase.OVER]
    assert not [key for key in REPLIES if key[0] in (ReplyPhase.ANSWERED, ReplyPhase.GONE)]


def test_an_upstream_that_responded_has_seen_the_request() -> None:
    known = {step: ATTEMPTS[AttemptPhase.RESPONDING, step][1] for step in ENDS}
    assert Delivery.NOT_SENT not in known.values()


def test_only_a_status_is_an_answer() -> None:
    answered = {step for (_, step), (_, known) in ATTEMPTS.items() if known is Delivery.ANSWERED}
    assert answered == {AttemptStep.ANSWER}


def test_an_answer_is_given_once() -> None:
    for phase, step in product(ReplyPhase, ReplyStep):
        after = REPLIES.get((phase, step), phase)
        assert after >= phase
