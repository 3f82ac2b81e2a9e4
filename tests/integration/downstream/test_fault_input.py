"""What people write as faults: the good is understood, the bad is named by its field."""

from pathlib import Path

import pytest

from downstream_service.capacity import CapacityModel
from downstream_service.errors import InvalidInputError
from downstream_service.fault_input import (
    checked_capacity,
    checked_faults,
    faults_of_call,
    parse_request,
    read_request,
)
from downstream_service.faults import Failure, Fault, Latency, Moment, Uniform


def test_a_whole_request_is_understood() -> None:
    request = parse_request(
        """{
          "faults": [
            {"latency": {"uniform": {"min": "0.010s", "max": "0.5s"}},
             "methods": ["downstream.v1.PaymentService/Charge"]},
            {"name": "lost", "probability": 0.25, "maxStrikes": "3",
             "failure": {"code": 14, "when": "WHEN_AFTER_EFFECT", "retryPushbackMs": "-1"}}
          ],
          "capacity": {"workers": 4, "serviceTime": "0.01s", "queueSize": 10, "slowStart": "5s"},
          "seed": "9"
        }""",
        "here",
    )
    charge = frozenset({"downstream.v1.PaymentService/Charge"})
    lost = Failure(14, "a fault struck this call", Moment.AFTER_EFFECT, retry_pushback_ms=-1)
    assert checked_faults(request.faults) == (
        Fault("latency", Latency(Uniform(0.01, 0.5)), 1.0, charge),
        Fault("lost", lost, 0.25, frozenset(), 3),
    )
    assert checked_capacity(request.capacity) == CapacityModel(4, 0.01, 10, 5.0, 10.0)


def test_no_workers_mean_no_capacity_model() -> None:
    assert checked_capacity(parse_request("{}", "here").capacity) is None


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"faults": [{}]}', "faults[0]"),
        ('{"faults": [{"hang": {}}, {"hang": {}, "probability": 1.5}]}', "faults[1].probability"),
        ('{"faults": [{"hang": {}, "probability": "NaN"}]}', "faults[0].probability"),
        ('{"faults": [{"hang": {}, "maxStrikes": "-1"}]}', "faults[0].max_strikes"),
        ('{"faults": [{"hang": {}, "methods": ["Charge"]}]}', "faults[0].methods[0]"),
        ('{"faults": [{"hang": {"when": 7}}]}', "faults[0].hang.when"),
        ('{"faults": [{"crash": {"when": 7}}]}', "faults[0].crash.when"),
        ('{"faults": [{"failure": {}}]}', "faults[0].failure.code"),
        ('{"faults": [{"failure": {"code": 17}}]}', "faults[0].failure.code"),
        ('{"faults": [{"failure": {"code": 14, "when": 9}}]}', "faults[0].failure.when"),
        ('{"faults": [{"latency": {}}]}', "faults[0].latency"),
        ('{"faults": [{"latency": {"fixed": "-1s"}}]}', "faults[0].latency.fixed"),
        ('{"faults": [{"latency": {"fixed": "3601s"}}]}', "faults[0].latency.fixed"),
        (
            '{"faults": [{"latency": {"uniform": {"min": "2s", "max": "1s"}}}]}',
            "faults[0].latency.uniform.max",
        ),
        ('{"faults": [{"latency": {"logNormal": {"sigma": -1}}}]}', "faults[0].latency.log_normal.sigma"),
        ('{"faults": [{"latency": {"exponential": {"mean": "-1s"}}}]}', "faults[0].latency.exponential.mean"),
        ('{"capacity": {"workers": -1}}', "capacity.workers"),
        ('{"capacity": {"workers": 1}}', "capacity.service_time"),
        ('{"capacity": {"workers": 1, "serviceTime": "1s", "queueSize": -1}}', "capacity.queue_size"),
        ('{"capacity": {"slowStart": "-1s"}}', "capacity.slow_start"),
        ('{"capacity": {"slowStartFactor": 0.5}}', "capacity.slow_start_factor"),
    ],
)
def test_what_makes_no_sense_is_refused_and_the_field_is_named(text: str, field: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        parse_request(text, "here")
    assert refused.value.field == f"here: {field}"


def test_more_faults_than_the_limit_are_refused() -> None:
    faults = ",".join(['{"hang": {}}'] * 101)
    with pytest.raises(InvalidInputError, match="at most 100, not 101"):
        parse_request(f'{{"faults": [{faults}]}}', "here")
    with pytest.raises(InvalidInputError, match="at most 10 faults a call, not 11"):
        faults_of_call(['{"hang": {}}'] * 11)


def test_a_misspelt_field_of_a_file_is_named_with_the_file_and_the_path(tmp_path: Path) -> None:
    source = tmp_path / "faults.json"
    source.write_text('{"faults": [{"failure": {"cod": 14}}]}')
    with pytest.raises(InvalidInputError, match=r"faults\.json.*\"cod\".*faults\[0\]\.failure"):
        read_request(source)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "faults.json"
    source.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_request(source)
