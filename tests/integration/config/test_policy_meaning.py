"""What a policy file comes to: presets, layers, longest match, switches."""

from dataclasses import replace
from typing import Any

import pytest

from relay_service.config.document import preset_names, read_preset
from relay_service.config.lint import findings
from relay_service.config.loading import load_policy, policy_of
from relay_service.config.problems import ConfigError
from relay_service.config.settings import read_settings
from relay_service.core.evidence import Safety
from relay_service.core.policy import (
    NO_RETRY,
    WIDE_OPEN,
    AdmissionPolicy,
    BreakerPolicy,
    ClientQuota,
    ClientsPolicy,
    HedgePolicy,
    Jitter,
    LimitKind,
    LimitPolicy,
    MethodPolicy,
    QueueOrder,
    RelayPolicy,
    RetryBudgetPolicy,
    RetryPolicy,
    RetryThrottling,
    Route,
    StandingShed,
    ThrottlePolicy,
    UpstreamPolicy,
)
from relay_service.core.status import Code

TARGET = "127.0.0.1:50052"
RETRY_TWICE = {
    "maxAttempts": 2,
    "initialBackoff": "0.2s",
    "maxBackoff": "1s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["unavailable", 10],
}


@pytest.fixture
def loaded(policy_file):
    def load(content: Any) -> RelayPolicy:
        return load_policy(str(policy_file(content)), TARGET)

    return load


def hedging_of(loaded, *methods: Any, **rest: Any) -> HedgePolicy | None:
    return loaded({"relay": {"methods": list(methods)} | rest}).method_policy("a.B/C").hedging


def test_hedging_is_off_until_a_method_asks_for_it(loaded) -> None:
    assert hedging_of(loaded) is None
    assert hedging_of(loaded, {"name": [{}], "hedging": {}}) == HedgePolicy()
    words = {"quantile": 0.9, "minDelay": "0.05s", "maxAttempts": 3, "minSamples": 10}
    assert hedging_of(loaded, {"name": [{}], "hedging": words}) == HedgePolicy(3, 0.9, 0.05, 10)


def test_a_narrower_entry_can_take_hedging_back(loaded) -> None:
    wider, narrower = {"name": [{}], "hedging": {}}, {"name": [{"service": "a.B"}], "hedging": None}
    assert hedging_of(loaded, wider, narrower) is None
    assert hedging_of(loaded, wider, off=["hedging"]) is None


def test_grpcs_hedging_policy_has_a_fixed_delay_and_repeats_what_failed(loaded) -> None:
    words = {"maxAttempts": 3, "hedgingDelay": "0.5s", "nonFatalStatusCodes": ["UNAVAILABLE"]}
    method = loaded({"methodConfig": [{"name": [{}], "hedgingPolicy": words}]}).method_policy("a.B/C")
    assert method.hedging == HedgePolicy(3, None, 0.5, non_fatal_codes=frozenset({Code.UNAVAILABLE}))
    assert (method.retry.max_attempts, method.retry.max_backoff_s) == (3, 0.5)
    assert method.retry.retryable_codes == frozenset(), "these codes do not say that nothing was executed"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_lints_clean(name: str) -> None:
    assert load_policy(name, TARGET).name == name
    assert findings(read_preset(name), TARGET) == []


def test_the_presets_are_these() -> None:
    assert preset_names() == [
        "default",
        "keyed-demo",
        "passthrough",
        "payments",
        "payments-demo",
        "read-heavy",
        "simple",
        "textbook",
    ]


def test_preset_default_retries_within_a_fifth_of_the_traffic() -> None:
    policy = load_policy("default", TARGET)
    assert policy.method_policy("a.B/C") == MethodPolicy(retry=RetryPolicy())
    assert policy.budget == RetryBudgetPolicy(ratio=0.2, burst=10, floor_per_s=0)
    limit = LimitPolicy(kind=LimitKind.GRADIENT, initial=128)
    assert policy.admission == AdmissionPolicy(limit=limit, standing_shed=StandingShed.DOOR)
    assert policy.breakers == {"": BreakerPolicy()}
    assert policy.upstreams == {"upstream": UpstreamPolicy(TARGET)}
    assert policy.route("any.Service/Method") == "upstream"


