"""The faults in force: which plan, from which seed, and the capacity model that goes with it."""

import asyncio
from collections.abc import Sequence

from downstream_service.capacity import Capacity
from downstream_service.fault_input import checked_capacity, checked_faults
from downstream_service.faults import Fault, FaultPlan, Strike
from protos.downstream.v1 import fault_pb2


class FaultBoard:
    """Where faults are put up, struck and taken down; the only writer of the capacity model.

    Mutable state: the request in force with its plan and seed, and the event that ends hangs.
    """

    def __init__(self, request: fault_pb2.SetFaultsRequest, own_seed: int, capacity: Capacity) -> None:
        """Put up the first faults; raises ``InvalidInputError``. ``own_seed`` serves requests without one."""
        self._own_seed = own_seed
        self._capacity = capacity
        self._lifted = asyncio.Event()
        self._shut_down = False
        self.replace(request)

    @property
    def seed(self) -> int:
        """The seed of the draws now under way."""
        return self._seed

    def replace(self, request: fault_pb2.SetFaultsRequest) -> None:
        """Put up these faults instead, restart the draws, end every hang.

        Raises ``InvalidInputError``, and then nothing has changed.
        """
        faults = checked_faults(request.faults)
        model = checked_capacity(request.capacity)
        self._request = fault_pb2.SetFaultsRequest()
        self._request.CopyFrom(request)
        for message, fault in zip(self._request.faults, faults, strict=True):
            message.name = fault.name
        self._seed = request.seed or self._own_seed
        self._plan = FaultPlan(faults, self._seed)
        self._capacity.configure(model)
        self._lift_hangs()

    def draw(self, method: str, own_faults: Sequence[Fault]) -> Strike:
        """Decide what strikes one call."""
        return self._plan.draw(method, own_faults)

    def state(self) -> fault_pb2.GetFaultsResponse:
        """Return what is in force and how often each fault has struck."""
        states = [
            fault_pb2.FaultState(fault=fault, strikes=strikes)
            for fault, strikes in zip(self._request.faults, self._plan.strikes, strict=True)
        ]
        capacity = self._request.capacity if self._request.HasField("capacity") else None
        return fault_pb2.GetFaultsResponse(faults=states, capacity=capacity, seed=self._seed)

    @property
    def lifted(self) -> asyncio.Event:
        """Set once the faults that are drawn now are replaced, or the service shuts down.

        A call takes it together with its draw: it may hang only later, after its effect.
        """
        return self._lifted

    def shut_down(self) -> None:
        """End every hang, now and later, so that no call outlives the service's grace for a fault's sake."""
        self._lifted.set()
        self._shut_down = True

    def _lift_hangs(self) -> None:
        if not self._shut_down:
            self._lifted.set()
            self._lifted = asyncio.Event()
