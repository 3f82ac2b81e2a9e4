"""Knows every handler on a grpcio server, so that a stop leaves none behind and no client hanging."""

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

_Behaviour = Callable[[Any, Any], Awaitable[Any]]


class CallTracker(grpc.aio.ServerInterceptor):
    """Mends two things in grpcio's asyncio server.

    ``Server.stop`` returns before the handlers it aborted have ended (grpc/grpc#37239): `wait_ended`
    waits for them. And a CancelledError that leaves a handler sends no status at all, so its client
    waits for its deadline: unless the call itself was cancelled, it is told UNAVAILABLE.

    State: ``_running`` (the task of each handler), ``_streaming`` (those that stream), ``_ended_by_us``.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._streaming: set[asyncio.Task[Any]] = set()
        self._ended_by_us: set[asyncio.Task[Any]] = set()

    @property
    def running(self) -> int:
        """Handlers that have not ended."""
        return len(self._running)

    def end_streams(self) -> None:
        """End what would never end by itself: its client is told UNAVAILABLE and may come back elsewhere."""
        for task in self._streaming - self._ended_by_us:
            self._ended_by_us.add(task)
            task.cancel()

    async def wait_ended(self, timeout_s: float) -> None:
        """Wait for the handlers that still run, but not longer than this."""
        if self._running:
            await asyncio.wait(self._running, timeout=timeout_s)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """grpcio's hook: the handler for a call, wrapped."""
        handler = await continuation(handler_call_details)
        return None if handler is None else self._wrapped(handler)

    def _wrapped(self, handler: Any) -> Any:
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        match handler.request_streaming, handler.response_streaming:
            case False, False:
                return grpc.unary_unary_rpc_method_handler(self._tracked(handler.unary_unary), **codecs)
            case False, True:
                behaviour = self._tracked_stream(handler.unary_stream)
                return grpc.unary_stream_rpc_method_handler(behaviour, **codecs)
            case True, False:
                return grpc.stream_unary_rpc_method_handler(self._tracked(handler.stream_unary), **codecs)
            case _:
                behaviour = self._tracked_stream(handler.stream_stream)
                return grpc.stream_stream_rpc_method_handler(behaviour, **codecs)

    def _tracked(self, behaviour: _Behaviour) -> _Behaviour:
        async def run(request: Any, context: Any) -> Any:
            task = _current_task()
            self._running.add(task)
            task.add_done_callback(self._forget)
            try:
                return await behaviour(request, context)
            except asyncio.CancelledError:
                if task in self._ended_by_us:
                    task.uncancel()
                if task.cancelling():
                    raise
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the relay is shutting down")

        return run

    def _tracked_stream(self, behaviour: Callable[[Any, Any], Any]) -> _Behaviour:
        async def run(request: Any, context: Any) -> None:
            self._streaming.add(_current_task())
            answers = behaviour(request, context)
            if not inspect.isasyncgen(answers):
                await answers
                return
            async with contextlib.aclosing(answers):
                async for answer in answers:
                    await context.write(answer)

        return self._tracked(run)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        for tasks in (self._running, self._streaming, self._ended_by_us):
            tasks.discard(task)


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a handler runs outside of any task")
    return task
