"""One grpcio server of the control plane: bound with a clear error, stopped without a remainder."""

import contextlib

import grpc.aio

from relay_service.config.addresses import TcpAddress, parse_address
from relay_service.control.binding import BindError, cause_of, why_not_bound
from relay_service.control.call_tracker import CallTracker

REQUEST_BYTES_MAX = 64 * 1024
"""Requests to the relay's own services are names and durations, unless they bring work along."""

LEFTOVER_WAIT_S = 1.0
"""How long aborted handlers may take to end once the server has stopped."""


class GrpcServer:
    """A plaintext grpcio server at one address; services are added to ``server`` before `start`.

    ``address`` is ``host:port`` (port 0 takes a free one) or ``unix:path``. Must be made on the event loop.
    """

    def __init__(
        self, purpose: str, address: str, *, calls_max: int, request_bytes_max: int = REQUEST_BYTES_MAX
    ) -> None:
        self.purpose = purpose
        self.address = address
        """After `bind` with the port that was really taken."""
        self._is_started = False
        self._calls = CallTracker()
        self.server = grpc.aio.server(
            interceptors=[self._calls],
            maximum_concurrent_rpcs=calls_max,
            options=[
                # Two relays on one port would share its callers at random.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", request_bytes_max),
                # The data plane and watching clients may ping as they need to notice a dead connection.
                ("grpc.http2.min_ping_interval_without_data_ms", 500),
                ("grpc.http2.max_ping_strikes", 0),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )

    @property
    def running_calls(self) -> int:
        """Handlers that have not ended."""
        return self._calls.running

    async def bind(self) -> None:
        """Take the address. Raises `BindError`."""
        try:
            where = parse_address(self.address)
        except ValueError as error:
            raise BindError(self.purpose, self.address, cause_of(error)) from error
        port = 0
        with contextlib.suppress(RuntimeError):  # grpcio says only that it failed, and some versions return 0
            port = self.server.add_insecure_port(self.address)
        if port == 0:
            raise BindError(self.purpose, self.address, await why_not_bound(where))
        if isinstance(where, TcpAddress):
            self.address = str(TcpAddress(where.host, port))

    async def start(self) -> None:
        """Serve."""
        self._is_started = True
        await self.server.start()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, end the streams, give the rest ``grace_s`` to finish, and free the address."""
        if not self._is_started:
            # grpcio's stop does nothing to a server that never ran, and so would keep its address.
            await self.start()
        self._calls.end_streams()
        await self.server.stop(grace_s)
        await self._calls.wait_ended(LEFTOVER_WAIT_S)
