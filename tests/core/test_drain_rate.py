"""The rate of departures, that refused callers' turns are computed from."""

from random import Random

import pytest

from relay_service.core.admission import Admission, Admitted, Demand
from relay_service.core.limit import LoadSign
from relay_service.core.pace import DrainRate
from relay_service.core.policy import AdmissionPolicy
from relay_service.core.turns import DO_NOT_RETURN


def test_nothing_has_left_yet() -> None:
    assert DrainRate(0.0).per_second(100.0) == 0.0


@pytest.mark.parametrize("per_second", [5, 50, 1000])
def test_a_steady_rate_is_found(per_second: int) -> None:
    rate = DrainRate(0.0)
    for number in range(1, 5 * per_second):
        rate.count(number / per_second)
    assert rate.per_second(5.0) == pytest.approx(per_second, rel=0.15)


def test_slow_is_not_the_same_as_stopped() -> None:
    rate = DrainRate(0.0)
    for at in (4.0, 8.0, 12.0):
        rate.count(at)
    assert rate.per_second(15.9) == pytest.approx(0.25)
    assert rate.per_second(32.0) == pytest.approx(1 / 20), "and the longer nothing comes, the slower it is"


def test_a_caller_refused_before_slow_work_has_a_turn() -> None:
    admission: Admission[int] = Admission(AdmissionPolicy(workers=1, queue_capacity=0), 0.0)
    now = 0.0
    for number in range(4):
        assert admission.offer(number, Demand(), now).admitted is Admitted.STARTED
        now += 4.0
        admission.release(LoadSign.SUCCESS, 4.0, now)
    admission.offer(9, Demand(), now)
    assert admission.offer(10, Demand(), now + 3.5).admitted is Admitted.REFUSED
    told_s = admission.pushback_s(now + 3.5, Random(1))
    assert told_s != DO_NOT_RETURN
    assert 3.0 <= told_s <= 10.0
