"""The servicer of ``downstream.v1.FaultService``: break the service, see how, mend it."""

import structlog

from downstream_service.calls import Calls, Context
from downstream_service.capacity import Capacity
from downstream_service.errors import InvalidInputError, invalid_argument
from downstream_service.fault_board import FaultBoard
from downstream_service.ledger import Ledger
from protos.downstream.v1 import fault_pb2, fault_pb2_grpc


class FaultService(fault_pb2_grpc.FaultServiceServicer):
    """The proto says what each method promises."""

    def __init__(
        self,
        board: FaultBoard,
        calls: Calls,
        capacity: Capacity,
        ledger: Ledger,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._board = board
        self._calls = calls
        self._capacity = capacity
        self._ledger = ledger
        self._log = log

    async def SetFaults(
        self, request: fault_pb2.SetFaultsRequest, context: Context
    ) -> fault_pb2.SetFaultsResponse:
        """Replace every fault."""
        try:
            self._board.replace(request)
        except InvalidInputError as error:
            failed = invalid_argument(error)
            await context.abort(failed.code, failed.message, failed.trailers)
        self._log.info("faults set", count=len(request.faults), seed=self._board.seed)
        return fault_pb2.SetFaultsResponse()

    async def GetFaults(
        self,
        request: fault_pb2.GetFaultsRequest,  # noqa: ARG002 (gRPC's signature)
        context: Context,  # noqa: ARG002
    ) -> fault_pb2.GetFaultsResponse:
        """Return what is in force."""
        return self._board.state()

    async def ClearFaults(
        self,
        request: fault_pb2.ClearFaultsRequest,  # noqa: ARG002 (gRPC's signature)
        context: Context,  # noqa: ARG002
    ) -> fault_pb2.ClearFaultsResponse:
        """Take down every fault and the capacity model."""
        self._board.replace(fault_pb2.SetFaultsRequest())
        self._log.info("faults cleared")
        return fault_pb2.ClearFaultsResponse()

    async def GetCounters(
        self,
        request: fault_pb2.GetCountersRequest,  # noqa: ARG002 (gRPC's signature)
        context: Context,  # noqa: ARG002
    ) -> fault_pb2.GetCountersResponse:
        """Return the counts since the start."""
        return fault_pb2.GetCountersResponse(
            calls=self._calls.seen,
            effects=self._ledger.effects,
            replays=self._ledger.replays,
            refused=self._capacity.refused,
            wasted=self._capacity.wasted,
            in_flight=self._calls.in_flight,
            queued=self._capacity.queued,
            cancelled=self._calls.cancelled,
        )
