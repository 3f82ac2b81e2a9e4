"""Every mistake is told with its file, its place, what was found and what is allowed."""

from pathlib import Path
from typing import Any

import pytest

from relay_service.config.loading import load_policy
from relay_service.config.problems import ConfigError, UnreadableError

TARGET = "127.0.0.1:50052"
RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def retrying(**changes: Any) -> dict[str, Any]:
    return {"methodConfig": [{"name": [{}], "retryPolicy": RETRY | changes}]}


def method(**fields: Any) -> dict[str, Any]:
    return {"relay": {"methods": [{"name": [{}]} | fields]}}


def upstream(**fields: Any) -> dict[str, Any]:
    return {"relay": {"upstreams": {"a": {"target": "h:1"} | fields}}}


BAD = [
    (
        {
            "relay": {
                "upstreams": {"a": {"target": "h:1"}},
                "methods": [{"name": [{"service": "s.S"}], "fallback": ["b"]}],
            }
        },
        "relay.methods (s.S).fallback",
        'got "b"',
        "must be one of relay.upstreams (a)",
    ),
    # (file, path, what was found, words of what is allowed)
    ([], "", "got []", "must be a JSON object"),
    ({"methodConfg": []}, "methodConfg", "got []", "did you mean methodConfig?"),
    ({"retryPolicy": RETRY}, "retryPolicy", "got {", "belongs into an entry of methodConfig"),
    ({"timeout": "1s"}, "timeout", 'got "1s"', "belongs into an entry of methodConfig"),
    (
        {"methodConfig": [{"timeout": "1s"}]},
        "methodConfig[0].name",
        "",
        "is required: [{}] means every method",
    ),
    ({"methodConfig": [{"name": []}]}, "methodConfig[0].name", "got []", "silently ignores"),
    (
        {"methodConfig": [{"name": [{}], "hedgingPolicy": {}}]},
        "methodConfig[0].hedgingPolicy.maxAttempts",
        "",
        "is required",
    ),
    (
        {"methodConfig": [{"name": [{}], "retryPolicy": RETRY, "hedgingPolicy": {"maxAttempts": 2}}]},
        "methodConfig[0].hedgingPolicy",
        "got both",
        "gRPC takes one of the two",
    ),
    ({"hedgingPolicy": {}}, "hedgingPolicy", "got {", "belongs into an entry of methodConfig"),
    (
        {"methodConfig": [{"name": [{}], "waitForReady": True}]},
        "methodConfig[0].waitForReady",
        "got true",
        "not supported",
    ),
    ({"loadBalancingPolicy": "x"}, "loadBalancingPolicy", 'got "x"', "relay.upstreams"),
    (
        {"methodConfig": [{"name": [{"method": "M"}]}]},
        "methodConfig[0].name[0]",
        'got method "M"',
        "must name the service",
    ),
    (
        {"methodConfig": [{"name": [{"service": "a/B"}]}]},
        "methodConfig[0].name[0].service",
        'got "a/B"',
        "must match",
    ),
    (
        {"methodConfig": [{"name": [{}]}, {"name": [{"service": "a.B"}, {}]}]},
        "methodConfig[1].name[1]",
        'got ""',
        "methodConfig[0].name[0] names it too",
    ),
    ({"methodConfig": [{"name": [{}], "timeout": 5}]}, "methodConfig[0].timeout", "got 5", 'such as "5s"'),
    (
        {"methodConfig": [{"name": [{}], "timeout": "5"}]},
        "methodConfig[0].timeout",
        'got "5"',
        'such as "0.1s"',
    ),
    (
        {"methodConfig": [{"name": [{}], "timeout": "0s"}]},
        "methodConfig[0].timeout",
        'got "0s"',
        "longer than 0s",
    ),
    (
        retrying(maxAttempts=1),
        "methodConfig[0].retryPolicy.maxAttempts",
        "got 1",
        "greater than or equal to 2",
    ),
    (
        retrying(maxAttempts=101),
        "methodConfig[0].retryPolicy.maxAttempts",
        "got 101",
        "less than or equal to 100",
    ),
    (
        retrying(maxAttempts="4"),
        "methodConfig[0].retryPolicy.maxAttempts",
        'got "4"',
        "must be a valid integer",
    ),
    (
        retrying(maxAttempts=True),
        "methodConfig[0].retryPolicy.maxAttempts",
        "got true",
        "must be a valid integer",
    ),
    (
        retrying(initialBackoff="100ms"),
        "methodConfig[0].retryPolicy.initialBackoff",
        'got "100ms"',
        'write "0.1s"',
    ),
    (
        retrying(initialBackoff=None),
        "methodConfig[0].retryPolicy.initialBackoff",
        "got null",
        "duration in quotes",
    ),
    (
        retrying(maxBackoff="0.05s"),
        "methodConfig[0].retryPolicy.maxBackoff",
        'got "0.05s"',
        'at least initialBackoff, "0.1s"',
    ),
    (
        retrying(backoffMultiplier=0.5),
        "methodConfig[0].retryPolicy.backoffMultiplier",
        "got 0.5",
        "greater than or equal to 1",
    ),
    (
        retrying(retryableStatusCodes=["UNAVAILABLE", "UNAVAIL"]),
        "methodConfig[0].retryPolicy.retryableStatusCodes[1]",
        'got "UNAVAIL"',
        "must be one of CANCELLED",
    ),
    (
        retrying(retryableStatusCodes=[0]),
        "methodConfig[0].retryPolicy.retryableStatusCodes[0]",
        "got 0",
        "never retried",
    ),
    (
        retrying(retryableStatusCodes=[True]),
        "methodConfig[0].retryPolicy.retryableStatusCodes[0]",
        "got true",
        "must be one of",
    ),
    (
        retrying(perAttempt=1),
        "methodConfig[0].retryPolicy.perAttempt",
        "got 1",
        "known here: maxAttempts, initialBackoff",
    ),
    (
        {"retryThrottling": {"maxTokens": 0, "tokenRatio": 0.1}},
        "retryThrottling.maxTokens",
        "got 0",
        "greater than or equal to 1",
    ),
    (
        {"retryThrottling": {"maxTokens": 10, "tokenRatio": 0}},
        "retryThrottling.tokenRatio",
        "got 0",
        "greater than 0",
    ),
    ({"relay": {"presett": "x"}}, "relay.presett", 'got "x"', "did you mean preset?"),
    ({"relay": {"preset": "nope"}}, "relay.preset", 'got "nope"', "must be one of the presets default"),
    ({"relay": {"off": ["retries"]}}, "relay.off[0]", 'got "retries"', "'retryBudget'"),
    ({"relay": {"off": ["retry", "retry"]}}, "relay.off[1]", 'got "retry"', "named once"),
    ({"relay": {"maxHops": 0}}, "relay.maxHops", "got 0", "greater than or equal to 1"),
    (
        {"relay": {"admission": {"workers": 0}}},
        "relay.admission.workers",
        "got 0",
        "greater than or equal to 1",
    ),
    (
        {"relay": {"admission": {"limit": {"kind": "aimd", "min": 9, "max": 8}}}},
        "relay.admission.limit.max",
        "got 8",
        "at least min, 9",
    ),
    (
        {"relay": {"admission": {"limit": {"kind": "gradient", "max": 10}}}},
        "relay.admission.limit.initial",
        "got 20",
        "from min to max, 4 to 10",
    ),
    (
        {"relay": {"admission": {"queueCapacity": -1}}},
        "relay.admission.queueCapacity",
        "got -1",
        "greater than or equal to 0",
    ),
    ({"relay": {"admission": None}}, "relay.admission", "got null", "must be a JSON object"),
    (
        {"relay": {"retryBudget": {"ratio": -0.1}}},
        "relay.retryBudget.ratio",
        "got -0.1",
        "greater than or equal to 0",
    ),
    (
        {"relay": {"retryBudget": {"floorPerS": 1}}},
        "relay.retryBudget.floorPerS",
        "got 1",
        "did you mean floorPerSecond?",
    ),
    (method(safety="SAFE"), "relay.methods[0].safety", 'got "SAFE"', "'KEYED'"),
    (method(keyRequired=1), "relay.methods[0].keyRequired", "got 1", "valid boolean"),
    (method(attemptTimeout="0s"), "relay.methods[0].attemptTimeout", 'got "0s"', "longer than 0s"),
    (method(jitter="some"), "relay.methods[0].jitter", 'got "some"', "'decorrelated'"),
    (method(maxMessageBytes=0), "relay.methods[0].maxMessageBytes", "got 0", "greater than or equal to 1"),
    (upstream(target="nowhere"), "relay.upstreams.a.target", 'got "nowhere"', "must be host:port"),
    (upstream(target="h:0"), "relay.upstreams.a.target", 'got "h:0"', "from 1 to 65535"),
    (upstream(conections=2), "relay.upstreams.a.conections", "got 2", "did you mean connections?"),
    (
        upstream(reconnectBackoffMin="9s"),
        "relay.upstreams.a.reconnectBackoffMax",
        'got "0.5s"',
        "at least reconnectBackoffMin",
    ),
    ({"relay": {"upstreams": {"a": {}}}}, "relay.upstreams.a.target", "", "is required"),
    ({"relay": {"upstreams": {"a b": {"target": "h:1"}}}}, "relay.upstreams.a b", 'got "a b"', "must match"),
    (
        {"relay": {"routes": [{"upstream": "z"}]}},
        "relay.routes[0].upstream",
        'got "z"',
        "must be one of relay.upstreams",
    ),
    (
        {"relay": {"routes": [{"method": "M", "upstream": "upstream"}]}},
        "relay.routes[0]",
        'got method "M"',
        "name the service",
    ),
    (
        {"relay": {"routes": [{"upstream": "upstream"}, {"upstream": "upstream"}]}},
        "relay.routes[1]",
        "got",
        "must be routed once",
    ),
    (
        {"relay": {"upstreams": {"a": {"target": "h:1"}, "b": {"target": "h:2"}}}},
        "relay.routes",
        "",
        "is required to choose between the upstreams a, b",
    ),
]


