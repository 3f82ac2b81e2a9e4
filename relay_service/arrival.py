"""What a call's headers say, read by the policy of its method: deadline, key, shape, and what is sent on."""

from dataclasses import replace

from relay_service import contract
from relay_service.core.admission import Demand
from relay_service.core.evidence import Safety
from relay_service.core.policy import CriticalityCaps, MethodPolicy, RetryPolicy
from relay_service.core.reason import Reason
from relay_service.methods import MethodFacts
from relay_service.ports import CallHead, Headers
from relay_service.refusal import Refusal


def demand_of(head: CallHead, deadline: float | None) -> Demand:
    """What the call asks of the admission."""
    return Demand(
        contract.criticality(head.metadata), deadline, contract.client_id(head.metadata), head.retried
    )


def capped(head: CallHead, caps: CriticalityCaps) -> CallHead:
    """The same call in the highest class its caller may have; the same object when it asks for no more.

    The class is put right in the metadata, so that whoever comes after this relay is told no other.
    """
    claimed, highest = contract.criticality(head.metadata), caps.of(head.identity)
    metadata = [field for field in head.metadata if field[0] != contract.CRITICALITY]
    if claimed <= highest and len(head.metadata) - len(metadata) <= 1:
        return head
    # One claim only: of several, somebody behind this relay might read another than it did.
    metadata.append((contract.CRITICALITY, min(claimed, highest).name.encode()))
    return replace(head, metadata=metadata)


def is_unary(policy: MethodPolicy, facts: MethodFacts | None, safety: Safety) -> bool:
    """What the policy says, else the descriptor; a key belongs to one request, so KEYED implies unary."""
    if policy.unary is not None:
        return policy.unary
    return facts.unary if facts else safety is Safety.KEYED


def single_attempt(retry: RetryPolicy) -> RetryPolicy:
    """The same judgement of codes without a second attempt: whoever calls retries already."""
    return replace(retry, max_attempts=1)


def timeout_of(head: CallHead, policy: MethodPolicy) -> float | None:
    """The time that the caller of a unary call has given it, defaulted and capped; None for no end."""
    timeout_s = policy.default_timeout_s if head.timeout_s is None else head.timeout_s
    if policy.max_timeout_s is None:
        return timeout_s
    return policy.max_timeout_s if timeout_s is None else min(timeout_s, policy.max_timeout_s)


def deadline_of(head: CallHead, policy: MethodPolicy, now: float, *, unary: bool) -> float | None:
    """The caller's deadline, defaulted and capped; that of a stream is the caller's own affair.

    Raises `Refusal` when it has passed.
    """
    timeout_s = timeout_of(head, policy) if unary else head.timeout_s
    if timeout_s is None:
        return None
    if timeout_s <= 0.0:
        raise Refusal(Reason.DEADLINE_PASSED)
    return now + timeout_s


def key_of(head: CallHead, policy: MethodPolicy, *, streaming: bool) -> bytes | None:
    """The caller's key; None without one. Raises `Refusal` for one malformed, missing or out of place."""
    try:
        key = contract.idempotency_key(head.metadata)
    except contract.MalformedKeyError:
        raise Refusal(Reason.IDEMPOTENCY_KEY_INVALID) from None
    if key is None:
        if policy.key_required:
            raise Refusal(Reason.IDEMPOTENCY_KEY_MISSING)
        return None
    if streaming:
        raise Refusal(Reason.IDEMPOTENCY_KEY_INVALID)
    return key


def key_to_send(tenant: str, method: str, key: bytes, hops: int) -> bytes:
    """The key to send upstream, derived from the caller's.

    A relay before this one has derived it already: the upstream must see one key whichever way a call came.
    """
    return key if hops and contract.is_derived(key) else contract.derived_key(tenant, method, key)


_FIRST_HOP = (contract.HOPS, b"1")


def sent_on(head: CallHead, asked: contract.Asked, key: bytes | None) -> Headers:
    """What every attempt carries of the caller's metadata, and of ours; ``key`` is the caller's."""
    if asked.is_nothing:
        return [*head.metadata, _FIRST_HOP]
    sent_key = None if key is None else key_to_send(head.identity, head.method, key, asked.hops)
    return outgoing(head, sent_key, asked.hops)


def outgoing(head: CallHead, key: bytes | None, hops: int) -> Headers:
    """The caller's metadata with our hop count and, in place of its key, the derived one.

    The trace context is left out too: each attempt is given its own by the observer.
    """
    metadata = [field for field in head.metadata if field[0] not in contract.REPLACED]
    if key is not None:
        metadata.append((contract.IDEMPOTENCY_KEY, key))
    metadata.append((contract.HOPS, b"%d" % (hops + 1)))
    return metadata
