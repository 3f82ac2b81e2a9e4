"""The promises as pure functions of what was recorded: history, ledger and spans in, `Finding` out.

`calls` judges calls one by one and against the ledger (I1, I2, I5, I7), `load` what retries add (I4) and how
overload is borne (I5), `second_attempts` what retries and hedges cost and buy where they arrive (I4, C07),
`recovery` the return to service (I6), `conservation` the relay's own books (I7), `jobs` what became of
durable jobs (I3), `controls` whether the run can tell anything at all.
"""

from chaos.invariants.calls import (
    DEADLINE_SLACK_S,
    all_accounted_for,
    answered_in_time,
    answers_match_ledger,
    at_most_one_effect,
    attempts_agree,
    duplicates,
    fault_did_bite,
    final_tries,
    load_as_predicted,
    refusals_are_useful,
    retries_within_budget,
    success_as_predicted,
)
from chaos.invariants.conservation import books_balance, nothing_left_in_flight, streams_are_whole
from chaos.invariants.controls import (
    enough_traffic,
    faults_were_set,
    generator_kept_up,
    machine_kept_up,
    machine_was_full,
)
from chaos.invariants.jobs import accepted_jobs_are_kept, jobs_add_up, jobs_get_done
from chaos.invariants.load import (
    amplification_at_most,
    class_is_served,
    goodput_at_least,
    little_late_work,
    little_work_wasted,
    no_storm,
    pushback_worked,
    retries_are_spread,
    success_at_least,
)
from chaos.invariants.recovery import recovers, stays_down
from chaos.invariants.second_attempts import (
    arrivals_within_budget,
    hedges_at_most,
    no_hedge_without_budget,
    tail_at_most,
)

__all__ = [
    "DEADLINE_SLACK_S",
    "accepted_jobs_are_kept",
    "all_accounted_for",
    "amplification_at_most",
    "answered_in_time",
    "answers_match_ledger",
    "arrivals_within_budget",
    "at_most_one_effect",
    "attempts_agree",
    "books_balance",
    "class_is_served",
    "duplicates",
    "enough_traffic",
    "fault_did_bite",
    "faults_were_set",
    "final_tries",
    "generator_kept_up",
    "goodput_at_least",
    "hedges_at_most",
    "jobs_add_up",
    "jobs_get_done",
    "little_late_work",
    "little_work_wasted",
    "load_as_predicted",
    "machine_kept_up",
    "machine_was_full",
    "no_hedge_without_budget",
    "no_storm",
    "nothing_left_in_flight",
    "pushback_worked",
    "recovers",
    "refusals_are_useful",
    "retries_are_spread",
    "retries_within_budget",
    "stays_down",
    "streams_are_whole",
    "success_as_predicted",
    "success_at_least",
    "tail_at_most",
]