def test_preset_textbook_has_four_attempts_full_jitter_and_nothing_that_bends_theory() -> None:
    policy = load_policy("textbook", TARGET)
    retry = policy.method_policy("a.B/C").retry
    assert (retry.max_attempts, retry.jitter, retry.retryable_codes) == (4, Jitter.FULL, {Code.UNAVAILABLE})
    assert policy.budget is None
    assert policy.throttling is None
    assert policy.breakers == {}
    assert policy.admission.workers >= 1000
    assert policy.admission.queue_capacity >= 10_000


def test_preset_simple_has_a_queue_of_100_five_workers_and_attempts_of_5_s() -> None:
    policy = load_policy("simple", TARGET)
    assert (policy.admission.queue_capacity, policy.admission.workers) == (100, 5)
    assert policy.method_policy("a.B/C").attempt_timeout_s == 5


def test_preset_simple_opens_after_5_failures_in_a_row_for_60_s_and_closes_after_2_successes() -> None:
    (breaker,) = load_policy("simple", TARGET).breakers.values()
    assert (breaker.consecutive_failures, breaker.probe_successes, breaker.open_s) == (5, 2, 60)
    assert (breaker.failure_ratio, breaker.slow_call_s, breaker.stuck_call_s, breaker.ramp_s) == (None,) * 4


def test_preset_passthrough_switches_everything_off() -> None:
    policy = load_policy("passthrough", TARGET)
    method = policy.method_policy("a.B/C")
    assert method.retry == NO_RETRY
    assert (method.default_timeout_s, method.max_timeout_s, method.attempt_timeout_s) == (None, None, None)
    assert (policy.budget, policy.throttling, policy.admission) == (None, None, WIDE_OPEN)
    assert policy.breakers == {}


def test_preset_payments_repeats_what_may_have_been_executed_only_with_a_key() -> None:
    policy = load_policy("payments", TARGET)
    method = policy.method_policy("a.B/C")
    assert (method.safety, method.key_required) == (Safety.KEYED, False)
    assert (method.retry.max_attempts, method.retry.retryable_codes) == (3, {Code.UNAVAILABLE})
    assert (method.attempt_timeout_s, method.default_timeout_s, method.max_timeout_s) == (10, 30, 120)
    assert policy.budget == RetryBudgetPolicy(ratio=0.1, burst=10)
    assert policy.breakers == {"": BreakerPolicy()}
    assert policy.adaptive_throttle == ThrottlePolicy()
    assert policy.admission == replace(load_policy("default", TARGET).admission, queue_capacity=500)


def test_preset_read_heavy_repeats_quickly_and_finds_its_own_limit() -> None:
    policy = load_policy("read-heavy", TARGET)
    method = policy.method_policy("a.B/C")
    assert method.safety is Safety.NO_SIDE_EFFECTS
    assert (method.retry.max_attempts, method.retry.initial_backoff_s) == (4, 0.025)
    assert (method.attempt_timeout_s, method.default_timeout_s) == (1, 5)
    assert method.hedging == HedgePolicy(quantile=0.95)
    assert policy.admission.limit.kind is LimitKind.GRADIENT
    assert policy.adaptive_throttle == ThrottlePolicy()
    assert policy.budget == RetryBudgetPolicy(ratio=0.2, burst=10)


def test_preset_payments_demo_knows_which_payments_may_be_repeated() -> None:
    policy = load_policy("payments-demo", TARGET)

    def safety(method: str) -> Safety | None:
        return policy.method_policy(f"downstream.v1.PaymentService/{method}").safety

    assert safety("Charge") is Safety.KEYED
    assert safety("ListCharges") is safety("WatchCharges") is Safety.NO_SIDE_EFFECTS
    assert safety("ChargeBatch") is safety("UploadCharges") is safety("Authorize") is Safety.NONE
    assert policy.method_policy("downstream.v1.PaymentService/WatchCharges").default_timeout_s is None
    assert policy.method_policy("downstream.v1.FaultService/SetFaults").safety is None
    assert policy.method_policy("downstream.v1.PaymentService/Charge").retry.max_attempts == 4


def test_the_payments_preset_names_every_method_of_the_service() -> None:
    from protos.downstream.v1 import payment_pb2

    service = payment_pb2.DESCRIPTOR.services_by_name["PaymentService"]
    named = load_policy("payments-demo", TARGET).methods
    assert {f"{service.full_name}/{method.name}" for method in service.methods} == {*named} - {""}


