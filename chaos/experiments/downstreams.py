"""The practice service as an experiment wants it: limited, failing, slow."""

from datetime import timedelta

import grpc
from google.protobuf.duration_pb2 import Duration

from protos.downstream.v1 import fault_pb2


def duration(value_s: float) -> Duration:
    """Seconds as a protobuf duration."""
    made = Duration()
    made.FromTimedelta(timedelta(seconds=value_s))
    return made


def limited(workers: int, service_time_s: float, queue: int) -> fault_pb2.SetFaultsRequest:
    """At best ``workers / service_time_s`` calls a second, first in first out."""
    capacity = fault_pb2.Capacity(workers=workers, service_time=duration(service_time_s), queue_size=queue)
    return fault_pb2.SetFaultsRequest(capacity=capacity)


def failing(probability: float = 1.0) -> fault_pb2.SetFaultsRequest:
    """UNAVAILABLE before anything is done, for this share of the attempts."""
    failure = fault_pb2.Failure(
        code=grpc.StatusCode.UNAVAILABLE.value[0],
        message="fails on purpose",
        when=fault_pb2.Failure.WHEN_BEFORE_EFFECT,
    )
    fault = fault_pb2.Fault(name="failing", probability=probability, failure=failure)
    return fault_pb2.SetFaultsRequest(faults=[fault])