@pytest.mark.parametrize(("content", "path", "found", "allowed"), BAD, ids=lambda value: str(value)[:60])
def test_a_mistake_is_told_with_file_path_value_and_what_is_allowed(
    policy_file, content: Any, path: str, found: str, allowed: str
) -> None:
    file = policy_file(content)
    with pytest.raises(ConfigError) as caught:
        load_policy(str(file), TARGET)
    (problem,) = caught.value.problems
    assert (problem.where, problem.path) == (str(file), path)
    assert problem.found.startswith(found)
    assert bool(problem.found) == bool(found)
    assert allowed in problem.allowed
    assert str(problem).startswith(f"{file}: {path}" if path else f"{file}: ")


def test_all_mistakes_are_told_at_once(policy_file) -> None:
    content = retrying(maxAttempts=0, maxBackoff=3) | {"relay": {"off": ["x"], "maxHops": "3"}}
    with pytest.raises(ConfigError) as caught:
        load_policy(str(policy_file(content)), TARGET)
    assert [problem.path for problem in caught.value.problems] == [
        "methodConfig[0].retryPolicy.maxAttempts",
        "methodConfig[0].retryPolicy.maxBackoff",
        "relay.maxHops",
        "relay.off[0]",
    ]


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ('{"relay": {}, "relay": {}}', 'the key "relay" stands twice'),
        ('{"retryThrottling": {"maxTokens": 1, "tokenRatio": NaN}}', "NaN is not a JSON number"),
        ("[" * 100_000, "nested too deeply"),
        (" " * (1024 * 1024 + 1), "is larger than"),
    ],
    ids=["empty", "cut short", "duplicate key", "NaN", "deep", "large"],
)
def test_what_is_not_strict_json_is_refused(policy_file, text: str, allowed: str) -> None:
    with pytest.raises(ConfigError, match=allowed):
        load_policy(str(policy_file(text)), TARGET)


