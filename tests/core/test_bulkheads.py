"""Which compartment a call is in, and what becomes of it when the policy changes."""

from dataclasses import replace

import pytest

from relay_service.core.admission import Demand
from relay_service.core.bulkheads import Bulkheads, admissions_of
from relay_service.core.policy import (
    AdmissionPolicy,
    BulkheadsPolicy,
    RelayPolicy,
    Route,
    UpstreamPolicy,
)

SHOP, MAIL, EXPORT = (AdmissionPolicy(workers=workers) for workers in (1, 2, 3))
POLICY = RelayPolicy(
    "p",
    {"shop": UpstreamPolicy("h:1"), "mail": UpstreamPolicy("h:2"), "bare": UpstreamPolicy("h:3")},
    routes=(Route("shop.S", None, "shop"), Route("mail.S", None, "mail"), Route("", None, "bare")),
    bulkheads=BulkheadsPolicy({"shop": SHOP, "mail": MAIL}, {"shop.S/Export": EXPORT, "odd.S": EXPORT}),
)


def held(bulkheads: Bulkheads[str], upstream: str, method: str) -> str | None:
    admission = bulkheads.holding(upstream, method)
    return admission.subject if admission is not None else None


@pytest.mark.parametrize(
    ("upstream", "method", "subject"),
    [
        ("shop", "shop.S/Buy", "bulkhead:shop"),
        ("shop", "shop.S/Export", "bulkhead:shop shop.S/Export"),
        ("mail", "shop.S/Export", "bulkhead:mail"),
        ("bare", "odd.S/Any", "bulkhead:bare odd.S"),
        ("bare", "other.S/Any", None),
        ("gone", "other.S/Any", None),
    ],
)
def test_a_call_is_in_the_compartment_of_its_method_else_of_its_upstream_else_in_none(
    upstream: str, method: str, subject: str | None
) -> None:
    assert held(Bulkheads(POLICY, 0.0, b""), upstream, method) == subject


def test_invented_methods_make_no_compartments() -> None:
    bulkheads: Bulkheads[str] = Bulkheads(POLICY, 0.0, b"")
    before = len(list(bulkheads))
    for number in range(100):
        bulkheads.holding("shop", f"shop.S/Method{number}")
    assert len(list(bulkheads)) == before == 4


def test_what_is_full_in_one_is_nothing_to_another() -> None:
    bulkheads: Bulkheads[str] = Bulkheads(POLICY, 0.0, b"")
    shop, mail = bulkheads.holding("shop", "shop.S/Buy"), bulkheads.holding("mail", "mail.S/Send")
    assert shop is not None
    assert mail is not None
    shop.offer("one", Demand(), 0.0)
    assert (shop.busy, mail.busy) == (1, 0)


def test_another_policy_changes_limits_and_keeps_what_is_under_way_of_the_same_upstreams() -> None:
    old: Bulkheads[str] = Bulkheads(POLICY, 0.0, b"")
    shop, mail = old.holding("shop", "shop.S/Buy"), old.holding("mail", "mail.S/Send")
    assert shop is not None
    shop.offer("one", Demand(), 0.0)
    wider = replace(POLICY, bulkheads=BulkheadsPolicy({"shop": replace(SHOP, workers=9), "mail": MAIL}))
    new: Bulkheads[str] = Bulkheads(wider, 1.0, b"", old.of(["shop", "bare"]))
    assert new.holding("shop", "shop.S/Export") is shop
    assert (shop.busy, shop.workers) == (1, 9)
    assert new.holding("mail", "mail.S/Send") is not mail, "its upstream is another one now"


def test_the_most_that_is_taken_on_is_the_sum_of_all() -> None:
    workers = sorted(one.workers for one in admissions_of(POLICY))
    assert workers == [1, 2, 3, 3, POLICY.admission.workers]


def test_a_compartment_for_an_upstream_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="gone"):
        replace(POLICY, bulkheads=BulkheadsPolicy({"gone": SHOP}))
