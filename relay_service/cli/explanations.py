"""The words behind ``relay explain``: every status code and every reason has its entry."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from relay_service.core.reason import Reason
from relay_service.core.status import Code


@dataclass(frozen=True, slots=True)
class Explanation:
    """What it means, when it comes, and what its reader should do."""

    meaning: str
    when: str
    advice: str


REASONS: Mapping[Reason, Explanation] = MappingProxyType(
    {
        Reason.QUEUE_FULL: Explanation(
            Reason.QUEUE_FULL.meaning,
            "The call arrived while every worker had an attempt in flight and "
            "relay.admission.queueCapacity calls were waiting. Where the policy has bulkheads, these are the "
            "workers and the queue of the call's own compartment, which bulkhead in the ErrorInfo's metadata "
            "names: the others are not full for that. Nothing was executed.",
            "Callers: wait as long as grpc-retry-pushback-ms or RetryInfo says, then try again; -1 says that "
            "every turn of the next ten seconds is given away. "
            "Operators: compare offered load and drain rate in `relay stats`; a longer queue only makes "
            "refusals slower.",
        ),
        Reason.SHED_BY_CRITICALITY: Explanation(
            Reason.SHED_BY_CRITICALITY.meaning,
            "All workers were busy, and the queue was filled past the share that the call's class may fill "
            "(relay.admission.sheddableShare, sheddablePlusShare), or the call waited and a call of a higher "
            "class took its place in the full queue. Nothing was executed.",
            "Callers: come back when grpc-retry-pushback-ms or RetryInfo says. Mark with relay-criticality "
            "only what users see as CRITICAL; if everything is, nothing is.",
        ),
        Reason.FAIR_SHARE: Explanation(
            Reason.FAIR_SHARE.meaning,
            "The queue was full, and a call came of a client that had fewer calls waiting than this one's "
            "(by relay-client-id, in cohorts that are drawn anew from time to time). It took the place of "
            "the newest call of the client with the most. Nothing was executed.",
            "Callers: come back when grpc-retry-pushback-ms or RetryInfo says, and with fewer calls at once. "
            "Operators: the queue is full; this only decides whose calls fill it.",
        ),
        Reason.CLIENT_QUOTA: Explanation(
            Reason.CLIENT_QUOTA.meaning,
            "relay.clients gives the client named in relay-client-id (or, unnamed, all that give no name "
            "together) so many calls a second and so many at once, and they are used up. The QuotaFailure "
            "names the client. Nothing was executed.",
            "Callers: wait as long as grpc-retry-pushback-ms or RetryInfo says: then there is a token. "
            "Operators: give the client a quota of its own in relay.clients.named; the name is a claim, so "
            "quotas keep honest clients apart and do not keep attackers out.",
        ),
        Reason.QUEUE_STANDING: Explanation(
            Reason.QUEUE_STANDING.meaning,
            "standingShed door: the queue had not been empty for relay.admission.standingInterval, and the "
            "call would have waited longer than standingTarget; it is refused on arrival. Or some call had "
            "waited longer than standingTarget at every look for standingInterval or more. Then standingShed "
            "codel refuses waiting calls one after the other, from the lowest class first, and queueOrder "
            "adaptive-lifo gives a newcomer the place of the oldest in the full queue. Nothing was executed.",
            "Callers: come back when grpc-retry-pushback-ms or RetryInfo says. Operators: more is asked for "
            "than is served; compare offered load and drain rate in `relay stats`.",
        ),
        Reason.CONCURRENCY_LIMIT: Explanation(
            Reason.CONCURRENCY_LIMIT.meaning,
            "relay.admission.limit adapts the number of attempts to what the service takes, that number is "
            "under way, and relay.admission.queueCapacity is 0. Nothing was executed.",
            "Callers: come back when grpc-retry-pushback-ms or RetryInfo says. Operators: a short queue "
            "evens out bursts; limit and baseline are in `relay stats`.",
        ),
        Reason.DEADLINE_INFEASIBLE: Explanation(
            Reason.DEADLINE_INFEASIBLE.meaning,
            "All workers were busy, and the calls that would be served first, at the rate at which calls "
            "end, plus the service time that relay.admission.feasibilityQuantile names take longer than the "
            "deadline leaves; at the door or when the call's turn came. Nothing was executed.",
            "Callers: do not repeat it with the same deadline now (pushback is -1); ask for less often, or "
            "allow more time. Operators: compare the deadline with queue, drain rate and service time in "
            "`relay stats`.",
        ),
        Reason.STREAM_LIMIT: Explanation(
            Reason.STREAM_LIMIT.meaning,
            "The call is streaming (or its kind is not known) and relay.admission.maxStreams such calls "
            "are open, in its compartment where bulkhead in the ErrorInfo's metadata names one. Nothing was "
            "executed.",
            "Close streams that are no longer read, or raise maxStreams if memory allows.",
        ),
        Reason.BREAKER_OPEN: Explanation(
            Reason.BREAKER_OPEN.meaning,
            "Attempts at the upstream (or at this method, where relay.methods gives it a breaker of its own) "
            "kept failing, so for relay.breaker.openTime none is made; then a few calls probe it, and after "
            "they succeed the share let through grows over rampTime. A retry that meets the open breaker "
            "ends its call too; relay-attempts tells whether one was made before.",
            "Callers: wait as long as grpc-retry-pushback-ms or RetryInfo says. Operators: `relay stats` "
            "shows why it opened; find out why the upstream fails. It closes by itself, and there is nothing "
            "to reset.",
        ),
        Reason.ADAPTIVE_THROTTLE: Explanation(
            Reason.ADAPTIVE_THROTTLE.meaning,
            "Over relay.adaptiveThrottle.window the upstream accepted less than 1/k of the attempts of "
            "this class: it answered the others with RESOURCE_EXHAUSTED or UNAVAILABLE. The relay lets "
            "through about k times what is accepted and refuses the rest by chance. A retry that is not "
            "let through ends its call too; relay-attempts tells whether an attempt was made before.",
            "Callers: come back when grpc-retry-pushback-ms or RetryInfo says. Operators: `relay stats` "
            "shows requests and accepts by class; the upstream is overloaded or ill, and is let recover. "
            "With a lower k it is asked less, with a higher one it is found well again sooner.",
        ),
        Reason.DEADLINE_PASSED: Explanation(
            Reason.DEADLINE_PASSED.meaning,
            "The caller's deadline, or the one the policy gave it, came before an answer: in the queue, "
            "between attempts, or during one. Where an effect may exist the reason is OUTCOME_UNKNOWN "
            "instead.",
            "Look at relay-attempts: 0 means it waited in the queue all the time, more that the upstream "
            "was slow. Give the call more time, or find out what is slow in its trace.",
        ),
        Reason.RETRIES_EXHAUSTED: Explanation(
            Reason.RETRIES_EXHAUSTED.meaning,
            "Every allowed attempt failed, or the upstream said not to come back, or the next attempt "
            "could not begin before the deadline.",
            "The status is the last attempt's: explain that. Repeating at once only adds load.",
        ),
        Reason.BUDGET_EXHAUSTED: Explanation(
            Reason.BUDGET_EXHAUSTED.meaning,
            "The attempt failed in a way that may be retried, but retries have used up their share of the "
            "traffic (relay.retryBudget) or are throttled (retryThrottling).",
            "Many calls are failing: look at the upstream first. A larger budget means a larger load on "
            "it in exactly this situation.",
        ),
        Reason.OUTCOME_UNKNOWN: Explanation(
            Reason.OUTCOME_UNKNOWN.meaning,
            "Bytes of an attempt reached the network, no definite answer came back, and a second "
            "execution would not be harmless, so no retry could settle it.",
            "Do not assume either way. Ask the service whether the effect exists, or repeat with the same "
            "idempotency-key on a KEYED method: that cannot execute twice.",
        ),
        Reason.IDEMPOTENCY_KEY_MISSING: Explanation(
            Reason.IDEMPOTENCY_KEY_MISSING.meaning,
            "The policy sets keyRequired for this method and the request has no idempotency-key metadata. "
            "Nothing was executed.",
            "Send one key for each intended effect, and the same key with every repetition of it.",
        ),
        Reason.IDEMPOTENCY_KEY_INVALID: Explanation(
            Reason.IDEMPOTENCY_KEY_INVALID.meaning,
            "The key is empty, longer than 255, not printable ASCII, given more than once, or sent on a "
            "streaming method. Nothing was executed.",
            "Send, for instance, one UUID as text, on a unary method.",
        ),
        Reason.IDEMPOTENCY_IN_PROGRESS: Explanation(
            Reason.IDEMPOTENCY_IN_PROGRESS.meaning,
            "The key belongs to a call that has not ended, and the policy lets duplicates not wait "
            "(inFlight: abort), or the waiting list is full (relay.keys.waiters, waitersPerKey), or the key "
            "belongs to an unfinished job. This call executed nothing; the other one may.",
            "Repeat it later with the same key: it gets the first call's answer.",
        ),
        Reason.IDEMPOTENCY_KEY_REUSED: Explanation(
            Reason.IDEMPOTENCY_KEY_REUSED.meaning,
            "The same key came with a request whose SHA-256 is another. Nothing was executed.",
            "One key belongs to one intended effect: make a new key for a new request. `relay idem show` "
            "tells when the first one came.",
        ),
        Reason.IDEMPOTENCY_KEY_EXPIRED: Explanation(
            Reason.IDEMPOTENCY_KEY_EXPIRED.meaning,
            "The call under this key succeeded longer ago than its answer is kept (idempotency.keep), or its "
            "dead letter was discarded; that it existed is remembered for relay.keys.tombstone. Nothing was "
            "executed now.",
            "Ask the service for the effect. Use a new key only for an effect that is wanted once more.",
        ),
        Reason.IDEMPOTENCY_KEY_DEAD_LETTERED: Explanation(
            Reason.IDEMPOTENCY_KEY_DEAD_LETTERED.meaning,
            "A call under this key came to no definite end and became a dead letter, whose id is in "
            "relay-dead-letter-id. Nothing was executed now.",
            "Have the dead letter replayed or discarded; its replay keeps the key.",
        ),
        Reason.STORE_UNAVAILABLE: Explanation(
            Reason.STORE_UNAVAILABLE.meaning,
            "The call has a key that the policy keeps, and the store did not answer or could not write. "
            "Nothing was executed. Calls without a key, and replies to calls under way, go on.",
            "Callers: repeat with the same key. Operators: GetHealth on the admin address says what is wrong "
            "with the store.",
        ),
        Reason.MESSAGE_TOO_LARGE: Explanation(
            Reason.MESSAGE_TOO_LARGE.meaning,
            "One message, request or response, exceeds maxMessageBytes of the method's policy.",
            "Send less at once, or raise maxMessageBytes here and the limits of both peers. Retrying does "
            "not help.",
        ),
        Reason.MALFORMED_REQUEST: Explanation(
            Reason.MALFORMED_REQUEST.meaning,
            "The request's framing is broken: a message cut short, or a length prefix that cannot be.",
            "This is a fault in the client or in something between it and the relay; capture what it sends.",
        ),
        Reason.ENVELOPE_INVALID: Explanation(
            Reason.ENVELOPE_INVALID.meaning,
            "RelayService/Relay was called with a method that is missing or streaming, a type_url that is "
            "not the method's request type, or an envelope that cannot be read. Nothing was executed.",
            "The status message says which; set method to package.Service/Method and request to its request "
            "message packed as Any. Call streaming methods directly at the relay's address.",
        ),
        Reason.HOP_LIMIT: Explanation(
            Reason.HOP_LIMIT.meaning,
            "The relay-attempt metadata says that the call went through relay.maxHops relays already. "
            "Nothing was executed here.",
            "Find the loop in the routes: usually an upstream's address is the relay's own. Raise maxHops "
            "only for a chain that is meant to be so long.",
        ),
        Reason.JOB_INVALID: Explanation(
            Reason.JOB_INVALID.meaning,
            "The submission names no unary method, or a request of another type than the method "
            "takes, or an order key, priority, metadata, delay or time to live that is out of bounds. "
            "Nothing was accepted.",
            "Read the message: it says which field and what is allowed. `relay call` tries the same "
            "method without a job.",
        ),
        Reason.JOBS_FULL: Explanation(
            Reason.JOBS_FULL.meaning,
            "relay.jobs.maxUnfinished jobs wait, are paused or run, on all relays that share the "
            "store. Nothing was accepted; calls are taken all the same.",
            "Callers: submit again later with the same key. Operators: `relay jobs ls` shows what "
            "they wait for; more workers help only if the upstream can take more.",
        ),
        Reason.DEAD_LETTERS_FULL: Explanation(
            Reason.DEAD_LETTERS_FULL.meaning,
            "relay.deadLetters.maxEntries letters are open, held or being replayed. Nothing was "
            "accepted: a job that may fail must have a place to go. Jobs accepted before go on; calls "
            "are taken all the same.",
            "Operators: `relay dlq groups` shows what they died of; replay them when its cause is "
            "gone, discard those that need not be done.",
        ),
        Reason.NO_ROUTE: Explanation(
            Reason.NO_ROUTE.meaning,
            "relay.routes has no entry for the service or method. Nothing was executed.",
            "Check the spelling of package.Service/Method, or add a route; one without service matches "
            "everything.",
        ),
        Reason.DRAINING: Explanation(
            Reason.DRAINING.meaning,
            "The relay was told to stop and takes no new calls; those in flight finish. Nothing was "
            "executed.",
            "Repeat the call: another relay, or this one's successor, takes it. Health shows NOT_SERVING "
            "meanwhile.",
        ),
    }
)

CODES: Mapping[Code, Explanation] = MappingProxyType(
    {
        Code.OK: Explanation(
            "the call succeeded",
            "The upstream answered OK; relay-attempts says how many attempts it took.",
            "Nothing.",
        ),
        Code.CANCELLED: Explanation(
            "the caller gave the call up",
            "The caller cancelled or its connection was lost; an upstream may also answer it by itself.",
            "See who cancelled in the trace; a client-side timeout is the usual one.",
        ),
        Code.UNKNOWN: Explanation(
            "something failed and nobody said what, or the outcome itself is unknown",
            "An upstream's handler threw, or the relay could not learn whether an attempt was executed "
            "(reason OUTCOME_UNKNOWN, relay-origin: relay).",
            "With relay-origin upstream, look into its log; otherwise `relay explain OUTCOME_UNKNOWN`.",
        ),
        Code.INVALID_ARGUMENT: Explanation(
            "the request is wrong whatever the state of the service",
            "The upstream refused the request, or the relay its idempotency-key.",
            "Change the request; it is never retried.",
        ),
        Code.DEADLINE_EXCEEDED: Explanation(
            "the time was over before the answer",
            "The call's deadline passed; the effect may exist when relay-outcome is unknown.",
            "See in the trace where the time went: queue, attempts, or backoff between them.",
        ),
        Code.NOT_FOUND: Explanation(
            "what was asked for does not exist",
            "The upstream's answer.",
            "Change the request; it is never retried.",
        ),
        Code.ALREADY_EXISTS: Explanation(
            "what should be created is there already",
            "The upstream's answer; after a retry it may mean that the first attempt succeeded.",
            "Read the thing and compare; it is never retried.",
        ),
        Code.PERMISSION_DENIED: Explanation(
            "the caller may not do this",
            "The upstream's answer.",
            "Ask whoever grants it; it is never retried.",
        ),
        Code.RESOURCE_EXHAUSTED: Explanation(
            "a limit was reached",
            "The relay refused for overload (reasons QUEUE_FULL, SHED_BY_CRITICALITY, FAIR_SHARE, "
            "CLIENT_QUOTA, QUEUE_STANDING, CONCURRENCY_LIMIT, DEADLINE_INFEASIBLE, STREAM_LIMIT, "
            "ADAPTIVE_THROTTLE), for want of room in its store (JOBS_FULL, DEAD_LETTERS_FULL) or for size "
            "(MESSAGE_TOO_LARGE), or the upstream refused. It is retried only when pushback or RetryInfo "
            "says when.",
            "Look at the reason in ErrorInfo, and at whose limit its metadata names (client, bulkhead); "
            "return when RetryInfo says.",
        ),
        Code.FAILED_PRECONDITION: Explanation(
            "the service is not in a state for this",
            "The upstream's answer, or the relay's for a call that goes round in a loop (HOP_LIMIT) or whose "
            "key is spent (IDEMPOTENCY_KEY_EXPIRED, IDEMPOTENCY_KEY_DEAD_LETTERED).",
            "Change the state first; it is never retried.",
        ),
        Code.ABORTED: Explanation(
            "a conflict with another operation",
            "The upstream's answer, for instance a lost transaction, or the relay's for a duplicate in "
            "flight (IDEMPOTENCY_IN_PROGRESS).",
            "Repeat the whole operation from its read; put ABORTED into retryableStatusCodes only if "
            "nothing was executed when it comes.",
        ),
        Code.OUT_OF_RANGE: Explanation(
            "the request went past the valid range",
            "The upstream's answer.",
            "Change the request; it is never retried.",
        ),
        Code.UNIMPLEMENTED: Explanation(
            "there is no such method",
            "The relay has no route (reason NO_ROUTE), or the upstream does not know the method.",
            "relay-origin says which of the two; check the method's full name.",
        ),
        Code.INTERNAL: Explanation(
            "a promise of the protocol or the service was broken",
            "The upstream's answer, or a request that is not well-formed gRPC (MALFORMED_REQUEST).",
            "Read the upstream's log; the attempt counts as possibly executed.",
        ),
        Code.UNAVAILABLE: Explanation(
            "the service cannot be reached or does not serve now",
            "The upstream answered it, no connection could be had, the relay's breaker is open "
            "(BREAKER_OPEN), its store is gone (STORE_UNAVAILABLE), or it is shutting down (DRAINING). "
            "Answered, it is retried by default.",
            "Repeat later. relay-outcome says whether anything may have been executed.",
        ),
        Code.DATA_LOSS: Explanation(
            "data was lost or damaged for good",
            "The upstream's answer.",
            "Do not retry; tell whoever runs the upstream.",
        ),
        Code.UNAUTHENTICATED: Explanation(
            "the caller did not prove who it is",
            "The upstream's answer.",
            "Send valid credentials; the relay passes them on unchanged. It is never retried.",
        ),
    }
)