def test_an_empty_file_retries_nothing_as_in_grpc_and_keeps_the_other_defaults(loaded) -> None:
    policy = loaded({})
    assert policy.name == "policy"
    assert policy.methods == {"": MethodPolicy(retry=NO_RETRY)}
    assert policy.admission == AdmissionPolicy()
    assert policy.budget == RetryBudgetPolicy()


def test_a_retry_policy_is_taken_over_word_for_word(loaded) -> None:
    policy = loaded({"methodConfig": [{"name": [{}], "retryPolicy": RETRY_TWICE}]})
    assert policy.method_policy("a.B/C").retry == RetryPolicy(
        max_attempts=2,
        initial_backoff_s=0.2,
        max_backoff_s=1.0,
        backoff_multiplier=3.0,
        jitter=Jitter.FULL,
        retryable_codes=frozenset({Code.UNAVAILABLE, Code.ABORTED}),
    )


def test_the_longest_match_counts_whole_in_method_config_and_adds_up_in_the_relay_block(loaded) -> None:
    policy = loaded(
        {
            "methodConfig": [
                {"name": [{}], "retryPolicy": RETRY_TWICE},
                {"name": [{"service": "a.B"}], "timeout": "3s"},
            ],
            "relay": {
                "methods": [
                    {"name": [{}], "attemptTimeout": "1s", "jitter": "equal"},
                    {"name": [{"service": "a.B", "method": "C"}, {"service": "z.Z"}], "safety": "IDEMPOTENT"},
                ]
            },
        }
    )
    exact, service, other, default = (policy.method_policy(m) for m in ("a.B/C", "a.B/D", "z.Z/M", "x.Y/M"))
    assert exact.retry == service.retry == NO_RETRY
    assert other.retry.max_attempts == default.retry.max_attempts == 2
    assert other.retry.jitter is Jitter.EQUAL
    assert {exact.attempt_timeout_s, service.attempt_timeout_s, other.attempt_timeout_s} == {1.0}
    assert (exact.safety, service.safety, other.safety) == (Safety.IDEMPOTENT, None, Safety.IDEMPOTENT)
    assert exact.default_timeout_s == service.default_timeout_s == 3.0
    assert default.default_timeout_s == 15.0


@pytest.mark.parametrize(
    ("timeout", "words", "default_s", "max_s"),
    [
        ("2s", {}, 2.0, 2.0),
        ("90s", {}, 60.0, 60.0),
        ("90s", {"maxTimeout": None}, 90.0, 90.0),
        ("2s", {"defaultTimeout": "1s", "maxTimeout": "30s"}, 2.0, 2.0),
        (None, {"defaultTimeout": "1s", "maxTimeout": "30s"}, 1.0, 30.0),
        (None, {"defaultTimeout": None}, None, 60.0),
    ],
)
def test_a_grpc_timeout_is_default_and_cap_and_the_relays_own_words_tell_them_apart(
    loaded, timeout: str | None, words: dict[str, Any], default_s: float | None, max_s: float | None
) -> None:
    policy = loaded(
        {
            "methodConfig": [{"name": [{}], **({"timeout": timeout} if timeout else {})}],
            "relay": {"methods": [{"name": [{}], **words}]},
        }
    )
    method = policy.method_policy("a.B/C")
    assert (method.default_timeout_s, method.max_timeout_s) == (default_s, max_s)


def test_a_file_says_how_the_limit_adapts(loaded) -> None:
    limit = {"kind": "aimd", "max": 50, "latencyObjective": "0.2s"}
    admission = loaded({"relay": {"preset": "default", "admission": {"limit": limit}}}).admission
    assert admission.limit == LimitPolicy(LimitKind.AIMD, max=50, latency_objective_s=0.2)


def test_a_file_overrides_its_preset_field_by_field(loaded) -> None:
    policy = loaded(
        {
            "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.5},
            "relay": {
                "preset": "simple",
                "name": "mine",
                "admission": {"workers": 7},
                "maxHops": 9,
                "methods": [{"name": [{}], "maxMessageBytes": 100}],
            },
        }
    )
    assert policy.name == "mine"
    assert policy.admission == AdmissionPolicy(
        queue_capacity=100, workers=7, max_streams=100, feasibility_quantile=None
    )
    assert policy.max_hops == 9
    assert policy.throttling == RetryThrottling(10, 0.5)
    assert policy.budget is None, "the preset's switches stay"
    method = policy.method_policy("a.B/C")
    assert (method.max_message_bytes, method.attempt_timeout_s, method.retry.max_attempts) == (100, 5.0, 4)


