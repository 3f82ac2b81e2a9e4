"""What the file says of limits and queues, as values: of those that all share, and of the compartments."""

from collections.abc import Iterable, Mapping
from typing import Any

from relay_service.config.merge import Merged
from relay_service.core.policy import (
    AdmissionPolicy,
    BulkheadsPolicy,
    LimitKind,
    LimitPolicy,
    QueueOrder,
    StandingShed,
)


def admission_policy(fields: Mapping[str, Any]) -> AdmissionPolicy:
    """``fields`` are those given, by core name, as the schema has checked them."""
    given = dict(fields)
    block = given.pop("limit", None)
    if block is not None:
        limit = block.fields_given()
        given["limit"] = LimitPolicy(**(limit | {"kind": LimitKind(limit["kind"])}))
    if "queue_order" in given:
        given["queue_order"] = QueueOrder(given["queue_order"])
    if "standing_shed" in given:
        given["standing_shed"] = StandingShed(given["standing_shed"])
    return AdmissionPolicy(**given)


def bulkheads_policy(merged: Merged, upstreams: Iterable[str]) -> BulkheadsPolicy:
    """Each upstream has a compartment when ``relay.bulkhead`` or its own entry says so, and each entry of
    ``relay.methods`` that asks for one has that."""
    if "bulkhead" in merged.off:
        return BulkheadsPolicy()
    own = {
        name: block.bulkhead.fields_given()
        for name, block in merged.upstreams.items()
        if block.bulkhead is not None
    }
    names = upstreams if "" in merged.bulkhead_fields else own
    return BulkheadsPolicy(
        {name: admission_policy(merged.bulkhead_of("", own.get(name, {}))) for name in names},
        {
            pattern: admission_policy(merged.bulkhead_of(pattern))
            for pattern in merged.bulkhead_fields
            if pattern
        },
    )
