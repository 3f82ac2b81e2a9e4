"""What an experiment is: a knob, predictions, arms to run, and a conclusion drawn from what they left."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from markupsafe import Markup

from chaos.experiments.arm import Arm, Evidence
from chaos.experiments.prediction import Measurements, Prediction
from chaos.report import Measure


class Pace(Enum):
    """How much is run."""

    FULL = "full"
    """Every setting of the knob, in less than a minute."""
    QUICK = "quick"
    """The settings that differ most, in a few seconds: for tests, and to see whether it works."""


@dataclass(frozen=True, slots=True)
class Design:
    """All that is decided before the first call."""

    arms: tuple[Arm, ...]
    predictions: tuple[Prediction, ...]


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What came of it."""

    measured: Measurements
    advice: str
    """What to choose and why, from what was measured."""
    figure: Markup
    caption: str
    observed: tuple[Measure, ...] = ()
    """Measured beside what was predicted."""


Results = Mapping[str, Evidence]
"""By the arms' names."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """One question with its answer's maker."""

    name: str
    title: str
    question: str
    scaled: str
    """How its times relate to those of a real system; empty when they are the same."""
    design: Callable[[Pace], Design]
    conclude: Callable[[Design, Results], Conclusion]
