"""One document laid over another: what a policy file takes from its preset and what it says itself.

gRPC's own part keeps gRPC's rule: the entry with the longest match counts as a whole, and a file's entry
replaces the preset's of the same name. In the ``relay`` block fields are laid over fields.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from relay_service.config.document import Document
from relay_service.config.schema import (
    AdmissionBlock,
    MethodConfig,
    QuotaBlock,
    RelayBlock,
    RouteBlock,
    ThrottlingBlock,
    UpstreamBlock,
)

_OF_THEIR_OWN = frozenset({"name", "breaker", "bulkhead"})
"""What an entry of ``relay.methods`` says that is no field of a method's policy."""


@dataclass(slots=True)
class Merged:
    """All layers in one. The dicts of ``Any`` map core field names to values that the schema has checked."""

    name: str = ""
    method_configs: dict[str, MethodConfig] = field(default_factory=dict)
    """By pattern, as all that is keyed here: ``package.Service/Method``, ``package.Service`` or empty."""
    method_fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    throttling: ThrottlingBlock | None = None
    upstreams: dict[str, UpstreamBlock] = field(default_factory=dict)
    routes: list[RouteBlock] = field(default_factory=list)
    admission_fields: dict[str, Any] = field(default_factory=dict)
    bulkhead_fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What is said of the bulkheads; the empty pattern is the one each upstream has, when it is there."""
    client_quota: QuotaBlock | None = None
    client_quotas: dict[str, QuotaBlock] = field(default_factory=dict)
    """Those of named clients."""
    criticality_fields: dict[str, Any] | None = None
    """What is said of the highest classes; None while nobody says anything."""
    callers_fields: dict[str, Any] = field(default_factory=dict)
    budget_fields: dict[str, Any] = field(default_factory=dict)
    throttle_fields: dict[str, Any] | None = None
    """What is said of the adaptive throttle; None while nobody asks for one."""
    breaker_fields: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})
    """What is said of the breakers; the empty pattern is the one each upstream has."""
    job_fields: dict[str, Any] = field(default_factory=dict)
    letter_fields: dict[str, Any] = field(default_factory=dict)
    alert_fields: dict[str, Any] | None = None
    keys_fields: dict[str, Any] = field(default_factory=dict)
    max_hops: int = 3
    off: frozenset[str] = frozenset()

    def patterns(self) -> set[str]:
        """Every pattern that anything is said about: together they tell all methods apart."""
        return {*self.method_configs, *self.method_fields}

    def method_config(self, pattern: str) -> MethodConfig | None:
        """gRPC's rule: the longest match, whole."""
        return next((self.method_configs[p] for p in widening(pattern) if p in self.method_configs), None)

    def fields_of(self, pattern: str) -> Mapping[str, Any]:
        """Our rule: the fields of the wider patterns, each overridden by the narrower ones."""
        return _widened(self.method_fields, pattern)

    def breaker_of(self, pattern: str) -> Mapping[str, Any]:
        """By the same rule: the fields of the breaker that the pattern has for itself."""
        return _widened(self.breaker_fields, pattern)

    def bulkhead_of(self, pattern: str, own: Mapping[str, Any] = MappingProxyType({})) -> Mapping[str, Any]:
        """By the same rule, with those of the admission below all and ``own`` above all."""
        fields = dict(self.admission_fields)
        for wider in reversed(widening(pattern)):
            _lay_admission_over(fields, self.bulkhead_fields.get(wider, {}))
        _lay_admission_over(fields, own)
        return fields


def _widened(fields_by_pattern: Mapping[str, dict[str, Any]], pattern: str) -> Mapping[str, Any]:
    fields: dict[str, Any] = {}
    for wider in reversed(widening(pattern)):
        fields |= fields_by_pattern.get(wider, {})
    return fields


def widening(pattern: str) -> list[str]:
    """A pattern and those that hold it, from the narrowest: method, service, all."""
    service, _, method = pattern.partition("/")
    steps = [pattern, service, ""] if method else [pattern, ""]
    return list(dict.fromkeys(steps))


def merge(documents: Iterable[Document]) -> Merged:
    """Lay the documents over each other, the first lowest."""
    merged = Merged()
    for document in documents:
        _lay_over(merged, document)
    return merged


def _lay_over(merged: Merged, document: Document) -> None:
    content, relay = document.content, document.content.relay
    merged.name = relay.name or document.title
    merged.method_configs |= {name.pattern: entry for entry in content.method_config for name in entry.name}
    for block in relay.methods:
        given = {key: value for key, value in block.fields_given().items() if key not in _OF_THEIR_OWN}
        for name in block.name:
            merged.method_fields.setdefault(name.pattern, {}).update(given)
            if block.breaker is not None:
                merged.breaker_fields.setdefault(name.pattern, {}).update(block.breaker.fields_given())
            if block.bulkhead is not None:
                _lay_bulkhead_over(merged, name.pattern, block.bulkhead)
    merged.throttling = content.retry_throttling or merged.throttling
    merged.upstreams |= relay.upstreams
    merged.routes = relay.routes or merged.routes
    _lay_limits_over(merged, relay)
    merged.callers_fields |= relay.callers.fields_given()
    merged.budget_fields |= relay.retry_budget.fields_given()
    if relay.adaptive_throttle is not None:
        merged.throttle_fields = (merged.throttle_fields or {}) | relay.adaptive_throttle.fields_given()
    merged.breaker_fields[""] |= relay.breaker.fields_given()
    merged.job_fields |= relay.jobs.fields_given()
    if relay.alerts is not None:
        merged.alert_fields = (merged.alert_fields or {}) | relay.alerts.fields_given()
    merged.letter_fields |= relay.dead_letters.fields_given()
    merged.keys_fields |= relay.keys.fields_given()
    if "max_hops" in relay.model_fields_set:
        merged.max_hops = relay.max_hops
    if "off" in relay.model_fields_set:
        merged.off = frozenset(relay.off)


def _lay_limits_over(merged: Merged, relay: RelayBlock) -> None:
    _lay_admission_over(merged.admission_fields, relay.admission.fields_given())
    if relay.bulkhead is not None:
        _lay_bulkhead_over(merged, "", relay.bulkhead)
    if "default" in relay.clients.model_fields_set:
        merged.client_quota = relay.clients.default
    merged.client_quotas |= relay.clients.named
    if relay.criticality is not None:
        merged.criticality_fields = (merged.criticality_fields or {}) | relay.criticality.fields_given()


def _lay_bulkhead_over(merged: Merged, pattern: str, block: AdmissionBlock) -> None:
    _lay_admission_over(merged.bulkhead_fields.setdefault(pattern, {}), block.fields_given())


def _lay_admission_over(fields: dict[str, Any], given: Mapping[str, Any]) -> None:
    # Whoever gives a number of workers means it, whatever adapts itself in what lies below.
    if "workers" in given and "limit" not in given:
        fields.pop("limit", None)
    fields |= given
