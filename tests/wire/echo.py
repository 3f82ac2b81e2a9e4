"""A real gRPC service, of every kind of method."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio


class EchoHandler(grpc.GenericRpcHandler):
    """``/test.Echo/{Unary,Collect,Expand,Chat}``: bytes in, bytes out; request metadata says what to do."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.started = asyncio.Event()
        self.remaining_s: list[float | None] = []
        self.metadata: list[tuple[tuple[str, Any], ...]] = []
        self.received = 0
        self.release = asyncio.Event()

    def service(self, details: Any) -> Any:
        kinds = {
            "/test.Echo/Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "/test.Echo/Collect": grpc.stream_unary_rpc_method_handler(self.collect),
            "/test.Echo/Expand": grpc.unary_stream_rpc_method_handler(self.expand),
            "/test.Echo/Chat": grpc.stream_stream_rpc_method_handler(self.chat),
        }
        return kinds.get(details.method)

    async def _prepare(self, context: Any) -> dict[str, Any]:
        metadata = context.invocation_metadata()
        self.metadata.append(tuple(metadata))
        asked = dict(metadata)
        self.remaining_s.append(context.time_remaining())
        self.started.set()
        if "send-header" in asked:
            await context.send_initial_metadata(
                (("x-header", asked["send-header"]), ("x-header-bin", b"\x00\xff"))
            )
        if "send-trailer" in asked:
            context.set_trailing_metadata(
                (("x-trailer", asked["send-trailer"]), ("x-trailer-bin", b"\xff\x00"))
            )
        if "compress" in asked:
            context.set_compression(grpc.Compression.Gzip)
        if "hang" in asked:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if "fail" in asked:
            await context.abort(grpc.StatusCode[asked["fail"]], asked.get("text-bin", b"no").decode())
        return asked

    async def unary(self, request: bytes, context: Any) -> bytes:
        await self._prepare(context)
        return request

    async def collect(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        asked = await self._prepare(context)
        if "wait" in asked:
            await self.release.wait()
        size = 0
        async for request in requests:
            size += len(request)
            self.received += 1
        return str(size).encode()

    async def expand(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        asked = await self._prepare(context)
        message = b"x" * int(asked.get("size", "10"))
        for _ in range(int(request)):
            yield message

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        await self._prepare(context)
        async for request in requests:
            yield request


@dataclass
class Echo:
    """A grpc.aio server with `EchoHandler`."""

    server: grpc.aio.Server
    handler: EchoHandler
    target: str
