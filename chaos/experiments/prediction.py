"""A number said before it is measured: with its reason, and how far from it the truth may lie."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from chaos.findings import Finding, Verdict
from chaos.model import Interval
from chaos.report import Measure

FEATURE = "C43"
"""The id that every finding of an experiment carries."""
SIGNIFICANT_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row of the table, before anything has run."""

    key: str
    """Unique within the experiment; measurements are filed under it."""
    what: str
    unit: str
    """``%`` (values are shares), ``x`` (factors), or the name of what is counted."""
    expected: float
    interval: Interval
    """Where the measurement must lie. Stated beforehand, so that it cannot be stretched afterwards."""
    because: str
    """The formula, in words."""


Measurements = Mapping[str, float | None]
"""What was measured, by a prediction's key; None where too little happened, or the load was not made."""


def within(share: float, expected: float, floor: float = 0.0) -> Interval:
    """``expected`` plus or minus a share of it, and at least plus or minus ``floor``."""
    slack = max(abs(expected) * share, floor)
    return Interval(expected - slack, expected + slack)


def judge(prediction: Prediction, measured: float | None) -> Finding:
    """Held inside the interval, broken outside it, could not tell without a number."""
    statement = f"{prediction.what}: {prediction.because}"
    if measured is None or math.isnan(measured):
        return Finding(
            FEATURE, statement, Verdict.COULD_NOT_TELL, "too little was measured to hold it against that"
        )
    verdict = Verdict.HELD if measured in prediction.interval else Verdict.BROKEN
    shown = as_measure(prediction, measured, verdict)
    return Finding(
        FEATURE,
        statement,
        verdict,
        f"{shown.show(shown.measured)}, predicted {shown.show(shown.expected)}",
        measured=measured,
        expected=prediction.expected,
        interval=prediction.interval,
    )


def judge_all(predictions: Iterable[Prediction], measured: Measurements) -> tuple[Finding, ...]:
    """One finding for each prediction, in their order."""
    return tuple(judge(prediction, measured.get(prediction.key)) for prediction in predictions)


def as_measure(prediction: Prediction, measured: float, verdict: Verdict) -> Measure:
    """The row for a table, in as many digits as mean anything."""
    interval = Interval(rounded(prediction.interval.low), rounded(prediction.interval.high))
    expected = rounded(prediction.expected)
    return Measure(prediction.what, prediction.unit, rounded(measured), expected, interval, verdict)


def rounded(value: float) -> float:
    """To `SIGNIFICANT_DIGITS`."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
