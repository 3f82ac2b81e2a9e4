"""The use case: what becomes of a call that arrives.

In order: route, policy, hop count, deadline, idempotency key, breaker, admission; then the call is carried
by `relay_service.unary` or `relay_service.streaming` until its verdict. Everything that can be decided at
the headers is decided there, before anything is allocated for the call.
"""

import base64
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from types import MappingProxyType

from relay_service import contract
from relay_service.core.admission import Admission, Demand, Offer
from relay_service.core.breaker import CircuitBreaker
from relay_service.core.breakers import Breakers
from relay_service.core.budget import RetryGate
from relay_service.core.call import Call
from relay_service.core.evidence import Safety
from relay_service.core.hedge import Hedging
from relay_service.core.hedged import Hedges
from relay_service.core.limit import LoadSign
from relay_service.core.policy import NO_RETRY, MethodPolicy, RelayPolicy, RetryPolicy
from relay_service.core.quota import ClientQuotas
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, Origin, Verdict
from relay_service.forwarding import ForwardedCall, Plan
from relay_service.idempotency.caller import KeyedCall
from relay_service.idempotency.intent import Intent
from relay_service.idempotency.keys import Keys, KeysSetup
from relay_service.idempotency.work import KeyedWork, NoWork, WorkObserver, WorkOrder
from relay_service.methods import MethodCatalog, MethodFacts
from relay_service.ports import (
    CallHead,
    CallObserver,
    Headers,
    IncomingCall,
    Observer,
    Reply,
    Timers,
    UpstreamPort,
)
from relay_service.streaming import StreamCall
from relay_service.unary import UnaryCall

HELD_REQUEST_BYTES_MAX = 256 * 1024 * 1024
"""Request bytes of all unary calls, held for their attempts; beyond it calls find the queue full."""

SECRET_BYTES = 16

OWN_SERVICE_POLICY = MethodPolicy(
    default_timeout_s=None, max_timeout_s=None, attempt_timeout_s=None, retry=NO_RETRY, replay_buffer_bytes=0
)
"""Calls to the relay's own services are handed over as they are."""

OWN_SERVICE_DEMAND = Demand()
"""They ask nothing of the admission, and get it."""


class Refusal(Exception):  # noqa: N818 (a refusal is an answer, not a fault)
    """A call that ends at its headers."""

    def __init__(self, reason: Reason, pushback_s: float | None = None, subject: str = "relay") -> None:
        self.reason = reason
        self.pushback_s = pushback_s
        self.subject = subject


