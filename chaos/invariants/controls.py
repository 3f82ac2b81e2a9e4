"""Whether a run can tell anything: enough calls, made when they were planned, while the fault was there."""

from collections.abc import Collection, Mapping, Sequence

from chaos.findings import Finding, Verdict
from chaos.history import CallRecord, FaultWindow, LoadSample
from chaos.percentile import percentile_of
from chaos.stack import Member

LATENESS_MAX_S = 0.15
LATENESS_PERCENTILE = 95
LOOK_MAX_S = 0.1
LOOKS_MIN = 5
PRESSURE_MAX = 0.9
"""A run's own processes wait for each other too, a third of the time on two cores; never nearly always."""


def generator_kept_up(
    calls: Collection[CallRecord],
    late_max_s: float = LATENESS_MAX_S,
) -> Finding:
    """Control: the load was offered as planned, 95 of 100 calls at most ``late_max_s`` after their time.

    Later ones are no fault of the system under test, so the run cannot tell; never held, never broken.
    """
    lateness = [call.sent_s - call.intended_s for call in calls if call.sent_s is not None]
    statement = f"the load was offered as planned ({LATENESS_PERCENTILE} % within {late_max_s * 1000:g} ms)"
    if not lateness:
        return Finding("control", statement, Verdict.COULD_NOT_TELL, "nothing was sent")
    late_s = percentile_of(lateness, LATENESS_PERCENTILE)
    worst_s = max(lateness)
    verdict = Verdict.HELD if late_s <= late_max_s else Verdict.COULD_NOT_TELL
    detail = (
        f"p{LATENESS_PERCENTILE} {late_s * 1000:.1f} ms late, at worst {worst_s * 1000:.0f} ms, "
        f"{len(lateness):,} calls"
    )
    return Finding("control", statement, verdict, detail, measured=late_s * 1000)


def machine_kept_up(
    samples: Collection[LoadSample], faults: Collection[FaultWindow], slow_max_s: float = LOOK_MAX_S
) -> Finding:
    """Control: the machine had room for the services. A look at the downstream, by a way no fault is on, came
    back within ``slow_max_s`` in nine of ten cases, faults of its own process left out."""
    away = [each for each in faults if each.title.startswith(f"{Member.DOWNSTREAM.value} ")]
    statement = f"the machine had room for the services (a look takes at most {slow_max_s * 1000:g} ms)"
    took = [
        sample.took_s
        for sample in samples
        if not any(each.begin_s <= sample.at_s <= each.end_s + sample.took_s for each in away)
    ]
    if len(took) < LOOKS_MIN:
        return Finding("control", statement, Verdict.COULD_NOT_TELL, f"only {len(took)} looks")
    slow_s = percentile_of(took, 90)
    verdict = Verdict.HELD if slow_s <= slow_max_s else Verdict.COULD_NOT_TELL
    return Finding(
        "control", statement, verdict, f"p90 {slow_s * 1000:.1f} ms of {len(took)}", measured=slow_s * 1000
    )


def machine_was_full(samples: Sequence[LoadSample], share_max: float = PRESSURE_MAX) -> float | None:
    """The share of the run in which some process waited for a CPU, when it is above ``share_max``; else None.

    No finding of its own: on such a machine a promise can be held, only nobody can be blamed for time.
    """
    if len(samples) < LOOKS_MIN or not samples[0].cpu_waited_s:
        return None
    share = (samples[-1].cpu_waited_s - samples[0].cpu_waited_s) / (samples[-1].at_s - samples[0].at_s)
    return share if share > share_max else None


def enough_traffic(counts: Mapping[str, int], minimum: int) -> Finding:
    """Control: each phase saw at least ``minimum`` calls."""
    statement = f"each phase saw at least {minimum} calls"
    detail = ", ".join(f"{phase} {count:,}" for phase, count in counts.items())
    short = not counts or min(counts.values()) < minimum
    return Finding("control", statement, Verdict.COULD_NOT_TELL if short else Verdict.HELD, detail)


def faults_were_set(windows: Collection[FaultWindow], planned: int) -> Finding:
    """Control: every fault of the schedule was there, and was undone."""
    statement = "every fault of the schedule was set and undone"
    seen = len(windows)
    verdict = Verdict.HELD if seen >= planned else Verdict.COULD_NOT_TELL
    return Finding("control", statement, verdict, f"{seen} of {planned}")
