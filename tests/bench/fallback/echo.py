"""The echo on grpc.aio, for machines without a C compiler: the flags and the ready line of ``native/echo.c``.

Its own cost limits every measurement, which is why rows made with it are marked generator-bound.
"""

import argparse
import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

_REFLECTION_PATH = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
_OPTIONS = (("grpc.so_reuseport", 0), ("grpc.server.max_pending_requests", 100_000))


class Echo(grpc.GenericRpcHandler):
    """Answers with the request after ``service_s``, at most ``workers`` at once, ``queue`` waiting."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._path = arguments.path
        self._service_s = arguments.service_us / 1e6
        self._places = asyncio.Semaphore(arguments.workers or 1_000_000)
        self._waiting_max = arguments.queue
        self._waiting = 0
        self._reflection = _framed(Path(arguments.reflection).read_bytes()) if arguments.reflection else None

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Called by grpcio for every call; None is UNIMPLEMENTED."""
        if handler_call_details.method == self._path:
            return grpc.unary_unary_rpc_method_handler(self._answer)
        if self._reflection and handler_call_details.method == _REFLECTION_PATH:
            return grpc.stream_stream_rpc_method_handler(self._reflect)
        return None

    async def _answer(self, request: bytes, context: Any) -> bytes:
        if not self._service_s:
            return request
        if self._places.locked() and self._waiting >= self._waiting_max:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full")
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        try:
            await asyncio.sleep(self._service_s)
        finally:
            self._places.release()
        return request

    async def _reflect(self, requests: Any, context: Any) -> Any:
        assert self._reflection is not None
        services, descriptor = self._reflection
        async for request in requests:
            yield services if b"\x3a" in request[:1] else descriptor


def _framed(content: bytes) -> tuple[bytes, bytes]:
    size = int.from_bytes(content[1:5], "big")
    return content[5 : 5 + size], content[10 + size :]


async def _serve(arguments: argparse.Namespace) -> None:
    server = grpc.aio.server(handlers=(Echo(arguments),), options=_OPTIONS)
    port = server.add_insecure_port(f"127.0.0.1:{arguments.port}")
    await server.start()
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    print(json.dumps({"port": port, "pid": os.getpid()}), flush=True)
    await asyncio.wait([asyncio.ensure_future(stopping.wait())], timeout=arguments.lifetime_s)
    await server.stop(0)


def main() -> None:
    """Serve until SIGTERM or for ``--lifetime-s``."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fallback.echo", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--path", default="/bench.Echo/Call")
    parser.add_argument("--service-us", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--queue", type=int, default=100_000)
    parser.add_argument("--lifetime-s", type=int, default=3600)
    parser.add_argument("--reflection")
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
