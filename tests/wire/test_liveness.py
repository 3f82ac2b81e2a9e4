"""The rules by which a silent connection is questioned, rested or given up."""

import pytest

from relay_service.wire.liveness import Liveness, LivenessSettings, Step


@pytest.fixture
def liveness():
    return Liveness(LivenessSettings(silence_s=0.6, ping_timeout_s=0.6, pings_max=2))


def test_a_talking_peer_is_left_alone(liveness):
    assert liveness.check(10.0, 10.0, 10.5, uploading=False) == (Step.WAIT, 10.6)


def test_silence_is_questioned_and_silence_after_that_is_death(liveness):
    assert liveness.check(10.0, 10.0, 10.6, uploading=False) == (Step.PING, pytest.approx(11.2))
    assert liveness.check(10.0, 10.0, 11.0, uploading=False) == (Step.WAIT, pytest.approx(11.2))
    assert liveness.check(10.0, 10.0, 11.2, uploading=False)[0] is Step.DEAD


def test_any_byte_answers_the_question(liveness):
    liveness.check(10.0, 10.0, 10.6, uploading=False)
    assert liveness.check(10.7, 10.7, 11.2, uploading=False) == (Step.WAIT, pytest.approx(11.3))


def test_a_peer_that_answers_pings_only_is_rested_not_killed(liveness):
    steps = []
    heard_at = now = 0.0
    while now < 10.0:
        step, now = liveness.check(heard_at, heard_at, now, uploading=False)
        steps.append(step)
        if step is Step.PING:
            heard_at = now - 0.5  # the answer
    assert steps.count(Step.PING) == 2
    assert Step.REST in steps
    assert Step.DEAD not in steps


def test_work_allows_pings_again(liveness):
    liveness.check(0.0, 0.0, 1.0, uploading=False)
    liveness.check(1.1, 1.1, 2.0, uploading=False)
    assert liveness.check(2.1, 2.1, 3.0, uploading=False)[0] is Step.REST
    liveness.on_work()
    assert liveness.check(3.1, 3.1, 4.0, uploading=False)[0] is Step.PING


def test_silence_counts_from_the_question_on_a_connection_that_was_idle(liveness):
    assert liveness.check(10.0, 500.0, 500.1, uploading=False) == (Step.WAIT, pytest.approx(500.6))


def test_a_ping_amid_a_large_upload_may_be_answered_late_but_no_stream_joins_it(liveness):
    settings = liveness.settings
    assert liveness.check(10.0, 10.0, 10.6, uploading=True) == (Step.PING, pytest.approx(11.2))
    verdict_at = 10.6 + settings.upload_ping_timeout_s
    assert liveness.check(10.0, 10.0, 11.2, uploading=True) == (Step.REST, pytest.approx(verdict_at))
    assert liveness.check(10.0, 10.0, verdict_at, uploading=True)[0] is Step.DEAD
