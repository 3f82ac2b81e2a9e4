"""Every experiment, by name."""

from chaos.experiments.attempt_timeout import TIMEOUT
from chaos.experiments.experiment import Experiment
from chaos.experiments.hedging import HEDGING
from chaos.experiments.jitter import JITTER
from chaos.experiments.metastable import METASTABLE
from chaos.experiments.queue_size import QUEUE
from chaos.experiments.storm import STORM
from chaos.experiments.workers import WORKERS_EXPERIMENT

EXPERIMENTS: dict[str, Experiment] = {
    each.name: each for each in (JITTER, QUEUE, TIMEOUT, WORKERS_EXPERIMENT, STORM, METASTABLE, HEDGING)
}
