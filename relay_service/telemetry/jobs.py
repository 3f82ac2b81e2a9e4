"""Durable jobs and dead letters as Prometheus text, read from the side like all other metrics."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from relay_service.core.job import Cause, JobState, LetterState
from relay_service.core.letter_policy import Recovery
from relay_service.jobs.office import JobsStatus


class JobsCollector(Collector):
    """Shows what the office tells at the moment of the scrape."""

    def __init__(self, status: Callable[[], JobsStatus]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """All families; called by the registry for each scrape."""
        status = self._status()
        yield from _in_store(status)
        yield from _done_here(status)


def _in_store(status: JobsStatus) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("relay_jobs", "Durable jobs in the store.", labels=["state"])
    for state in JobState:
        jobs.add_metric([state.value], status.jobs.get(state, 0))
    yield jobs
    letters = GaugeMetricFamily("relay_dead_letters", "Dead letters in the store.", labels=["state"])
    for letter_state in LetterState:
        letters.add_metric([letter_state.value], status.letters.get(letter_state, 0))
    yield letters
    yield GaugeMetricFamily(
        "relay_job_oldest_ready_seconds",
        "How long a job has been ready and has not been taken.",
        value=status.oldest_ready_s,
    )
    unsettled = GaugeMetricFamily(
        "relay_dead_letters_unsettled", "Dead letters that somebody has to decide about.", labels=["cause"]
    )
    oldest = GaugeMetricFamily(
        "relay_dead_letter_oldest_seconds", "How long ago the first of them died.", labels=["cause"]
    )
    for cause in Cause:
        backlog = status.unsettled.get(cause)
        unsettled.add_metric([cause.value], backlog.count if backlog else 0)
        oldest.add_metric([cause.value], backlog.oldest_s if backlog else 0)
    yield from (unsettled, oldest)
    yield GaugeMetricFamily(
        "relay_jobs_refusing", "1 while no job is accepted.", value=1 if status.refusing else 0
    )


def _done_here(status: JobsStatus) -> Iterator[Metric]:
    counters = status.counters
    yield GaugeMetricFamily("relay_job_runs", "Runs of jobs under way here.", value=status.running_here)
    for name, meaning, value in (
        ("submitted", "Jobs accepted here.", counters.submitted),
        ("duplicates", "Submissions whose key had a job already.", counters.duplicates),
        ("leased", "Jobs taken to be run here.", counters.leased),
        ("completed", "Jobs completed here.", counters.completed),
        ("retried", "Runs that are to be repeated later.", counters.retried),
        ("handed_back", "Jobs handed back undispatched.", counters.handed_back),
        ("leases_lost", "Runs given up because the job was no longer this relay's.", counters.leases_lost),
        ("stale_writes", "Ends of runs that came too late to count.", counters.stale_writes),
        ("batches", "Batch calls made.", counters.batches),
        ("batched", "Jobs that went in them.", counters.batched),
        ("batches_split", "Batches refused as a whole and tried in halves.", counters.batches_split),
    ):
        yield CounterMetricFamily(f"relay_jobs_{name}", meaning, value=value)
    for name, meaning, value in (
        ("replayed", "Replays begun here.", counters.replayed),
        ("resolved", "Replays that ended here and did their work.", counters.resolved),
        ("reopened", "Replays that ended here and failed.", counters.reopened),
    ):
        yield CounterMetricFamily(f"relay_dead_letters_{name}", meaning, value=value)
    recovered = CounterMetricFamily(
        "relay_dead_letters_recovered", "Dead letters the policy did something with.", labels=["action"]
    )
    for action in Recovery:
        recovered.add_metric([action.value], counters.recovered[action])
    yield recovered
    yield GaugeMetricFamily(
        "relay_jobs_settled_per_second",
        "Jobs completed or buried here, over the last minute.",
        value=status.settled_per_s,
    )
    buried = CounterMetricFamily("relay_jobs_buried", "Jobs that became dead letters here.", labels=["cause"])
    for cause in Cause:
        buried.add_metric([cause.value], counters.buried[cause])
    yield buried
