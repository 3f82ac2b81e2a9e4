"""Token buckets by client, and what made-up names cost."""

import pytest

from relay_service.core import quota
from relay_service.core.policy import ClientQuota, ClientsPolicy
from relay_service.core.quota import ClientQuotas, QuotaView

TEN = ClientQuota(10.0, 5.0)


def granted(quotas: ClientQuotas, client: bytes, count: int, now: float) -> int:
    return sum(quotas.take(client, now) == 0.0 for _ in range(count))


def test_a_client_has_its_burst_and_then_its_rate() -> None:
    quotas = ClientQuotas(ClientsPolicy(TEN), 0.0)
    assert granted(quotas, b"a", 20, 0.0) == 5
    assert granted(quotas, b"a", 20, 1.0) == 5, "no more than a burst is saved up"
    assert sum(granted(quotas, b"a", 3, 1.0 + 0.01 * step) for step in range(1, 1001)) == pytest.approx(
        100, abs=1
    )


def test_the_wait_told_is_when_there_is_a_token() -> None:
    quotas = ClientQuotas(ClientsPolicy(TEN), 0.0)
    granted(quotas, b"a", 5, 0.0)
    wait_s = quotas.take(b"a", 0.03)
    assert wait_s == pytest.approx(0.07)
    assert quotas.take(b"a", 0.03 + wait_s - 0.001) > 0.0
    assert quotas.take(b"a", 0.03 + wait_s + 0.001) == 0.0


def test_clients_do_not_spend_each_others_quotas_and_the_unnamed_share_one() -> None:
    quotas = ClientQuotas(ClientsPolicy(TEN, {"big": ClientQuota(100.0, 50.0)}), 0.0)
    assert [granted(quotas, client, 60, 0.0) for client in (b"big", b"a", b"b", b"", b"")] == [50, 5, 5, 5, 0]
    assert list(quotas.views()) == [QuotaView("big", 1, 50, 10), QuotaView("", 3, 15, 225)]


def test_without_a_default_only_the_named_are_held_back() -> None:
    quotas = ClientQuotas(ClientsPolicy(None, {"small": ClientQuota(1.0, 1.0)}), 0.0)
    assert granted(quotas, b"small", 10, 0.0) == 1
    assert granted(quotas, b"other", 1000, 0.0) == 1000


def test_made_up_names_cost_bounded_memory_and_share_a_bucket_when_there_is_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quota, "CLIENTS_MAX", 100)
    quotas = ClientQuotas(ClientsPolicy(TEN), 0.0)
    assert granted(quotas, b"honest", 5, 0.0) == 5
    made_up = sum(quotas.take(b"fake %d" % number, 0.0) == 0.0 for number in range(10_000))
    assert made_up == 99 + 5, "one for each that found room, and the burst of the shared bucket"
    assert quotas.take(b"honest", 0.0) > 0.0, "nobody was given a new bucket"
    (view,) = quotas.views()
    assert (view.clients, view.overflowed) == (100, 10_000 - 99)


def test_room_is_made_by_a_bucket_that_would_be_the_same_when_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "CLIENTS_MAX", 2)
    quotas = ClientQuotas(ClientsPolicy(TEN), 0.0)
    granted(quotas, b"a", 5, 0.0)
    granted(quotas, b"b", 5, 0.35)
    assert granted(quotas, b"c", 9, 0.45) == 5, "the shared bucket: a has not refilled"
    assert granted(quotas, b"c", 9, 0.5) == 5, "a has refilled by now"
    assert granted(quotas, b"b", 9, 0.5) == 1, "b was not forgotten"
