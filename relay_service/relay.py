"""The use case: what becomes of a call that arrives.

In order: route, policy, hop count, deadline, idempotency key, breaker, admission; then the call is carried
by `relay_service.unary` or `relay_service.streaming` until its verdict. Everything that can be decided at
the headers is decided there, before anything is allocated for the call.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from types import MappingProxyType

from relay_service import contract
from relay_service.core.admission import Admission, Demand, Offer
from relay_service.core.breakers import Breakers
from relay_service.core.budget import RetryGate
from relay_service.core.call import Call
from relay_service.core.criticality import Criticality
from relay_service.core.evidence import Safety
from relay_service.core.hedge import Hedging
from relay_service.core.hedged import Hedges
from relay_service.core.lane import Lane
from relay_service.core.limit import LoadSign
from relay_service.core.policy import NO_RETRY, MethodPolicy, RelayPolicy, RetryPolicy
from relay_service.core.quota import ClientQuotas
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.throttle import AdaptiveThrottle, Throttles
from relay_service.core.verdict import Fate, Origin, Verdict
from relay_service.destination import Destination
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
from relay_service.ways import Course, Way, Ways

HELD_REQUEST_BYTES_MAX = 256 * 1024 * 1024
"""Request bytes of all unary calls, held for their attempts; beyond it calls find the queue full."""

SECRET_BYTES = 16

_FIRST_HOP = (contract.HOPS, b"1")

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
        self._destinations = {
            name: Destination(upstreams[name], hedge_upstreams.get(name)) for name in policy.upstreams
        }
        self._gates = {name: RetryGate(policy.budget, policy.throttling, now()) for name in policy.upstreams}
        self._breakers = Breakers(policy, now())
        self._throttles = _throttles(policy, {}, now())
        self._hedging = {name: Hedging() for name in policy.upstreams}
        self._ways = Ways()
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
    def throttles(self) -> Mapping[str, Throttles]:
        """The adaptive throttle of each upstream; empty when the policy has none."""
        return self._throttles

    @property
    def fallbacks(self) -> Mapping[str, int]:
        """For each upstream, the calls that came to it because their own could not take them."""
        return {name: destination.fallbacks for name, destination in self._destinations.items()}

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

        What has been learned of an upstream stays with it as long as its name, its target and the part
        of the policy that it was learned under stay; the admission keeps its queue. The result are the
        destinations that get no new calls.
        """
        now = self.now()
        old = self._policy
        same = [
            name
            for name, upstream in policy.upstreams.items()
            if name in old.upstreams and old.upstreams[name].target == upstream.target
        ]
        self._gates = {name: self._gate(policy, name, name in same, now) for name in policy.upstreams}
        self._breakers = Breakers(policy, now, self._breakers.of(same))
        learned = {name: self._hedging[name] for name in same}
        self._hedging = {name: learned.get(name) or Hedging() for name in policy.upstreams}
        self._throttles = _throttles(policy, {name: self._throttles.get(name) for name in same}, now)
        left = self._destinations
        kept = {name: one for name, one in left.items() if upstreams.get(name) is one.port}
        self._destinations = {
            name: kept.get(name) or Destination(upstreams[name], hedge_upstreams.get(name))
            for name in policy.upstreams
        }
        self._policy = policy
        self._ways = Ways()
        if policy.clients != old.clients:
            self._quotas = ClientQuotas(policy.clients, now) if policy.clients else None
        self._admission.adopt(policy.admission, now)
        self._hand_out(now)
        return [one for name, one in left.items() if name not in kept]

    def _gate(self, policy: RelayPolicy, name: str, same_upstream: bool, now: float) -> RetryGate:
        policies = (policy.budget, policy.throttling)
        if same_upstream and self._gates[name].policies == policies:
            return self._gates[name]
        return RetryGate(*policies, now)

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
            verdict = _refused(refusal.reason, refusal.reason.meaning, refusal.pushback_s, refusal.subject)
            self._answer_refused(head, reply, verdict, observer)
            return None

    def safety(self, method: str) -> Safety:
        """What a second execution of ``method`` would do: the policy's word, else the upstream's."""
        way = self._way(method)
        return Safety.NONE if way is None else way.safety

    def refuse(self, head: CallHead, reply: Reply, reason: Reason, message: str) -> None:
        """Refuse a call that never became one, counted and traced like any other."""
        self._answer_refused(head, reply, _refused(reason, message), self._observer)

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
        policy = way.policy
        unary = head.unary or way.unary
        asked = contract.asked(head.metadata)
        hops = asked.hops
        if hops >= self._policy.max_hops:
            raise Refusal(Reason.HOP_LIMIT)
        key = None
        if asked.keyed or policy.key_required:
            key = _key(head, policy, streaming=way.is_known and not unary)
        if key is not None and policy.idempotency is not None:
            unary = True  # of a method nothing is known of: a key belongs to one request
        deadline = _deadline(head, policy, now, unary=unary)
        keeping = policy.idempotency if unary and keys is not None else None
        if keeping is not None and keys is not None and (key is not None or keeping.payload_keys):
            intent = Intent(head, way.upstream, policy, keeping, way.safety, hops, key, deadline)
            return KeyedCall(self, keys, intent, reply, observer.call_started(head, now))
        demand = Demand(asked.criticality, deadline, asked.client)
        # Who called has tried before, or will again: it could go to two services in turn.
        once = hops > 0 or head.once
        # A stream whose request is not kept cannot wait for another upstream.
        movable = not once and not head.bound and (unary or policy.replay_buffer_bytes > 0)
        course = self._course_of(way, head.method, demand, now, movable=movable)
        if unary:
            self._admit_unary(demand, now)
        else:
            self._admit_stream(demand, now)
        metadata = [*head.metadata, _FIRST_HOP] if asked.is_nothing else _outgoing(head, key, hops)
        plan = course.plan(head.method, metadata, policy, deadline, demand)
        machine = Call(
            _single_attempt(policy.retry) if once else policy.retry,
            safety=way.safety,
            has_key=key is not None,
            deadline=deadline,
            attempt_limit_s=policy.attempt_timeout_s if unary else None,
            gate=course.lane.gate,
            rng=self._rng,
            streaming=not unary,
            breaker=course.lane.breaker,
            throttle=course.lane.throttle,
            hedges=self._hedges(plan, way.upstream) if unary and not once else None,
            fallbacks=course.later_lanes,
            fell_back=course.fell_back,
        )
        told = observer.call_started(head, now)
        if unary:
            unary_call = UnaryCall(self, plan, machine, reply, told)
            self._count_in(course)
            return unary_call
        stream = StreamCall(self, plan, machine, reply, told)
        self._count_in(course)
        stream.begin(now)
        return stream

    def _course_of(self, way: Way, method: str, demand: Demand, now: float, *, movable: bool) -> Course:
        course = way.only_course
        if course is None:
            names = (way.upstream, *way.policy.fallback) if movable else (way.upstream,)
            return self._course(names, method, demand.criticality, now)
        if course.lanes[0].is_open(now):
            raise self._breaker_open(course.lanes[0], now)
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
        only_course = None
        if not policy.fallback and not self._throttles:
            lane = Lane(self._gates[upstream], self._breakers.guarding(upstream, method))
            only_course = Course((lane,), (self._destinations[upstream],), fell_back=False)
        return Way(upstream, policy, facts, safety, _is_unary(policy, facts, safety), only_course)

    def _count_in(self, course: Course) -> None:
        """`call_ended` counts it out."""
        self._in_flight += 1
        if course.fell_back:
            course.destinations[0].fallbacks += 1
        for destination in course.destinations:
            destination.enter()

    def _hedges(self, plan: Plan, upstream: str) -> Hedges | None:
        """What the call needs to be hedged, when its policy wants that.

        A call that came through another relay is left to that one, as with retries.
        """
        policy = plan.policy.hedging
        if policy is None or plan.hedge_upstream is None:
            return None
        return Hedges(self._hedging[upstream], plan.method, policy)

    def _course(self, wanted: tuple[str, ...], method: str, criticality: Criticality, now: float) -> Course:
        """Choose the first upstream whose breaker would let an attempt through, of those that the call may go
        to. Without one, or when the throttle holds it back, it is refused before it costs anything."""
        # Of a keyed call's fallbacks another policy may have taken some away since its headers came.
        names = [name for name in wanted if name in self._destinations]
        lanes = [self._lane(name, method, criticality) for name in names]
        taken = self._first_open(lanes, now)
        self._check_throttle(lanes[taken].throttle, now)
        destinations = tuple(self._destinations[name] for name in names[taken:])
        return Course(lanes[taken:], destinations, fell_back=taken > 0)

    def _lane(self, upstream: str, method: str, criticality: Criticality) -> Lane:
        throttle = self._throttles[upstream].of(criticality) if self._throttles else None
        return Lane(self._gates[upstream], self._breakers.guarding(upstream, method), throttle)

    def _first_open(self, ways: Sequence[Lane], now: float) -> int:
        """The first upstream whose breaker would let an attempt through. Without one the call is refused at
        its headers, before it costs anything."""
        for index, lane in enumerate(ways):
            if not lane.is_open(now):
                return index
        raise self._breaker_open(ways[0], now)

    def _breaker_open(self, lane: Lane, now: float) -> Refusal:
        pushback_s = lane.breaker.pushback_s(now, self._rng) if lane.breaker is not None else None
        return Refusal(Reason.BREAKER_OPEN, pushback_s)

    def _check_throttle(self, throttle: AdaptiveThrottle | None, now: float) -> None:
        if throttle is not None and throttle.refuses(now, self._rng):
            raise Refusal(Reason.ADAPTIVE_THROTTLE, throttle.pushback_s(now, self._rng))

    def _admit_unary(self, demand: Demand, now: float) -> None:
        if (reason := self._admission.turn_away(demand, now)) is not None:
            raise Refusal(reason, self.pushback_s(reason, now))
        if self._quotas is not None:
            self._charge_quota(self._quotas, demand.client, now)

    def _admit_stream(self, demand: Demand, now: float) -> None:
        if self._quotas is not None:
            self._charge_quota(self._quotas, demand.client, now)
        if not self._admission.open_stream():
            raise Refusal(Reason.STREAM_LIMIT, self._admission.stream_pushback_s(self._rng))

    def _charge_quota(self, quotas: ClientQuotas, client: bytes, now: float) -> None:
        """Last of all, so that no client pays for a call that is refused for another reason."""
        if (wait_s := quotas.take(client, now)) > 0.0:
            # Not before there is a token, and not all at once when there is one.
            pushback_s = wait_s * self._rng.uniform(1.0, 1.5)
            raise Refusal(Reason.CLIENT_QUOTA, pushback_s, f"client:{client.decode('ascii', 'replace')}")

    def _answer_refused(self, head: CallHead, reply: Reply, verdict: Verdict, observer: Observer) -> None:
        trailers = contract.trailers_of_refusal(verdict, head.method)
        reply.send_trailers(verdict.code, verdict.message, trailers)
        observer.call_refused(head, verdict, self.now())

    # What keyed calls ask of their relay (`relay_service.idempotency`) ------------------------------

    def start_work(self, order: WorkOrder, observer: WorkObserver) -> KeyedWork:
        """Have a keyed request carried: it seeks a worker at once. Raises `NoWork`."""
        intent = order.intent
        now = self.now()
        head, policy, hops = intent.head, intent.policy, intent.hops
        demand = _demand(head, intent.deadline)
        movable = hops == 0 and not intent.safety.binds_to_upstream
        try:
            upstream = self._upstream_of(intent)
            names = (upstream, *policy.fallback) if movable else (upstream,)
            course = self._course(names, head.method, demand.criticality, now)
            # It lasts as long as somebody waits, so the plan knows no deadline.
            plan = course.plan(head.method, _outgoing(head, order.key, hops), policy, None, demand)
            self._admit_unary(demand, now)
        except Refusal as refusal:
            raise NoWork(refusal.reason, refusal.pushback_s, refusal.subject) from None
        machine = Call(
            policy.retry if hops == 0 else _single_attempt(policy.retry),
            safety=intent.safety,
            has_key=True,
            deadline=intent.deadline,
            attempt_limit_s=policy.attempt_timeout_s,
            gate=course.lane.gate,
            rng=self._rng,
            breaker=course.lane.breaker,
            throttle=course.lane.throttle,
            settle_s=intent.keys.settle_s,
            hedges=self._hedges(plan, upstream) if hops == 0 else None,
            fallbacks=course.later_lanes,
            fell_back=course.fell_back,
        )
        if order.outcome_open:
            machine.outcome_is_open()
        work = KeyedWork(self, plan, machine, observer, intent.keys.settle_s)
        self._count_in(course)
        work.on_request_data(order.framed, end=True)
        return work

    def _upstream_of(self, intent: Intent) -> str:
        """The upstream that was chosen at the headers; where another policy has taken it away since, the one
        that its method is routed to now."""
        if intent.upstream in self._destinations:
            return intent.upstream
        upstream = self._policy.route(intent.head.method)
        if upstream is None:
            raise Refusal(Reason.NO_ROUTE)
        return upstream

    # What calls ask of their relay (`relay_service.unary.UnaryHost`) ----------------------------

    def take_worker(self, call: UnaryCall, now: float) -> Offer[UnaryCall]:
        """A worker, a place in the queue (perhaps that of another call), or neither."""
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


def _demand(head: CallHead, deadline: float | None) -> Demand:
    return Demand(contract.criticality(head.metadata), deadline, contract.client_id(head.metadata))


def _throttles(
    policy: RelayPolicy, known: Mapping[str, Throttles | None], now: float
) -> dict[str, Throttles]:
    """One for each upstream; those ``known`` go on as they stand when the policy asks for the same."""
    asked = policy.adaptive_throttle
    if asked is None:
        return {}
    kept = {name: old for name, old in known.items() if old is not None and old.policy == asked}
    return {name: kept.get(name) or Throttles(asked, now) for name in policy.upstreams}


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
    """The caller's metadata with our hop count and, in place of its key, the one to send.

    The trace context is left out too: each attempt is given its own by the observer.
    """
    outgoing = [field for field in head.metadata if field[0] not in contract.REPLACED]
    if key is not None:
        outgoing.append((contract.IDEMPOTENCY_KEY, _sent_key(head.identity, head.method, key, hops)))
    outgoing.append((contract.HOPS, b"%d" % (hops + 1)))
    return outgoing
