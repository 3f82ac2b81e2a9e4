"""A policy's version says what it means, wherever and however it was read."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from relay_service.config.candidate import candidate_of, policy_version
from relay_service.config.problems import ConfigError
from relay_service.config.settings import Settings

POLICY: dict[str, Any] = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "ABORTED", "INTERNAL"],
            },
        }
    ],
    "relay": {"name": "shop", "upstreams": {"a": {"target": "h:1"}}},
}


def version_of(policy_file: Any, policy: Any) -> str:
    return policy_version(candidate_of(Settings(policy=str(policy_file(policy)))).policy)


def test_two_files_that_mean_the_same_have_one_version(policy_file) -> None:
    spelt_out = json.loads(json.dumps(POLICY))
    spelt_out["relay"]["retryBudget"] = {"ratio": 0.2}
    spelt_out["methodConfig"][0]["retryPolicy"]["retryableStatusCodes"].reverse()
    assert version_of(policy_file, POLICY) == version_of(policy_file, json.dumps(spelt_out, indent=8))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"maxHops": 4},
        {"off": ["breaker"]},
        {"upstreams": {"a": {"target": "h:2"}}},
        {"admission": {"limit": {"kind": "aimd"}}},
        {"methods": [{"name": [{"service": "a.B"}], "jitter": "none"}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_is_changed_changes_the_version(policy_file, change: dict[str, Any]) -> None:
    changed = POLICY | {"relay": POLICY["relay"] | change}
    assert version_of(policy_file, changed) != version_of(policy_file, POLICY)


def test_every_process_gives_the_same_version(policy_file) -> None:
    program = (
        "import sys; from relay_service.config.candidate import *; "
        "from relay_service.config.settings import Settings; "
        "print(policy_version(candidate_of(Settings(policy=sys.argv[1])).policy))"
    )
    command = [sys.executable, "-c", program, str(policy_file(POLICY))]
    runs = [
        subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True)
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout != b""


def test_a_candidate_has_no_errors_and_is_told_what_is_suspicious(policy_file) -> None:
    suspicious = POLICY | {"relay": POLICY["relay"] | {"methods": [{"name": [{}], "defaultTimeout": "61s"}]}}
    found = candidate_of(Settings(policy=str(policy_file(suspicious)))).findings
    assert "default-over-max" in [finding.rule for finding in found]
    with pytest.raises(ConfigError):
        candidate_of(Settings(policy=str(policy_file({"relay": {"maxHops": 0}}))))
    with pytest.raises(ConfigError, match="names its own upstreams"):
        candidate_of(Settings(policy=str(policy_file(POLICY)), upstream="h:3"))