class Relay:
    """Decides about every call; owns admission, the retry gates and the breakers.

    ``own_services`` names the services answered by the control plane and the upstream that leads there.
    ``keys`` brings the store that idempotency keys are kept in; without it they are only passed on.
    ``hedge_upstreams`` are the same upstreams by name, over connections of their own; a call to one that
    is not there is never hedged. ``now`` and ``rng`` come from the composition root, so that nothing below
    reads a clock or draws on its own.
    """

    def __init__(
        self,
        policy: RelayPolicy,
        upstreams: Mapping[str, UpstreamPort],
        catalog: MethodCatalog,
        observer: Observer,
        timers: Timers,
        *,
        now: Callable[[], float],
        rng: Random,
        own_services: Mapping[str, UpstreamPort],
        hedge_upstreams: Mapping[str, UpstreamPort] = MappingProxyType({}),
        keys: KeysSetup | None = None,
    ) -> None:
        self.timers = timers
        self.now = now
        self._policy = policy
        self._upstreams = upstreams
        self._hedge_upstreams = hedge_upstreams
        self._own_services = own_services
        self._catalog = catalog
        self._observer = observer
        self._rng = rng
        self._admission: Admission[UnaryCall] = Admission(
            policy.admission, now(), rng.randbytes(SECRET_BYTES)
        )
        self._quotas = ClientQuotas(policy.clients, now()) if policy.clients else None
        self._gates = {name: RetryGate(policy.budget, policy.throttling, now()) for name in policy.upstreams}
        self._breakers = Breakers(policy, now())
        self._hedging = {name: Hedging() for name in policy.upstreams}
        self._own_gate = RetryGate(None, None, now())
        self._in_flight = 0
        self._held_bytes = 0
        self._keys = Keys(self, keys, policy.keys, policy.dead_letters) if keys is not None else None
        self._own_calls: set[StreamCall] = set()
        self._draining = False

    # What others may look at --------------------------------------------------------------------

    @property
    def admission(self) -> Admission[UnaryCall]:
        """The queue and the workers."""
        return self._admission

    @property
    def quotas(self) -> ClientQuotas | None:
        """The clients' quotas, if the policy has any."""
        return self._quotas

    @property
    def gates(self) -> Mapping[str, RetryGate]:
        """The retry gate of each upstream."""
        return self._gates

    @property
    def breakers(self) -> Breakers:
        """The circuit breakers."""
        return self._breakers

    @property
    def hedging(self) -> Mapping[str, Hedging]:
        """What was learned of each upstream's methods, and what became of the hedges."""
        return self._hedging

    @property
    def keys(self) -> Keys | None:
        """The keyed calls; None without a store."""
        return self._keys

    @property
    def in_flight(self) -> int:
        """Calls that have no verdict yet, and keyed work that has outlived its callers."""
        return self._in_flight + (self._keys.waiting if self._keys is not None else 0)

    @property
    def draining(self) -> bool:
        """Whether new calls are refused because the relay is going away."""
        return self._draining

    def drain(self) -> None:
        """Refuse new calls from now on; those under way go on, but for calls to our own services: a health
        watch never ends by itself."""
        self._draining = True
        for call in list(self._own_calls):
            call.turn_away()

    # A call arrives -----------------------------------------------------------------------------

    def on_call(self, head: CallHead, reply: Reply) -> IncomingCall | None:
        """Take a call at its headers (a `relay_service.ports.CallHandler`)."""
        now = self.now()
        observer = self._observer.call_started(head, now)
        own = self._own_services.get(head.method.rpartition("/")[0])
        try:
            if own is not None:
                return self._hand_over(head, own, reply, observer, now)
            return self._take(head, reply, observer, now, self._keys)
        except Refusal as refusal:
            self._turn_away(head, reply, observer, refusal)
            return None

    def carry(
        self, head: CallHead, reply: Reply, listener: Callable[[CallObserver], CallObserver]
    ) -> IncomingCall | None:
        """Take a call that a durable job makes, under the same policies as a caller's.

        The key it carries belongs to the job already, so nobody has to claim it. ``listener`` may put
        itself before the call's observer and so hears how its attempts and the call itself end.
        """
        now = self.now()
        observer = listener(self._observer.call_started(head, now))
        try:
            return self._take(head, reply, observer, now, None)
        except Refusal as refusal:
            self._turn_away(head, reply, observer, refusal)
            return None

    def safety(self, method: str) -> Safety:
        """What a second execution of ``method`` would do: the policy's word, else the upstream's."""
        upstream = self._policy.route(method)
        facts = self._catalog.facts(upstream, method) if upstream else None
        return self._policy.method_policy(method).safety or (facts and facts.safety) or Safety.NONE

    def refuse(self, head: CallHead, reply: Reply, reason: Reason, message: str) -> None:
        """Refuse a call that never became one, counted and traced like any other."""
        observer = self._observer.call_started(head, self.now())
        self._answer_refused(head, reply, observer, _refused(reason, message))

    def _hand_over(
        self, head: CallHead, upstream: UpstreamPort, reply: Reply, observer: CallObserver, now: float
    ) -> IncomingCall:
        """Pass a call to the relay's own services on as it is: not limited, not counted as in flight."""
        deadline = now + head.timeout_s if head.timeout_s is not None else None
        metadata = [field for field in head.metadata if field[0] not in contract.TOLD_TO_OWN_SERVICES]
        metadata.append((contract.IDENTITY, base64.b64encode(head.identity.encode())))
        plan = Plan(
            head.method, metadata, upstream, OWN_SERVICE_POLICY, deadline, OWN_SERVICE_DEMAND, limited=False
        )
        machine = Call(
            NO_RETRY,
            safety=Safety.NONE,
            has_key=False,
            deadline=deadline,
            attempt_limit_s=None,
            gate=self._own_gate,
            rng=self._rng,
            streaming=True,
        )
        call = StreamCall(self, plan, machine, reply, observer)
        self._own_calls.add(call)
        call.begin(now)
        return call

    def _take(
        self, head: CallHead, reply: Reply, observer: CallObserver, now: float, keys: Keys | None
    ) -> IncomingCall:
        """``keys`` is where the call's key has to be claimed; None when that has been done, or nobody keeps
        keys."""
        if self._draining:
            raise Refusal(Reason.DRAINING)
        upstream = self._policy.route(head.method)
        if upstream is None:
            raise Refusal(Reason.NO_ROUTE)
        policy = self._policy.method_policy(head.method)
        facts = self._catalog.facts(upstream, head.method)
        safety = policy.safety or (facts.safety if facts else None) or Safety.NONE
        unary = head.unary or _is_unary(policy, facts, safety)
        hops = contract.hops(head.metadata)
        if hops >= self._policy.max_hops:
            raise Refusal(Reason.HOP_LIMIT)
        known = facts is not None or policy.unary is not None
        key = _key(head, policy, streaming=known and not unary)
        if key is not None and policy.idempotency is not None:
            unary = True  # of a method nothing is known of: a key belongs to one request
        deadline = _deadline(head, policy, now, unary=unary)
        keeping = policy.idempotency if unary and keys is not None else None
        if keeping is not None and keys is not None and (key is not None or keeping.payload_keys):
            intent = Intent(head, upstream, policy, keeping, safety, hops, key, deadline)
            return KeyedCall(self, keys, intent, reply, observer)
        sent_key = None if key is None else _sent_key(head.identity, head.method, key, hops)
        breaker = self._breakers.guarding(upstream, head.method)
        self._check_breaker(breaker, now)
        plan = self._plan(
            head, upstream, policy, deadline, outgoing=_outgoing(head, sent_key, hops), deadline=deadline
        )
        machine = Call(
            _single_attempt(policy.retry) if hops or head.once else policy.retry,
            safety=safety,
            has_key=key is not None,
            deadline=deadline,
            attempt_limit_s=policy.attempt_timeout_s if unary else None,
            gate=self._gates[upstream],
            rng=self._rng,
            streaming=not unary,
            breaker=breaker,
            hedges=self._hedges(plan, upstream) if unary and not (hops or head.once) else None,
        )
        if unary:
            return self._unary(plan, machine, reply, observer, now)
        return self._stream(plan, machine, reply, observer, now)

    def _hedges(self, plan: Plan, upstream: str) -> Hedges | None:
        """What the call needs to be hedged, when its policy wants that.

        A call that came through another relay is left to that one, as with retries.
        """
        policy = plan.policy.hedging
        if policy is None or plan.hedge_upstream is None:
            return None
        return Hedges(self._hedging[upstream], plan.method, policy)

    def _plan(
        self,
        head: CallHead,
        upstream: str,
        policy: MethodPolicy,
        wanted_by: float | None,
        *,
        outgoing: Headers,
        deadline: float | None,
    ) -> Plan:
        """``wanted_by`` is what the admission reckons with; ``deadline`` is None for work that lasts as long
        as somebody waits."""
        return Plan(
            head.method,
            outgoing,
            self._upstreams[upstream],
            policy,
            deadline,
            Demand(contract.criticality(head.metadata), wanted_by, contract.client_id(head.metadata)),
            hedge_upstream=self._hedge_upstreams.get(upstream),
        )

    def _check_breaker(self, breaker: CircuitBreaker | None, now: float) -> None:
        """Refuse at the headers what the breaker would refuse later, before it costs anything."""
        if breaker is not None and breaker.refuses(now):
            raise Refusal(Reason.BREAKER_OPEN, breaker.pushback_s(now, self._rng))

    def _unary(
        self, plan: Plan, machine: Call, reply: Reply, observer: CallObserver, now: float
    ) -> UnaryCall:
        if (reason := self._admission.turn_away(plan.demand, now)) is not None:
            raise Refusal(reason, self.pushback_s(reason, now))
        self._charge_quota(plan.demand.client, now)
        self._in_flight += 1
        return UnaryCall(self, plan, machine, reply, observer)

    def _stream(
        self, plan: Plan, machine: Call, reply: Reply, observer: CallObserver, now: float
    ) -> StreamCall:
        self._charge_quota(plan.demand.client, now)
        if not self._admission.open_stream():
            raise Refusal(Reason.STREAM_LIMIT, self._admission.stream_pushback_s(self._rng))
        self._in_flight += 1
        call = StreamCall(self, plan, machine, reply, observer)
        call.begin(now)
        return call

    def _turn_away(self, head: CallHead, reply: Reply, observer: CallObserver, refusal: Refusal) -> None:
        reason = refusal.reason
        self._answer_refused(
            head, reply, observer, _refused(reason, reason.meaning, refusal.pushback_s, refusal.subject)
        )

    def _charge_quota(self, client: bytes, now: float) -> None:
        """Last of all, so that no client pays for a call that is refused for another reason."""
        if self._quotas is not None and (wait_s := self._quotas.take(client, now)) > 0.0:
            # Not before there is a token, and not all at once when there is one.
            pushback_s = wait_s * self._rng.uniform(1.0, 1.5)
            raise Refusal(Reason.CLIENT_QUOTA, pushback_s, f"client:{client.decode('ascii', 'replace')}")

    def _answer_refused(self, head: CallHead, reply: Reply, observer: CallObserver, verdict: Verdict) -> None:
        trailers = contract.trailers_of(verdict, head.method, ())
        reply.send_trailers(verdict.code, verdict.message, trailers)
        observer.finished(verdict, self.now())

    # What keyed calls ask of their relay (`relay_service.idempotency`) ------------------------------

    def start_work(self, order: WorkOrder, observer: WorkObserver) -> KeyedWork:
        """Have a keyed request carried: it seeks a worker at once. Raises `NoWork`."""
        intent = order.intent
        now = self.now()
        head, policy, hops = intent.head, intent.policy, intent.hops
        breaker = self._breakers.guarding(intent.upstream, head.method)
        sent_key = _sent_key(head.identity, head.method, order.key, hops)
        outgoing = _outgoing(head, sent_key, hops)
        plan = self._plan(head, intent.upstream, policy, intent.deadline, outgoing=outgoing, deadline=None)
        try:
            self._check_breaker(breaker, now)
            self._charge_quota(plan.demand.client, now)
        except Refusal as refusal:
            raise NoWork(refusal.reason, refusal.pushback_s) from None
        machine = Call(
            policy.retry if hops == 0 else _single_attempt(policy.retry),
            safety=intent.safety,
            has_key=True,
            deadline=intent.deadline,
            attempt_limit_s=policy.attempt_timeout_s,
            gate=self._gates[intent.upstream],
            rng=self._rng,
            breaker=breaker,
            settle_s=intent.keys.settle_s,
            hedges=self._hedges(plan, intent.upstream) if hops == 0 else None,
        )
        if order.outcome_open:
            machine.outcome_is_open()
        self._in_flight += 1
        work = KeyedWork(self, plan, machine, observer, intent.keys.settle_s)
        work.on_request_data(order.framed, end=True)
        return work

    # What calls ask of their relay (`relay_service.unary.UnaryHost`) ----------------------------

    def take_worker(self, call: UnaryCall) -> Offer[UnaryCall]:
        """A worker, a place in the queue (perhaps that of another call), or neither."""
        now = self.now()
        offer = self._admission.offer(call, call.demand, now)
        if offer.displaced is not None:
            offer.displaced.shed(offer.reason or Reason.QUEUE_FULL, now)
        return offer

    def take_spare_worker(self) -> bool:
        """A worker for what is not worth waiting for."""
        return self._admission.take_spare()

    def give_worker_back(self, outcome: LoadSign, held_s: float, now: float) -> None:
        """Count the attempt's end, and hand the worker on."""
        self._admission.release(outcome, held_s, now)
        self._hand_out(now)

    def worker_unused(self, now: float) -> None:
        """Hand the worker on."""
        self._admission.hand_back()
        self._hand_out(now)

    def _hand_out(self, now: float) -> None:
        """Give free workers to the next calls in the queue that can still use them."""
        while (grant := self._admission.grant(now)) is not None:
            if grant.refusal is not None:
                grant.ticket.shed(grant.refusal, now)
            elif not grant.ticket.worker_granted(now):
                self._admission.hand_back()

    def hold_request(self, size_bytes: int) -> bool:
        """Count request bytes that are held, up to `HELD_REQUEST_BYTES_MAX`."""
        if self._held_bytes + size_bytes > HELD_REQUEST_BYTES_MAX:
            return False
        self._held_bytes += size_bytes
        return True

    def let_go_of_request(self, size_bytes: int) -> None:
        """They are held no longer."""
        self._held_bytes -= size_bytes

    def leave_queue(self, call: UnaryCall) -> None:
        """The call waits no longer."""
        self._admission.withdraw(call)

    def pushback_s(self, reason: Reason, now: float) -> float:
        """When a caller refused for this reason should return; a hopeless one not at all."""
        if reason is Reason.DEADLINE_INFEASIBLE:
            return -1.0
        return self._admission.pushback_s(now, self._rng)

    def call_ended(self, call: ForwardedCall) -> None:
        """Count it out."""
        if not call.limited:
            self._own_calls.discard(call)
            return
        if isinstance(call, StreamCall):
            self._admission.close_stream()
        self._in_flight -= 1


