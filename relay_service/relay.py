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
    capped,
    deadline_of,
    demand_of,
    is_unary,
    key_of,
    key_to_send,
    outgoing,
    sent_on,
    single_attempt,
)
from relay_service.core.admission import Admission, Demand
from relay_service.core.breakers import Breakers
from relay_service.core.budget import RetryGate
from relay_service.core.bulkheads import Bulkheads
from relay_service.core.call import Call
from relay_service.core.evidence import Safety
from relay_service.core.hedge import Hedging
from relay_service.core.policy import NO_RETRY, CriticalityCaps, MethodPolicy, RelayPolicy
from relay_service.core.quota import ClientQuotas
from relay_service.core.reason import Reason
from relay_service.core.throttle import Throttles
from relay_service.core.verdict import Verdict
from relay_service.courses import Course, Courses, same_upstreams
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
from relay_service.ways import Way, Ways
from relay_service.workers import Candidate, Workers

SECRET_BYTES = 16

OWN_SERVICE_POLICY = MethodPolicy(
    default_timeout_s=None, max_timeout_s=None, attempt_timeout_s=None, retry=NO_RETRY, replay_buffer_bytes=0
)
"""Calls to the relay's own services are handed over as they are. Their UNAVAILABLE is not taken for a
refusal: a store that died amid a commit may have kept the job."""

OWN_SERVICE_DEMAND = Demand()
"""They ask nothing of the admission, and get it."""


class ListenedTo:
    """An observer with somebody before each call's: an `Observer`."""

    def __init__(self, observer: Observer, listener: Callable[[CallObserver], CallObserver]) -> None:
        self._observer = observer
        self._listener = listener

    def call_started(self, head: CallHead, now: float) -> CallObserver:
        """See `Observer.call_started`."""
        return self._listener(self._observer.call_started(head, now))

    def call_refused(self, head: CallHead, verdict: Verdict, now: float) -> None:
        """See `Observer.call_refused`."""
        self.call_started(head, now).finished(verdict, now)


