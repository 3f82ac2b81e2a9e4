"""Several callers of one key: what concerns one of them is not the others' answer, and the books say so."""

import asyncio
from dataclasses import replace

from test_keyed_calls import Bench, true, virtual
from world import Reply

from relay_service.core.policy import AdmissionPolicy, ClientQuota, ClientsPolicy, RelayPolicy
from relay_service.core.status import Code
from relay_service.core.verdict import Fate


def decided(reply: Reply) -> bytes:
    return reply.trailers[b"relay-decision"]


def with_policy(bench: Bench, **changes: object) -> Bench:
    policy: RelayPolicy = replace(bench.relay.policy, **changes)  # type: ignore[arg-type]
    bench.relay.adopt(policy, {"upstream": bench.upstream})
    return bench


@virtual
async def test_a_client_without_quota_leaves_the_others_of_its_key_their_own() -> None:
    quotas = ClientsPolicy(named={"poor": ClientQuota(0.001, 1), "rich": ClientQuota(100, 100)})
    bench = with_policy(Bench(), clients=quotas)
    _, spent = bench.call(b"first", metadata=((b"relay-client-id", b"poor"),))
    await bench.dispatched()
    bench.upstream.last.succeed()
    await bench.answered(spent)
    _, poor = bench.call(metadata=((b"relay-client-id", b"poor"),))
    _, rich = bench.call(metadata=((b"relay-client-id", b"rich"),))
    await bench.dispatched(2)
    bench.upstream.last.succeed()
    await bench.answered(rich)
    assert (poor.code, decided(poor)) == (Code.RESOURCE_EXHAUSTED, b"CLIENT_QUOTA")
    assert (rich.code, rich.trailers[b"idempotency-status"]) == (Code.OK, b"executed")
    assert bench.nothing_left


@virtual
async def test_a_whole_flight_of_clients_without_quota_is_refused_one_by_one() -> None:
    quotas = ClientsPolicy(named={"poor": ClientQuota(0.001, 1)})
    bench = with_policy(Bench(), clients=quotas)
    _, spent = bench.call(b"first", metadata=((b"relay-client-id", b"poor"),))
    await bench.dispatched()
    bench.upstream.last.succeed()
    await bench.answered(spent)
    replies = [bench.call(metadata=((b"relay-client-id", b"poor"),))[1] for _ in range(5)]
    for reply in replies:
        await bench.answered(reply)
    assert {decided(reply) for reply in replies} == {b"CLIENT_QUOTA"}
    assert bench.observer.by_fate == {Fate.OK: 1, Fate.REFUSED: 5}
    assert bench.nothing_left


@virtual
async def test_a_caller_in_a_hurry_does_not_make_the_patient_hopeless() -> None:
    """Enough is known of the service to say at the door that the first cannot be answered in time."""
    admission = AdmissionPolicy(queue_capacity=10, workers=1, feasibility_quantile=0.5)
    bench = with_policy(Bench(workers=1), admission=admission)
    for number in range(60):
        _, reply = bench.call(b"warm%d" % number)
        await bench.dispatched(number + 1)
        await asyncio.sleep(1.0)
        bench.upstream.last.succeed()
        await bench.answered(reply)
    bench.call(b"busy")
    await bench.dispatched(61)
    _, hasty = bench.call(timeout_s=0.5)
    _, patient = bench.call(timeout_s=60.0)
    await bench.answered(hasty)
    assert decided(hasty) == b"DEADLINE_INFEASIBLE"
    await true(lambda: bench.relay.admission.queued == 1)
    bench.upstream.last.succeed()
    await bench.dispatched(62)
    bench.upstream.last.succeed()
    await bench.answered(patient)
    assert patient.code is Code.OK
    assert bench.nothing_left


@virtual
async def test_a_call_whose_answer_is_being_stored_is_still_in_flight() -> None:
    bench = Bench()
    stored = asyncio.Event()
    finish = bench.store.finish

    async def finish_late(*args: object, **kwargs: object) -> object:
        await stored.wait()
        return await finish(*args, **kwargs)

    bench.store.finish = finish_late  # type: ignore[method-assign,assignment]  # a store that takes its time
    _, reply = bench.call()
    await bench.dispatched()
    assert bench.relay.in_flight == 1
    bench.upstream.last.succeed()
    await asyncio.sleep(0.5)
    assert reply.code is None
    assert bench.relay.in_flight == 1
    stored.set()
    await bench.answered(reply)
    assert bench.nothing_left


@virtual
async def test_a_call_tried_after_its_caller_left_was_not_refused() -> None:
    """The first caller's time is up while the claim is written; the attempt is then made for the second."""
    bench = Bench()
    claimed = asyncio.Event()
    claim = bench.store.claim

    async def claim_late(order: object) -> object:
        await claimed.wait()
        return await claim(order)

    bench.store.claim = claim_late  # type: ignore[method-assign]  # a store that takes its time
    _, hasty = bench.call(timeout_s=0.5)
    _, patient = bench.call(timeout_s=30.0)
    await bench.answered(hasty)
    assert hasty.code is Code.DEADLINE_EXCEEDED
    claimed.set()
    await bench.dispatched()
    bench.upstream.last.succeed()
    await bench.answered(patient)
    fates = [(verdict.fate, verdict.attempts) for verdict in bench.observer.verdicts.values()]
    assert sorted(fates, key=str) == [(Fate.ERROR, 1), (Fate.OK, 0)]
    assert bench.nothing_left