def _refused(
    reason: Reason, message: str, pushback_s: float | None = None, subject: str = "relay"
) -> Verdict:
    code = reason.code or Code.UNKNOWN
    return Verdict(code, message, Origin.RELAY, Fate.REFUSED, reason, pushback_s=pushback_s, subject=subject)


def _is_unary(policy: MethodPolicy, facts: MethodFacts | None, safety: Safety) -> bool:
    """What the policy says, else the descriptor; a key belongs to one request, so KEYED implies unary."""
    if policy.unary is not None:
        return policy.unary
    return facts.unary if facts else safety is Safety.KEYED


def _single_attempt(retry: RetryPolicy) -> RetryPolicy:
    """The same judgement of codes without a second attempt: whoever calls retries already."""
    return replace(retry, max_attempts=1)


def _deadline(head: CallHead, policy: MethodPolicy, now: float, *, unary: bool) -> float | None:
    """The caller's deadline, defaulted and capped; that of a stream is the caller's own affair."""
    timeout_s = head.timeout_s
    if unary:
        if timeout_s is None:
            timeout_s = policy.default_timeout_s
        if policy.max_timeout_s is not None:
            timeout_s = policy.max_timeout_s if timeout_s is None else min(timeout_s, policy.max_timeout_s)
    if timeout_s is None:
        return None
    if timeout_s <= 0.0:
        raise Refusal(Reason.DEADLINE_PASSED)
    return now + timeout_s


def _key(head: CallHead, policy: MethodPolicy, *, streaming: bool) -> bytes | None:
    """The caller's key; None without one."""
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


def _sent_key(tenant: str, method: str, key: bytes, hops: int) -> bytes:
    """The key to send upstream, derived from the caller's.

    A relay before this one has derived it already: the upstream must see one key whichever way a call came.
    """
    return key if hops and contract.is_derived(key) else contract.derived_key(tenant, method, key)


def _outgoing(head: CallHead, key: bytes | None, hops: int) -> Headers:
    """The caller's metadata with our hop count and, in place of its key, the derived one.

    The trace context is left out too: each attempt is given its own by the observer.
    """
    outgoing = [field for field in head.metadata if field[0] not in contract.REPLACED]
    if key is not None:
        outgoing.append((contract.IDEMPOTENCY_KEY, key))
    outgoing.append((contract.HOPS, b"%d" % (hops + 1)))
    return outgoing