class Relay:
    """Decides about every call; owns the workers, the retry gates and the breakers.

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
        self.workers = Workers(policy, rng.randbytes(SECRET_BYTES), rng, now())
        self._courses = Courses(policy, upstreams, hedge_upstreams, rng, now())
        self._ways = Ways()
        self._own_gate = RetryGate(None, None, now())
        self._in_flight = 0
        self.capped = 0
        """Calls that asked for a higher class than their caller may have, since the start."""
        self._keys = Keys(self, keys, policy.keys, policy.dead_letters) if keys is not None else None
        self._own_calls: set[StreamCall] = set()
        self._draining = False

    # What others may look at --------------------------------------------------------------------

    @property
    def admission(self) -> Admission[Candidate]:
        """The queue and the workers of all calls that have no compartment."""
        return self.workers.shared

    @property
    def bulkheads(self) -> Bulkheads[Candidate] | None:
        """The compartments, if the policy has any."""
        return self.workers.bulkheads

    @property
    def quotas(self) -> ClientQuotas | None:
        """The clients' quotas, if the policy has any."""
        return self.workers.quotas

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
        keys = self._keys
        return self._in_flight + (keys.waiting + keys.settling if keys is not None else 0)

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
        same = same_upstreams(self._policy, policy)
        self._policy = policy
        self._ways = Ways()
        self.workers.adopt(policy, same, now)
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
        own = self._own_services.get(head.method.rpartition("/")[0])
        if own is not None:
            return self._hand_over(head, own, reply, now)
        return self._take_or_refuse(head, reply, now, self._keys, self._observer)

    def carry(
        self, head: CallHead, reply: Reply, listener: Callable[[CallObserver], CallObserver]
    ) -> IncomingCall | None:
        """Take a call that a durable job makes, under the same policies as a caller's.

        The key it carries belongs to the job already, so nobody has to claim it. ``listener`` may put
        itself before the call's observer and so hears how its attempts and the call itself end.
        """
        return self._take_or_refuse(head, reply, self.now(), None, ListenedTo(self._observer, listener))

    def _take_or_refuse(
        self, head: CallHead, reply: Reply, now: float, keys: Keys | None, observer: Observer
    ) -> IncomingCall | None:
        try:
            return self._take(head, reply, now, keys, observer)
        except Refusal as refusal:
            verdict = refused(refusal.reason, refusal.reason.meaning, refusal.pushback_s, refusal.subject)
            self._answer_refused(head, reply, verdict, observer)
            return None

    def safety(self, method: str) -> Safety:
        """What a second execution of ``method`` would do: the policy's word, else the upstream's."""
        way = self._way(method)
        return Safety.NONE if way is None else way.safety

    def refuse(
        self, head: CallHead, reply: Reply, reason: Reason, message: str, pushback_s: float | None = None
    ) -> None:
        """Refuse a call that never became one, counted and traced like any other."""
        self._answer_refused(head, reply, refused(reason, message, pushback_s), self._observer)

    def _hand_over(self, head: CallHead, upstream: UpstreamPort, reply: Reply, now: float) -> IncomingCall:
        """Pass a call to the relay's own services on as it is: not limited, not counted as in flight."""
        observer = self._observer.call_started(head, now)
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
        self, head: CallHead, reply: Reply, now: float, keys: Keys | None, observer: Observer
    ) -> IncomingCall:
        """Decide at the headers, before anything is made for the call.

        ``keys`` is where the call's key has to be claimed; None when that has been done, or nobody keeps
        keys."""
        if self._draining:
            raise Refusal(Reason.DRAINING)
        way = self._way(head.method)
        if way is None:
            raise Refusal(Reason.NO_ROUTE)
        if self._policy.criticality_caps is not None:
            head = self._capped(head, self._policy.criticality_caps)
        policy = way.policy
        unary = head.unary or way.unary
        asked = contract.asked(head.metadata)
        hops = asked.hops
        if hops >= self._policy.max_hops:
            raise Refusal(Reason.HOP_LIMIT)
        key = None
        if asked.keyed or policy.key_required:
            key = key_of(head, policy, streaming=way.is_known and not unary)
        if key is not None and policy.idempotency is not None:
            unary = True  # of a method nothing is known of: a key belongs to one request
        deadline = deadline_of(head, policy, now, unary=unary)
        keeping = policy.idempotency if unary and keys is not None else None
        if keeping is not None and keys is not None and (key is not None or keeping.payload_keys):
            intent = Intent(head, way.upstream, policy, keeping, way.safety, hops, key, deadline)
            return KeyedCall(self, keys, intent, reply, observer.call_started(head, now))
        demand = Demand(asked.criticality, deadline, asked.client, head.retried)
        # Who called has tried before, or will again: it could go to two services in turn.
        once = hops > 0 or head.once
        # A stream whose request is not kept cannot wait for another upstream.
        movable = not once and not head.bound and (unary or policy.replay_buffer_bytes > 0)
        course = self._course(way, head.method, demand, now, movable=movable)
        admission = self.workers.admission_of(course.destinations[0].port.name, head.method)
        if unary:
            self.workers.admit_unary(demand, admission, now)
        else:
            self.workers.admit_stream(demand, admission, now)
        plan = course.plan(head.method, sent_on(head, asked, key), policy, deadline, demand)
        machine = Call(
            single_attempt(policy.retry) if once else policy.retry,
            safety=way.safety,
            has_key=key is not None,
            deadline=deadline,
            attempt_limit_s=policy.attempt_timeout_s if unary else None,
            gate=course.lane.gate,
            rng=self._rng,
            streaming=not unary,
            breaker=course.lane.breaker,
            throttle=course.lane.throttle,
            hedges=self._courses.hedges(plan, way.upstream) if unary and not once else None,
            fallbacks=course.later_lanes,
            fell_back=course.fell_back,
        )
        told = observer.call_started(head, now)
        call = (UnaryCall if unary else StreamCall)(self, plan, machine, reply, told)
        call.admission = admission
        self._count_in(course)
        if isinstance(call, StreamCall):
            call.begin(now)
        return call

    def _course(self, way: Way, method: str, demand: Demand, now: float, *, movable: bool) -> Course:
        course = way.only_course
        if course is None:
            return self._courses.choose(
                way.upstream, method, way.policy, demand.criticality, now, movable=movable
            )
        self._courses.check_open(course.lanes[0], now)
        return course

    def _way(self, method: str) -> Way | None:
        """What holds for every call of the method; None when no route leads to it."""
        way = self._ways.get(method)
        if way is None or way.facts is not self._catalog.facts(way.upstream, method):
            way = self._find_way(method)
            if way is not None:
                self._ways.remember(method, way)
        return way

    def _find_way(self, method: str) -> Way | None:
        upstream = self._policy.route(method)
        if upstream is None:
            return None
        policy = self._policy.method_policy(method)
        facts = self._catalog.facts(upstream, method)
        safety = policy.safety or (facts.safety if facts else None) or Safety.NONE
        only_course = self._courses.only(upstream, method, policy)
        return Way(upstream, policy, facts, safety, is_unary(policy, facts, safety), only_course)

    def _capped(self, head: CallHead, caps: CriticalityCaps) -> CallHead:
        allowed = capped(head, caps)
        self.capped += allowed is not head
        return allowed

    def _count_in(self, course: Course) -> None:
        """`call_ended` counts it out."""
        self._in_flight += 1
        for destination in course.destinations:
            destination.enter()

    def _answer_refused(self, head: CallHead, reply: Reply, verdict: Verdict, observer: Observer) -> None:
        trailers = contract.trailers_of_refusal(verdict, head.method)
        reply.send_trailers(verdict.code, verdict.message, trailers)
        observer.call_refused(head, verdict, self.now())

    # What calls ask of their relay ---------------------------------------------------------------

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
            admission = self.workers.admission_of(plan.upstream.name, plan.method)
            self.workers.admit_unary(demand, admission, now)
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
        work.admission = admission
        self._count_in(course)
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

    def call_ended(self, call: ForwardedCall) -> None:
        """Count it out."""
        destinations = call.destinations
        if not destinations:
            self._own_calls.discard(call)
            return
        if isinstance(call, StreamCall):
            call.admission.close_stream()
        self._in_flight -= 1
        for destination in destinations:
            destination.leave()
