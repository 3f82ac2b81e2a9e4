"""The use case: what becomes of a call that arrives.

In order: route, policy, hop count, deadline, idempotency key, breaker, admission; then the call is carried
by `relay_service.unary` or `relay_service.streaming` until its verdict. Everything that can be decided at
the headers is decided there, before anything is allocated for the call.
"""

import base64
from collections.abc import Callable, Mapping
from random import Random
from types import MappingProxyType

from relay_service import contract
from relay_service.arrival import (
    deadline_of,
    demand_of,
    is_unary,
    key_of,
    key_to_send,
    outgoing,
    single_attempt,
)
from relay_service.core.admission import Admission, Demand, Offer
from relay_service.core.breakers import Breakers
from relay_service.core.budget import RetryGate
from relay_service.core.call import Call
from relay_service.core.evidence import Safety
from relay_service.core.hedge import Hedging
from relay_service.core.limit import LoadSign
from relay_service.core.policy import NO_RETRY, MethodPolicy, RelayPolicy
from relay_service.core.quota import ClientQuotas
from relay_service.core.reason import Reason
from relay_service.core.throttle import Throttles
from relay_service.core.verdict import Verdict
from relay_service.courses import Course, Courses
from relay_service.destination import Destination
from relay_service.forwarding import ForwardedCall, Plan
from relay_service.idempotency.caller import KeyedCall
from relay_service.idempotency.intent import Intent
from relay_service.idempotency.keys import Keys, KeysSetup
from relay_service.idempotency.work import KeyedWork, NoWork, WorkObserver, WorkOrder
from relay_service.methods import MethodCatalog
from relay_service.ports import (
    CallHead,
    CallObserver,
    IncomingCall,
    Observer,
    Reply,
    Timers,
    UpstreamPort,
)
from relay_service.refusal import Refusal, refused
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
        self._own_services = own_services
        self._catalog = catalog
        self._observer = observer
        self._rng = rng
        self._admission: Admission[UnaryCall] = Admission(
            policy.admission, now(), rng.randbytes(SECRET_BYTES)
        )
        self._quotas = ClientQuotas(policy.clients, now()) if policy.clients else None
        self._courses = Courses(policy, upstreams, hedge_upstreams, rng, now())
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
        return self._courses.gates

    @property
    def breakers(self) -> Breakers:
        """The circuit breakers."""
        return self._courses.breakers

    @property
    def throttles(self) -> Mapping[str, Throttles]:
        """The adaptive throttle of each upstream; empty when the policy has none."""
        return self._courses.throttles

    @property
    def fallbacks(self) -> Mapping[str, int]:
        """For each upstream, the calls that came to it because their own could not take them."""
        return {name: destination.fallbacks for name, destination in self._courses.destinations.items()}

    @property
    def hedging(self) -> Mapping[str, Hedging]:
        """What was learned of each upstream's methods, and what became of the hedges."""
        return self._courses.hedging

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

    @property
    def policy(self) -> RelayPolicy:
        """What new calls are judged by."""
        return self._policy

    def adopt(
        self,
        policy: RelayPolicy,
        upstreams: Mapping[str, UpstreamPort],
        hedge_upstreams: Mapping[str, UpstreamPort] = MappingProxyType({}),
    ) -> list[Destination]:
        """Judge new calls by another policy from now on; those under way keep the one they began with.

        What has been learned of an upstream stays with it (`relay_service.courses.Courses.adopt`), and the
        admission keeps its queue. The result are the destinations that get no new calls.
        """
        now = self.now()
        left = self._courses.adopt(policy, upstreams, hedge_upstreams, now)
        if policy.clients != self._policy.clients:
            self._quotas = ClientQuotas(policy.clients, now) if policy.clients else None
        self._policy = policy
        self._admission.adopt(policy.admission, now)
        self._hand_out(now)
        return left

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
        self._answer_refused(head, reply, observer, refused(reason, message))

    def _hand_over(
        self, head: CallHead, upstream: UpstreamPort, reply: Reply, observer: CallObserver, now: float
    ) -> IncomingCall:
        """Pass a call to the relay's own services on as it is: not limited, not counted as in flight."""
        deadline = now + head.timeout_s if head.timeout_s is not None else None
        metadata = [field for field in head.metadata if field[0] not in contract.TOLD_TO_OWN_SERVICES]
        metadata.append((contract.IDENTITY, base64.b64encode(head.identity.encode())))
        plan = Plan(head.method, metadata, upstream, OWN_SERVICE_POLICY, deadline, OWN_SERVICE_DEMAND)
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
        unary = head.unary or is_unary(policy, facts, safety)
        hops = contract.hops(head.metadata)
        if hops >= self._policy.max_hops:
            raise Refusal(Reason.HOP_LIMIT)
        known = facts is not None or policy.unary is not None
        key = key_of(head, policy, streaming=known and not unary)
        if key is not None and policy.idempotency is not None:
            unary = True  # of a method nothing is known of: a key belongs to one request
        deadline = deadline_of(head, policy, now, unary=unary)
        keeping = policy.idempotency if unary and keys is not None else None
        if keeping is not None and keys is not None and (key is not None or keeping.payload_keys):
            intent = Intent(head, upstream, policy, keeping, safety, hops, key, deadline)
            return KeyedCall(self, keys, intent, reply, observer)
        sent_key = None if key is None else key_to_send(head.identity, head.method, key, hops)
        demand = demand_of(head, deadline)
        # Who called has tried before, or will again: it could go to two services in turn.
        once = hops > 0 or head.once
        # A stream whose request is not kept cannot wait for another upstream.
        movable = not once and not head.bound and (unary or policy.replay_buffer_bytes > 0)
        course = self._courses.choose(upstream, head.method, policy, demand.criticality, now, movable=movable)
        plan = course.plan(head.method, outgoing(head, sent_key, hops), policy, deadline, demand)
        machine = Call(
            single_attempt(policy.retry) if once else policy.retry,
            safety=safety,
            has_key=key is not None,
            deadline=deadline,
            attempt_limit_s=policy.attempt_timeout_s if unary else None,
            gate=course.lane.gate,
            rng=self._rng,
            streaming=not unary,
            breaker=course.lane.breaker,
            throttle=course.lane.throttle,
            hedges=self._courses.hedges(plan, upstream) if unary and not once else None,
            fallbacks=course.later_lanes,
            fell_back=course.fell_back,
        )
        if unary:
            self._admit_unary(plan, now)
        else:
            self._admit_stream(plan, now)
        call = (UnaryCall if unary else StreamCall)(self, plan, machine, reply, observer)
        self._count_in(call, course)
        if isinstance(call, StreamCall):
            call.begin(now)
        return call

    def _count_in(self, call: ForwardedCall, course: Course) -> None:
        """`call_ended` counts it out."""
        self._in_flight += 1
        course.destinations[0].fallbacks += course.fell_back
        for destination in call.destinations:
            destination.enter()

    def _admit_unary(self, plan: Plan, now: float) -> None:
        if (reason := self._admission.turn_away(plan.demand, now)) is not None:
            raise Refusal(reason, self.pushback_s(reason, now))
        self._charge_quota(plan.demand.client, now)

    def _admit_stream(self, plan: Plan, now: float) -> None:
        self._charge_quota(plan.demand.client, now)
        if not self._admission.open_stream():
            raise Refusal(Reason.STREAM_LIMIT, self._admission.stream_pushback_s(self._rng))

    def _turn_away(self, head: CallHead, reply: Reply, observer: CallObserver, refusal: Refusal) -> None:
        reason = refusal.reason
        self._answer_refused(
            head, reply, observer, refused(reason, reason.meaning, refusal.pushback_s, refusal.subject)
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
        demand = demand_of(head, intent.deadline)
        movable = hops == 0 and not intent.safety.binds_to_upstream
        try:
            upstream = self._upstream_of(intent)
            course = self._courses.choose(
                upstream, head.method, policy, demand.criticality, now, movable=movable
            )
            sent_key = key_to_send(head.identity, head.method, order.key, hops)
            # It lasts as long as somebody waits, so the plan knows no deadline.
            plan = course.plan(head.method, outgoing(head, sent_key, hops), policy, None, demand)
            self._admit_unary(plan, now)
        except Refusal as refusal:
            raise NoWork(refusal.reason, refusal.pushback_s, refusal.subject) from None
        machine = Call(
            policy.retry if hops == 0 else single_attempt(policy.retry),
            safety=intent.safety,
            has_key=True,
            deadline=intent.deadline,
            attempt_limit_s=policy.attempt_timeout_s,
            gate=course.lane.gate,
            rng=self._rng,
            breaker=course.lane.breaker,
            throttle=course.lane.throttle,
            settle_s=intent.keys.settle_s,
            hedges=self._courses.hedges(plan, upstream) if hops == 0 else None,
            fallbacks=course.later_lanes,
            fell_back=course.fell_back,
        )
        if order.outcome_open:
            machine.outcome_is_open()
        work = KeyedWork(self, plan, machine, observer, intent.keys.settle_s)
        self._count_in(work, course)
        work.on_request_data(order.framed, end=True)
        return work

    def _upstream_of(self, intent: Intent) -> str:
        """The upstream that was chosen at the headers; where another policy has taken it away since, the one
        that its method is routed to now."""
        if intent.upstream in self._courses.destinations:
            return intent.upstream
        upstream = self._policy.route(intent.head.method)
        if upstream is None:
            raise Refusal(Reason.NO_ROUTE)
        return upstream

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
        destinations = call.destinations
        if not destinations:
            self._own_calls.discard(call)
            return
        if isinstance(call, StreamCall):
            self._admission.close_stream()
        self._in_flight -= 1
        for destination in destinations:
            destination.leave()
