"""The simplest honest gRPC proxy: grpc.aio in front, grpc.aio behind, bytes in between.

It has no policy at all. Tests compare the relay with it ("the same call, once through each"), and the
bench measures what leaving grpc.aio's byte path is worth.

    python -m tests.reference_proxy --upstream 127.0.0.1:50052

prints ``{"listen": "127.0.0.1:PORT", "pid": PID}`` when it serves, and ends on SIGTERM.

What grpc.aio keeps it from doing: it cannot tell a Trailers-Only response from empty headers, so headers
without metadata are passed on only when the call is still open by then; and a stream that the upstream ends
before it has read the requests may end as INTERNAL, as a failing write overwrites the status that came
(https://github.com/grpc/grpc/issues/36066): name unary methods in ``unary_methods``.
"""

import argparse
import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Collection
from typing import Any, Self

import grpc
import grpc.aio

STOP_GRACE_S = 1.0
CONCURRENT_STREAMS_MAX = 100_000

_UNLIMITED = -1
_OPTIONS = (
    ("grpc.max_receive_message_length", _UNLIMITED),
    ("grpc.max_send_message_length", _UNLIMITED),
    ("grpc.enable_retries", 0),
)
_SERVER_OPTIONS = (
    *_OPTIONS,
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", CONCURRENT_STREAMS_MAX),
)
_CHANNEL_OPTIONS = (*_OPTIONS, ("grpc.use_local_subchannel_pool", 1))

Metadata = tuple[tuple[str, str | bytes], ...]


class ReferenceProxy(grpc.GenericRpcHandler):
    """A byte pass-through to one upstream, for every method and cardinality.

    Metadata, deadline, cancellation, status, message and trailers go through both ways. Methods in
    ``unary_methods`` (``/package.Service/Method``) are handled as unary on both sides, which costs
    about half as much; all others as streams, which on the wire is right for every method.
    """

    def __init__(self, upstream: str, *, unary_methods: Collection[str] = ()) -> None:
        self._upstream = upstream
        self._unary_methods = frozenset(unary_methods)
        self._channel: grpc.aio.Channel | None = None
        self._server: grpc.aio.Server | None = None

    async def start(self, listen: str = "127.0.0.1:0") -> str:
        """Serve, and return the address with its real port. Raises `RuntimeError` when it is taken."""
        self._channel = grpc.aio.insecure_channel(self._upstream, options=_CHANNEL_OPTIONS)
        self._server = grpc.aio.server(handlers=(self,), options=_SERVER_OPTIONS)
        port = self._server.add_insecure_port(listen)
        await self._server.start()
        return f"{listen.rpartition(':')[0]}:{port}"

    async def stop(self) -> None:
        """Cancel what is in flight and close both sides, within about `STOP_GRACE_S`."""
        if self._server is not None:
            await self._server.stop(STOP_GRACE_S)
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Called by grpcio for every call; without serializers the messages are bytes."""
        method = handler_call_details.method
        if method in self._unary_methods:
            return grpc.unary_unary_rpc_method_handler(self._unary_handler(method))
        return grpc.stream_stream_rpc_method_handler(self._stream_handler(method))

    def _unary_handler(self, method: str) -> Any:
        assert self._channel is not None
        invoke = self._channel.unary_unary(method)

        async def handle(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            call = invoke(
                request, timeout=_time_left_s(context), metadata=_forwarded(context.invocation_metadata())
            )
            try:
                reply = await call
                if initial := await call.initial_metadata():
                    await context.send_initial_metadata(tuple(initial))
                context.set_trailing_metadata(tuple(await call.trailing_metadata()))
                return reply
            except grpc.aio.AioRpcError as error:
                if initial := error.initial_metadata():
                    await context.send_initial_metadata(tuple(initial))
                await _abort_alike(error, context)
                raise AssertionError("abort always raises") from error

        return handle

    def _stream_handler(self, method: str) -> Any:
        assert self._channel is not None
        invoke = self._channel.stream_stream(method)

        async def handle(
            requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
        ) -> AsyncIterator[bytes]:
            call = invoke(
                requests, timeout=_time_left_s(context), metadata=_forwarded(context.invocation_metadata())
            )
            try:
                initial = await call.initial_metadata()
                if initial or not call.done():
                    await context.send_initial_metadata(tuple(initial))
                async for message in call:
                    yield message
                context.set_trailing_metadata(tuple(await call.trailing_metadata()))
            except grpc.aio.AioRpcError as error:
                await _abort_alike(error, context)
            finally:
                call.cancel()

        return handle


def _forwarded(metadata: Any) -> Metadata:
    # grpcio writes a user-agent of its own and refuses reserved names.
    return tuple(
        (key, value) for key, value in metadata or () if key != "user-agent" and not key.startswith("grpc-")
    )


def _time_left_s(context: grpc.aio.ServicerContext[bytes, bytes]) -> float | None:
    left_s = context.time_remaining()
    # grpcio says "no deadline" with None or with a time that no clock will reach.
    return left_s if left_s is not None and left_s < 10**9 else None


async def _abort_alike(error: grpc.aio.AioRpcError, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
    await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))


async def _serve(arguments: argparse.Namespace) -> None:
    stopping = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, stopping.set)
    async with ReferenceProxy(arguments.upstream, unary_methods=arguments.unary) as proxy:
        address = await proxy.start(arguments.listen)
        print(json.dumps({"listen": address, "pid": os.getpid()}), flush=True)
        await stopping.wait()


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.reference_proxy", description="A bare grpc.aio proxy."
    )
    parser.add_argument("--upstream", required=True, metavar="HOST:PORT")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT")
    parser.add_argument("--unary", action="append", default=[], metavar="/PACKAGE.SERVICE/METHOD")
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
