"""Faults and their times: data that says the same for the same seed, byte for byte."""

import pytest

from chaos.faults.kinds import (
    Capacity,
    ClockStep,
    CollectorDown,
    Failing,
    FaultError,
    Flapping,
    Flood,
    Hanging,
    Kill,
    Link,
    Moment,
    Partition,
    Pause,
    Resets,
    Restart,
    Slow,
    fault_from_json,
    fault_to_json,
    toxic,
)
from chaos.faults.store_kinds import DiskBroken, DiskFull, DiskSlow, StoreLocked
from chaos.runner import Form, RunConfig
from chaos.scenarios import SCENARIOS, find
from chaos.scenarios.policies import LAB, charge, off, overlaid
from chaos.schedule import MENU, MENU_WITH_FILE, MENU_WITH_SERVER, Placed, draw, place, schedule_from_text
from chaos.stack import Member

EVERY_KIND = (
    toxic(Link.CLIENT_RELAY, "latency", "upstream", latency=10, jitter=3),
    Partition(Link.RELAY_DOWNSTREAM),
    Flapping(Link.CLIENT_RELAY, 500, 100),
    Resets(Link.CLIENT_RELAY, 500, 100),
    Kill(Member.RELAY),
    Pause(Member.DOWNSTREAM),
    Restart(Member.RELAY),
    Failing(0.3, Moment.AFTER_EFFECT),
    Slow(30, 0.5),
    Hanging(0.1),
    Capacity(3, 50),
    CollectorDown(),
    ClockStep(-3600),
    Flood(10),
    DiskFull(),
    DiskBroken(),
    DiskSlow(50),
    StoreLocked(),
    Kill(Member.STORE),
    toxic(Link.RELAY_STORE, "latency", latency=10),
)


@pytest.mark.parametrize("fault", EVERY_KIND, ids=lambda fault: fault.kind)
def test_every_fault_comes_back_from_json_as_it_went_and_has_a_title(fault):
    assert fault_from_json(fault_to_json(fault)) == fault
    assert fault.title


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"kind": "spell"},
        {"kind": "kill"},
        {"kind": "kill", "member": "nobody"},
        {"kind": "pause", "x": 1},
    ],
)
def test_what_is_no_fault_is_refused(values):
    with pytest.raises(FaultError):
        fault_from_json(values)


@pytest.mark.parametrize("seed", range(30))
def test_a_drawn_schedule_is_the_same_each_time_and_lies_within_its_phase(seed):
    schedule = draw(seed, 8.0)
    assert schedule == draw(seed, 8.0)
    assert 1 <= len(schedule.faults) <= 5
    assert all(timed.at_s >= 0 and timed.for_s > 0 and timed.end_s <= 8.001 for timed in schedule.faults)
    assert schedule_from_text(schedule.text()) == schedule


@pytest.mark.parametrize("menu", [MENU, MENU_WITH_FILE, MENU_WITH_SERVER], ids=["no store", "file", "server"])
def test_some_seeds_draw_everything_on_the_menu(menu):
    asked = []
    told = {name: (lambda rng, name=name: (asked.append(name), menu[name](rng))[1]) for name in menu}
    for seed in range(100):
        draw(seed, 8.0, told)
    assert set(asked) == set(menu)


def test_a_named_scenarios_faults_are_moved_by_the_seed_and_not_changed():
    placed = (Placed(Kill(Member.RELAY), 0.2, 0.5),)
    schedules = {place(placed, 10.0, seed, "x").text() for seed in range(10)}
    assert len(schedules) == 10
    for seed in range(10):
        (timed,) = place(placed, 10.0, seed, "x").faults
        assert 2.0 <= timed.at_s <= 3.0
        assert timed.for_s == pytest.approx(3.0)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_plan_is_the_same_byte_for_byte_for_the_same_seed_and_another_for_another(scenario, tmp_path):
    texts = [RunConfig(scenario, tmp_path, seed, Form.SHORT).plan.text() for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]
    lines = [list(RunConfig(scenario, tmp_path, 5, Form.SHORT).plan.lines()) for _ in range(2)]
    assert lines[0] == lines[1]


def test_the_plan_of_a_seed_stays_the_same_from_release_to_release(tmp_path):
    plan = RunConfig(find("criticality-flood"), tmp_path, 1, Form.SHORT).plan
    digest = plan.text().split('"sha256": "')[1].split('"')[0]
    assert digest == "dc2baf23672a4d8702dc8266ab93ed97d5735d6536776ddee43f91aab0b56c95"


def test_scenarios_have_names_of_their_own_and_a_hypothesis():
    assert len(SCENARIOS) >= 20
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
    assert all(scenario.hypothesis.endswith(".") for scenario in SCENARIOS)
    assert all(scenario.expects for scenario in SCENARIOS if scenario.faults)


def test_a_run_of_a_given_length_keeps_its_proportions_and_the_promises_deadline(tmp_path):
    timing = RunConfig(find("latency"), tmp_path, 1, for_s=32.0).timing
    assert timing.total_s == pytest.approx(32.0)
    assert timing.steady_s == pytest.approx(6.0)
    assert timing.recovers_within_s == find("latency").timing.recovers_within_s


def test_no_scenario_runs_longer_than_a_minute():
    assert all(scenario.timing.total_s <= 40 for scenario in SCENARIOS)
    assert all(scenario.short.total_s <= 20 for scenario in SCENARIOS)


def test_a_change_of_policy_is_laid_over_field_by_field():
    merged = overlaid(overlaid(LAB, off("breaker")), overlaid(off("retry"), charge(safety="NONE")))
    relay = merged["relay"]
    assert relay["off"] == ["breaker", "retry"]
    (method,) = relay["methods"]
    assert (method["safety"], method["attemptTimeout"]) == ("NONE", "0.6s")
    assert "off" not in LAB["relay"]
