"""What is wrong with the downstream at the moment, as the one request its FaultService takes.

The service knows only "replace every fault by these", so several faults at a time, coming and going, need
somebody who remembers the rest; and a downstream that was started anew must be told again.
"""

from dataclasses import dataclass, field
from datetime import timedelta

import grpc
from google.protobuf.duration_pb2 import Duration

from chaos.downstream import Downstream
from chaos.faults.kinds import Capacity, DownstreamKind, Failing, Hanging, Moment, Slow
from chaos.plan import PAYMENT_SERVICE
from protos.downstream.v1 import fault_pb2

STRUCK_METHODS = tuple(f"{PAYMENT_SERVICE}/{name}" for name in ("Charge", "Authorize", "WatchCharges"))
"""Not ListCharges: through it the lab reads the ledger."""
_WHEN = {
    Moment.BEFORE_EFFECT: fault_pb2.Failure.WHEN_BEFORE_EFFECT,
    Moment.AFTER_EFFECT: fault_pb2.Failure.WHEN_AFTER_EFFECT,
}


@dataclass(slots=True)
class Board:
    """The faults in force. State: them by name, in the order in which they came."""

    downstream: Downstream
    seed: int
    _in_force: dict[str, DownstreamKind] = field(default_factory=dict)

    def put(self, name: str, fault: DownstreamKind) -> None:
        """One more fault, from the next `tell` on. Of several capacities the one put last counts."""
        self._in_force[name] = fault

    def take(self, name: str) -> None:
        """One fault less; harmless when it is not there."""
        self._in_force.pop(name, None)

    async def tell(self) -> None:
        """Say all of it, in place of what was said before."""
        await self.downstream.set_faults(request_of(self._in_force, self.seed))


def request_of(in_force: dict[str, DownstreamKind], seed: int) -> fault_pb2.SetFaultsRequest:
    """The faults as FaultService takes them."""
    request = fault_pb2.SetFaultsRequest(seed=seed)
    for name, fault in in_force.items():
        match fault:
            case Capacity():
                request.capacity.CopyFrom(_capacity(fault))
            case Failing(probability, when, code):
                failure = fault_pb2.Failure(
                    code=grpc.StatusCode[code].value[0], message="fails on purpose", when=_WHEN[when]
                )
                request.faults.append(_fault(name, probability, failure=failure))
            case Hanging(probability, when):
                request.faults.append(_fault(name, probability, hang=fault_pb2.Hang(when=_WHEN[when])))
            case Slow(median_ms, sigma, probability):
                request.faults.append(_fault(name, probability, latency=_latency(median_ms, sigma)))
    return request


def _fault(
    name: str,
    probability: float,
    *,
    failure: fault_pb2.Failure | None = None,
    hang: fault_pb2.Hang | None = None,
    latency: fault_pb2.Latency | None = None,
) -> fault_pb2.Fault:
    return fault_pb2.Fault(
        name=name,
        methods=STRUCK_METHODS,
        probability=probability,
        failure=failure,
        hang=hang,
        latency=latency,
    )


def _latency(median_ms: int, sigma: float) -> fault_pb2.Latency:
    if sigma == 0:
        return fault_pb2.Latency(fixed=_milliseconds(median_ms))
    return fault_pb2.Latency(log_normal=fault_pb2.LogNormal(median=_milliseconds(median_ms), sigma=sigma))


def _capacity(capacity: Capacity) -> fault_pb2.Capacity:
    told = fault_pb2.Capacity(
        workers=capacity.workers,
        service_time=_milliseconds(capacity.service_ms),
        queue_size=capacity.queue,
    )
    if capacity.slow_start_ms:
        told.slow_start.CopyFrom(_milliseconds(capacity.slow_start_ms))
    return told


def _milliseconds(value: int) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(milliseconds=value))
    return duration