def test_a_file_may_switch_on_again_what_its_preset_switched_off(loaded) -> None:
    assert loaded({"relay": {"preset": "textbook", "off": []}}).budget == RetryBudgetPolicy()


def test_an_entry_may_have_a_breaker_of_its_own_laid_over_the_upstreams(loaded) -> None:
    policy = loaded(
        {
            "relay": {
                "breaker": {"openTime": "7s", "minCalls": 9},
                "methods": [
                    {"name": [{"service": "a.B"}], "breaker": {"minCalls": 8, "rampTime": None}},
                    {"name": [{"service": "a.B", "method": "C"}], "breaker": {}},
                    {"name": [{"service": "a.B", "method": "D"}], "safety": "IDEMPOTENT"},
                ],
            }
        }
    )
    service = BreakerPolicy(open_s=7, min_calls=8, ramp_s=None)
    everything = {"": BreakerPolicy(open_s=7, min_calls=9), "a.B": service, "a.B/C": service}
    assert policy.breakers == everything, "a.B/D shares that of its service"


def test_compartments_are_laid_over_the_admission_from_the_widest_to_the_narrowest(loaded) -> None:
    relay = {
        "preset": "default",
        "admission": {"queueCapacity": 70},
        "bulkhead": {"maxStreams": 7},
        "upstreams": {"a": {"target": "h:1"}, "b": {"target": "h:2", "bulkhead": {"workers": 3}}},
        "routes": [{"service": "a.A", "upstream": "a"}, {"upstream": "b"}],
        "methods": [{"name": [{"service": "a.A", "method": "M"}], "bulkhead": {"queueCapacity": 0}}],
    }
    policy = loaded({"relay": relay})
    shared = policy.admission
    assert (shared.queue_capacity, shared.limit.kind) == (70, LimitKind.GRADIENT)
    each = replace(shared, max_streams=7)
    assert policy.bulkheads.upstreams["a"] == each
    assert policy.bulkheads.upstreams["b"] == replace(each, workers=3, limit=AdmissionPolicy().limit)
    assert policy.bulkheads.methods == {"a.A/M": replace(each, queue_capacity=0)}


def test_only_the_upstream_that_asks_for_a_compartment_has_one(loaded) -> None:
    upstreams = {"a": {"target": "h:1"}, "b": {"target": "h:2", "bulkhead": {}}}
    policy = loaded({"relay": {"upstreams": upstreams, "routes": [{"upstream": "a"}]}})
    assert policy.bulkheads.upstreams == {"b": policy.admission}
    assert policy.upstreams["b"] == UpstreamPolicy("h:2"), "another compartment is no other upstream"


def test_one_upstream_that_has_no_name_can_have_a_compartment(loaded) -> None:
    policy = loaded({"relay": {"bulkhead": {"workers": 9}}})
    assert [one.workers for one in policy.bulkheads.upstreams.values()] == [9]


def test_workers_given_over_a_preset_that_adapts_itself_are_meant(loaded) -> None:
    adapts = loaded({"relay": {"preset": "default"}}).admission
    assert (adapts.limit.kind, adapts.workers_max) == (LimitKind.GRADIENT, 1000)
    fixed = loaded({"relay": {"preset": "default", "admission": {"workers": 3}}}).admission
    assert (fixed.limit.kind, fixed.workers_max) == (LimitKind.FIXED, 3)


def test_named_clients_are_laid_over_the_default_quota(loaded) -> None:
    quota = {"ratePerSecond": 5, "burst": 10}
    clients = loaded(
        {"relay": {"clients": {"default": quota, "named": {"batch": {"ratePerSecond": 0.5, "burst": 1}}}}}
    ).clients
    assert clients == ClientsPolicy(ClientQuota(5, 10), {"batch": ClientQuota(0.5, 1)})
    assert loaded({"relay": {"clients": {"named": {"a": quota}}}}).clients.default is None
    assert loaded({"relay": {"clients": {}}}).clients is None


def test_what_becomes_of_a_standing_queue_is_taken_over(loaded) -> None:
    block = {"queueOrder": "adaptive-lifo", "standingShed": "codel", "standingTarget": "0.02s"}
    admission = loaded({"relay": {"admission": block}}).admission
    assert (admission.queue_order, admission.standing_shed) == (QueueOrder.ADAPTIVE_LIFO, StandingShed.CODEL)
    assert (admission.standing_target_s, admission.standing_interval_s) == (0.02, 0.2)


