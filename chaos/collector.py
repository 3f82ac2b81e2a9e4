"""A place that takes spans by OTLP/gRPC, to be taken away from under the relay."""

from types import TracebackType
from typing import Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class _Sink(trace_service_pb2_grpc.TraceServiceServicer):
    """Counts spans and keeps none."""

    def __init__(self) -> None:
        self.spans = 0

    async def Export(
        self,
        request: trace_service_pb2.ExportTraceServiceRequest,
        _context: object,
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.spans += sum(
            len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans
        )
        return trace_service_pb2.ExportTraceServiceResponse()


class Collector:
    """Listens at one address whenever it is up. Use it in ``async with``."""

    def __init__(self) -> None:
        self.address = "127.0.0.1:0"
        self._sink = _Sink()
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.down()

    @property
    def spans(self) -> int:
        """How many it has taken."""
        return self._sink.spans

    async def up(self) -> None:
        """Listen, at the address it had before if it had one."""
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        # The generated code of opentelemetry-proto has no types.
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self._sink, self._server)  # type: ignore[no-untyped-call]
        port = self._server.add_insecure_port(self.address)
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def down(self) -> None:
        """Stop at once; connections are closed."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)
