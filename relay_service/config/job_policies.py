"""From the checked blocks of a policy file to what it says of durable jobs and dead letters."""

from collections.abc import Mapping
from typing import Any

from relay_service.config.schema import BatchBlock
from relay_service.core.jitter import Jitter
from relay_service.core.job import Cause
from relay_service.core.job_policy import (
    BatchItems,
    BatchPolicy,
    BatchResults,
    JobPolicy,
    JobRetryPolicy,
)
from relay_service.core.letter_policy import LetterPolicy, Recovery, RecoveryRule

_OF_RETRY = frozenset(JobRetryPolicy.__dataclass_fields__)


def job_policy(fields: Mapping[str, Any]) -> JobPolicy:
    """``relay.jobs``: in the file the retries' fields stand beside the others."""
    retry = {name: value for name, value in fields.items() if name in _OF_RETRY}
    if "jitter" in retry:
        retry["jitter"] = Jitter(retry["jitter"])
    if "initial_backoff_s" in retry and "max_backoff_s" not in retry:
        retry["max_backoff_s"] = max(retry["initial_backoff_s"], JobRetryPolicy().max_backoff_s)
    rest = {name: value for name, value in fields.items() if name not in _OF_RETRY}
    return JobPolicy(**rest, retry=JobRetryPolicy(**retry))


def dead_letter_policy(fields: Mapping[str, Any]) -> LetterPolicy:
    """``relay.deadLetters``."""
    given = dict(fields)
    blocks = given.pop("recovery", {})
    rules = {
        Cause[name]: RecoveryRule(**(block.fields_given() | {"action": Recovery(block.action)}))
        for name, block in blocks.items()
    }
    return LetterPolicy(**given, recovery=rules)


def batch_policy(block: BatchBlock | None) -> BatchPolicy | None:
    """``relay.methods[].batch``."""
    if block is None:
        return None
    return BatchPolicy(
        **(
            block.fields_given()
            | {
                "items": BatchItems(**block.items.fields_given()),
                "results": BatchResults(**block.results.fields_given()),
            }
        )
    )