def test_there_is_an_adaptive_throttle_only_where_one_is_asked_for(loaded) -> None:
    assert loaded({"relay": {"preset": "default"}}).adaptive_throttle is None
    assert loaded({"relay": {"adaptiveThrottle": {}}}).adaptive_throttle == ThrottlePolicy()
    policy = loaded({"relay": {"adaptiveThrottle": {"k": 1.5, "window": "3s"}}})
    assert policy.adaptive_throttle == ThrottlePolicy(k=1.5, window_s=3)


SWITCHES = {
    "retry": lambda policy: policy.method_policy("a.B/C").retry.max_attempts == 1,
    "hedging": lambda policy: not policy.hedges,
    "retryBudget": lambda policy: policy.budget is None,
    "retryThrottling": lambda policy: policy.throttling is None,
    "adaptiveThrottle": lambda policy: policy.adaptive_throttle is None,
    "fallback": lambda policy: not policy.method_policy("a.B/C").fallback,
    "breaker": lambda policy: policy.breakers == {},
    "admission": lambda policy: policy.admission == WIDE_OPEN,
    "bulkhead": lambda policy: not policy.bulkheads.upstreams,
    "clientQuotas": lambda policy: policy.clients is None,
    "attemptTimeout": lambda policy: policy.method_policy("a.B/C").attempt_timeout_s is None,
    "deadlines": lambda policy: policy.method_policy("a.B/C").max_timeout_s is None,
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_pattern_is_switched_off_alone(loaded, switch: str) -> None:
    throttling = {"maxTokens": 10, "tokenRatio": 0.5}
    relay = {
        "preset": "default",
        "adaptiveThrottle": {},
        "bulkhead": {},
        "clients": {"default": {"ratePerSecond": 5, "burst": 10}},
        "upstreams": {"one": {"target": "h:1"}, "two": {"target": "h:2"}},
        "routes": [{"upstream": "one"}],
        "methods": [{"name": [{}], "hedging": {}, "fallback": ["two"]}],
        "off": [switch],
    }
    policy = loaded({"retryThrottling": throttling, "relay": relay})
    assert [name for name, is_off in SWITCHES.items() if is_off(policy)] == [switch]


def test_the_schema_knows_exactly_these_switches() -> None:
    from typing import get_args

    from relay_service.config.schema import Switch

    assert set(get_args(Switch)) == set(SWITCHES)


def test_routes_and_upstreams_are_taken_over(loaded) -> None:
    policy = loaded(
        {
            "relay": {
                "upstreams": {
                    "a": {"target": "h:1", "connections": 3, "silence": "2s"},
                    "b": {"target": "unix:/run/b"},
                },
                "routes": [
                    {"service": "p.S", "method": "M", "upstream": "b"},
                    {"service": "p.S", "upstream": "a"},
                ],
            }
        }
    )
    assert policy.upstreams["a"] == UpstreamPolicy("h:1", connections=3, silence_s=2.0)
    assert [policy.route(m) for m in ("p.S/M", "p.S/N", "p.T/M")] == ["b", "a", None]


def test_an_upstream_set_beside_a_policy_that_names_its_own_is_refused(policy_file) -> None:
    file = policy_file({"relay": {"upstreams": {"a": {"target": "h:1"}}}})
    with pytest.raises(ConfigError, match="names its own upstreams"):
        policy_of(read_settings({"policy": str(file), "upstream": "h:2"}))
    assert policy_of(read_settings({"policy": str(file)})).upstreams["a"].target == "h:1"
    assert policy_of(read_settings({"upstream": "h:2"})).upstreams["upstream"].target == "h:2"


class TestLookUp:
    """The values by themselves, as Python code may make them."""

    def test_the_method_goes_before_its_service_and_the_service_before_the_default(self) -> None:
        exact, service, default = (MethodPolicy(max_message_bytes=n) for n in (1, 2, 3))
        policy = RelayPolicy("p", {"u": UpstreamPolicy("h:1")}, {"a.B/C": exact, "a.B": service, "": default})
        assert [policy.method_policy(m) for m in ("a.B/C", "a.B/D", "a.Bx/C", "", "a.B")] == [
            exact,
            service,
            default,
            default,
            service,
        ]

    def test_without_a_default_the_built_in_one_holds(self) -> None:
        assert RelayPolicy("p", {"u": UpstreamPolicy("h:1")}).method_policy("x/y") == MethodPolicy()

    def test_routes_match_likewise_and_nothing_matches_without_a_catch_all(self) -> None:
        upstreams = {name: UpstreamPolicy("h:1") for name in ("exact", "service", "all")}
        routes = (Route("a.B", "C", "exact"), Route("a.B", None, "service"))
        methods = ("a.B/C", "a.B/D", "a.C/C", "nonsense")
        without = RelayPolicy("p", upstreams, routes=routes)
        assert [without.route(m) for m in methods] == ["exact", "service", None, None]
        caught = RelayPolicy("p", upstreams, routes=(*routes, Route("", None, "all")))
        assert [caught.route(m) for m in methods] == ["exact", "service", "all", "all"]

    def test_a_policy_cannot_be_changed_through_what_it_was_made_from(self) -> None:
        methods = {"a.B/C": MethodPolicy()}
        policy = RelayPolicy("p", {"u": UpstreamPolicy("h:1")}, methods)
        methods["a.B/C"] = MethodPolicy(key_required=True)
        assert not policy.method_policy("a.B/C").key_required

    @pytest.mark.parametrize(
        ("make", "field"),
        [
            (lambda: RetryPolicy(max_attempts=0), "max_attempts"),
            (lambda: RetryPolicy(initial_backoff_s=0), "initial_backoff_s"),
            (lambda: RetryPolicy(max_backoff_s=0.01), "max_backoff_s"),
            (lambda: RetryPolicy(backoff_multiplier=float("inf")), "backoff_multiplier"),
            (lambda: RetryPolicy(retryable_codes=frozenset({Code.OK})), "retryable_codes"),
            (lambda: RetryBudgetPolicy(ratio=-1), "ratio"),
            (lambda: RetryBudgetPolicy(burst=0), "burst"),
            (lambda: RetryThrottling(0, 1), "max_tokens"),
            (lambda: RetryThrottling(1, 0), "token_ratio"),
            (lambda: BreakerPolicy(consecutive_failures=0), "consecutive_failures"),
            (lambda: BreakerPolicy(failure_ratio=0), "failure_ratio"),
            (lambda: BreakerPolicy(slow_ratio=1.1), "slow_ratio"),
            (lambda: BreakerPolicy(probes=0), "probes"),
            (lambda: BreakerPolicy(ramp_s=0), "ramp_s"),
            (lambda: MethodPolicy(attempt_timeout_s=0), "attempt_timeout_s"),
            (lambda: MethodPolicy(default_timeout_s=float("nan")), "default_timeout_s"),
            (lambda: MethodPolicy(max_message_bytes=0), "max_message_bytes"),
            (lambda: AdmissionPolicy(workers=0), "workers"),
            (lambda: UpstreamPolicy(""), "target"),
            (lambda: UpstreamPolicy("h:1", reconnect_backoff_max_s=0.01), "reconnect_backoff_max_s"),
            (lambda: Route("", "M", "u"), "service"),
            (lambda: RelayPolicy("p", {}), "upstreams"),
            (lambda: RelayPolicy("p", {n: UpstreamPolicy("h:1") for n in "ab"}), "routes"),
            (lambda: RelayPolicy("p", {"u": UpstreamPolicy("h:1")}, routes=(Route("", None, "v"),)), "'v'"),
            (
                lambda: RelayPolicy("p", {"u": UpstreamPolicy("h:1")}, routes=(Route("", None, "u"),) * 2),
                "twice",
            ),
        ],
    )
    def test_a_value_that_could_not_mean_anything_is_refused_by_its_name(self, make, field: str) -> None:
        with pytest.raises(ValueError, match=field):
            make()


def test_retries_off_leaves_the_operators_word_on_codes_and_none_given_means_none(loaded) -> None:
    """An answer is not more harmless for being the only one."""
    retry = {
        "maxAttempts": 3,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    policy = loaded({"methodConfig": [{"name": [{}], "retryPolicy": retry}], "relay": {"off": ["retry"]}})
    kept = policy.method_policy("a.B/C").retry
    assert (kept.max_attempts, kept.retryable_codes) == (1, {Code.UNAVAILABLE})
    assert loaded({}).method_policy("a.B/C").retry.retryable_codes == frozenset()