def test_a_syntax_error_is_told_with_line_and_column(policy_file) -> None:
    file = policy_file('{\n  "relay": oops\n}')
    with pytest.raises(ConfigError) as caught:
        load_policy(str(file), TARGET)
    assert str(caught.value).startswith(f"{file}:2:12: is not JSON")


def test_bytes_that_are_no_utf_8_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_bytes(b'{"relay": "\xff"}')
    with pytest.raises(ConfigError, match="is not UTF-8 at byte 11"):
        load_policy(str(file), TARGET)


def test_infinity_written_as_a_number_is_refused(policy_file) -> None:
    with pytest.raises(ConfigError, match=r"retryThrottling\.tokenRatio"):
        load_policy(str(policy_file('{"retryThrottling": {"maxTokens": 1, "tokenRatio": 1e999}}')), TARGET)


def test_a_file_that_is_not_there_names_the_presets() -> None:
    with pytest.raises(UnreadableError, match=r"no such file, and no preset of that name \(default, "):
        load_policy("defualt", TARGET)


def test_a_directory_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="directory"):
        load_policy(str(tmp_path), TARGET)


def test_a_long_value_is_cut_and_credentials_are_left_out(policy_file) -> None:
    content = upstream(target="http://user:secret@" + "x" * 1000)
    with pytest.raises(ConfigError) as caught:
        load_policy(str(policy_file(content)), TARGET)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_unusable_target_is_told() -> None:
    with pytest.raises(ConfigError, match='upstream: got "x"; must be host:port'):
        load_policy("default", "x")
