"""Who may work: the workers and queues of all calls and of the compartments, the clients' quotas, and the
room that requests share."""

from collections.abc import Hashable, Iterable
from random import Random
from typing import Any, Protocol

from relay_service.core.admission import Admission, Demand, Offer
from relay_service.core.bulkheads import Bulkheads, Known
from relay_service.core.events import Aborted
from relay_service.core.limit import LoadSign
from relay_service.core.policy import RelayPolicy
from relay_service.core.quota import ClientQuotas
from relay_service.core.reason import Reason
from relay_service.forwarding import Plan
from relay_service.refusal import Refusal

HELD_REQUEST_BYTES_MAX = 256 * 1024 * 1024
"""Request bytes of all unary calls, held for their attempts; beyond it calls find the queue full."""


class Candidate(Hashable, Protocol):
    """A call that may have to wait for a worker (`relay_service.unary.UnaryCall`)."""

    admission: "Admission[Any]"
    """What counts it."""

    @property
    def plan(self) -> Plan:
        """What was decided about it."""

    def worker_granted(self, now: float) -> bool:
        """It has waited for this one; False when it needs none any more."""

    def shed(self, reason: Reason, now: float) -> None:
        """It gets none."""


class Workers:
    """Asks the admission that counts a call, and hands on what is given back.

    State: the admission of all calls that have no compartment, the compartments, the quotas, and how many
    request bytes are held.
    """

    def __init__(self, policy: RelayPolicy, secret: bytes, rng: Random, now: float) -> None:
        """``secret`` is what clients' cohorts are drawn with."""
        self._policy = policy
        self._secret = secret
        self._rng = rng
        self.shared: Admission[Candidate] = Admission(policy.admission, now, secret)
        """Of all calls that have no compartment."""
        self.bulkheads = self._make_bulkheads(policy, {}, now)
        """The compartments, if the policy has any."""
        self.quotas = ClientQuotas(policy.clients, now) if policy.clients else None
        """The clients' quotas, if the policy has any."""
        self.held_bytes = 0
        """What requests take of the room they share."""

    def _make_bulkheads(
        self, policy: RelayPolicy, known: Known[Candidate], now: float
    ) -> Bulkheads[Candidate] | None:
        asked = policy.bulkheads
        if not asked.upstreams and not asked.methods:
            return None
        return Bulkheads(policy, now, self._secret, known)

    def adopt(self, policy: RelayPolicy, same: Iterable[str], now: float) -> None:
        """Go on under another policy; ``same`` are the upstreams that are what they were. What waits keeps
        its place."""
        if policy.clients != self._policy.clients:
            self.quotas = ClientQuotas(policy.clients, now) if policy.clients else None
        self._policy = policy
        self.shared.adopt(policy.admission, now)
        known = self.bulkheads.of(same) if self.bulkheads is not None else {}
        self.bulkheads = self._make_bulkheads(policy, known, now)
        for admission in (self.shared, *(one.admission for one in self.bulkheads or ())):
            self._hand_out(admission, now)

    def admission_of(self, upstream: str, method: str) -> Admission[Candidate]:
        """What judges the calls to where the call goes now: a compartment's, or that of all others."""
        if self.bulkheads is None:
            return self.shared
        return self.bulkheads.holding(upstream, method) or self.shared

    # At the headers: raises `Refusal` ----------------------------------------------------------

    def admit_unary(self, demand: Demand, admission: Admission[Candidate], now: float) -> None:
        """Refuse at once what would be refused when it asks for a worker."""
        if (reason := admission.turn_away(demand, now)) is not None:
            raise Refusal(reason, self._pushback_s(admission, reason, now), admission.subject)
        self._charge_quota(demand.client, now)

    def admit_stream(self, demand: Demand, admission: Admission[Candidate], now: float) -> None:
        """Count one more. It is counted where it begins, also when it falls back."""
        if not admission.open_stream():
            pushback_s = admission.stream_pushback_s(self._rng)
            raise Refusal(Reason.STREAM_LIMIT, pushback_s, admission.subject)
        try:
            self._charge_quota(demand.client, now)
        except Refusal:
            admission.close_stream()
            raise

    def _charge_quota(self, client: bytes, now: float) -> None:
        """Last of all that is decided at the headers, so that no client pays for a call that is refused there
        for another reason. What is shed from the queue later has been paid for: it did take a place."""
        if self.quotas is not None and (wait_s := self.quotas.take(client, now)) > 0.0:
            # Not before there is a token, and not all at once when there is one.
            pushback_s = wait_s * self._rng.uniform(1.0, 1.5)
            raise Refusal(Reason.CLIENT_QUOTA, pushback_s, f"client:{client.decode('ascii', 'replace')}")

    # For calls under way -----------------------------------------------------------------------

    def take(self, call: Candidate, now: float) -> Offer[Candidate]:
        """Ask for a worker: it is there, or a place in the queue (perhaps that of another call), or neither.
        When QUEUED, the call's `worker_granted` or `shed` follows, or `leave_queue` ends it."""
        if self.bulkheads is not None:  # it may have fallen back to where another counts
            call.admission = self.admission_of(call.plan.upstream.name, call.plan.method)
        offer: Offer[Candidate] = call.admission.offer(call, call.plan.demand, now)
        if offer.displaced is not None:
            offer.displaced.shed(offer.reason or Reason.QUEUE_FULL, now)
        return offer

    def take_spare(self, call: Candidate) -> bool:
        """Ask for a worker that is free and that no call waits for."""
        return call.admission.take_spare()

    def give_back(self, call: Candidate, outcome: LoadSign, held_s: float, now: float) -> None:
        """Count the attempt's end after so long, and hand the worker to the next in the queue."""
        call.admission.release(outcome, held_s, now)
        self._hand_out(call.admission, now)

    def unused(self, call: Candidate, now: float) -> None:
        """A worker was given and no attempt was made with it: hand it on."""
        call.admission.hand_back()
        self._hand_out(call.admission, now)

    def _hand_out(self, admission: Admission[Candidate], now: float) -> None:
        """Give free workers to the next calls in the queue that can still use them."""
        while (grant := admission.grant(now)) is not None:
            if grant.refusal is not None:
                grant.ticket.shed(grant.refusal, now)
            elif not grant.ticket.worker_granted(now):
                admission.hand_back()

    def leave_queue(self, call: Candidate) -> None:
        """The call waits no longer."""
        call.admission.withdraw(call)

    def turned_away(self, call: Candidate, reason: Reason, now: float) -> Aborted:
        """What ends a call that gets no worker: whose limit it was, and when its caller should return."""
        admission = call.admission
        return Aborted(reason, self._pushback_s(admission, reason, now), admission.subject)

    def pushback_s(self, reason: Reason, now: float) -> float:
        """When a caller that is refused for this reason should return; negative means not at all."""
        return self._pushback_s(self.shared, reason, now)

    def _pushback_s(self, admission: Admission[Candidate], reason: Reason, now: float) -> float:
        return -1.0 if reason is Reason.DEADLINE_INFEASIBLE else admission.pushback_s(now, self._rng)

    def hold_request(self, size_bytes: int) -> bool:
        """Ask for so much room for a request; False beyond `HELD_REQUEST_BYTES_MAX` of all."""
        if self.held_bytes + size_bytes > HELD_REQUEST_BYTES_MAX:
            return False
        self.held_bytes += size_bytes
        return True

    def let_go_of_request(self, size_bytes: int) -> None:
        """The room is free again."""
        self.held_bytes -= size_bytes
