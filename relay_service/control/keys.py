"""What AdminService tells of idempotency keys and of their store."""

import asyncio
import math

from protos.relay.v1 import admin_pb2
from relay_service.control.refusals import Context, end
from relay_service.core.idempotency import Record, RecordState, Scope
from relay_service.core.status import Code
from relay_service.idempotency.answer import Answer, UnreadableAnswerError
from relay_service.stores.interface import InvalidPageTokenError, Store, StoreError
from relay_service.times import timestamp

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000
STORE_PATIENCE_S = 2.0

# Generic in its type stubs only.


class KeyViewer:
    """Reads keys for AdminService; without a store every question is FAILED_PRECONDITION."""

    def __init__(self, store: Store | None) -> None:
        self._store = store

    async def ambiguous(
        self, request: admin_pb2.ListAmbiguousRequest, context: Context
    ) -> admin_pb2.ListAmbiguousResponse:
        """A page of keys whose outcome nobody knows."""
        store = await self._open_store(context)
        if not 0 <= request.page_size <= PAGE_SIZE_MAX:
            await end(context, Code.INVALID_ARGUMENT, f"page_size must be 0 to {PAGE_SIZE_MAX}")
        limit = request.page_size or PAGE_SIZE_DEFAULT
        try:
            async with asyncio.timeout(STORE_PATIENCE_S):
                records, token = await store.ambiguous(tenant=None, after=request.page_token, limit=limit)
        except InvalidPageTokenError as error:
            await end(context, Code.INVALID_ARGUMENT, f"page_token: {error}")
        except (StoreError, TimeoutError) as error:
            await end(context, Code.UNAVAILABLE, f"the store does not answer: {error}")
        found = [record_message(record) for record in records]
        return admin_pb2.ListAmbiguousResponse(records=found, next_page_token=token)

    async def record(
        self, request: admin_pb2.GetIdempotencyRecordRequest, context: Context
    ) -> admin_pb2.GetIdempotencyRecordResponse:
        """One key."""
        store = await self._open_store(context)
        scope = Scope(request.tenant, request.method, request.key.encode())
        try:
            async with asyncio.timeout(STORE_PATIENCE_S):
                record = await store.look_up(scope)
        except (StoreError, TimeoutError) as error:
            await end(context, Code.UNAVAILABLE, f"the store does not answer: {error}")
        if record is None:
            await end(context, Code.NOT_FOUND, f"nothing is known of this key for {request.method}")
        return admin_pb2.GetIdempotencyRecordResponse(record=record_message(record))

    async def health(self) -> admin_pb2.StoreHealth | None:
        """How the store is; None without one."""
        if self._store is None:
            return None
        try:
            async with asyncio.timeout(STORE_PATIENCE_S):
                trouble = await self._store.healthy()
        except TimeoutError:
            trouble = f"no answer within {STORE_PATIENCE_S:g} s"
        durability = self._store.durability
        return admin_pb2.StoreHealth(durability=durability.name, meaning=durability.meaning, trouble=trouble)

    async def _open_store(self, context: Context) -> Store:
        if self._store is None:
            await end(
                context, Code.FAILED_PRECONDITION, "this relay keeps no keys: it has no store (--store)"
            )
        return self._store


def record_message(record: Record) -> admin_pb2.IdempotencyRecord:
    """A record without what callers sent and got: only how large the answer is, and its code."""
    message = admin_pb2.IdempotencyRecord(
        tenant=record.scope.tenant,
        method=record.scope.method,
        key=record.scope.key.decode("ascii", "replace"),
        state=record.state.name,
        owner=record.owner,
        fence=record.fence,
        claims=record.attempts,
        first_seen_time=timestamp(record.first_seen),
        change_time=timestamp(record.changed_at),
        fingerprint=record.fingerprint,
        reference=record.reference,
    )
    if record.state is RecordState.IN_PROGRESS:
        message.lease_expire_time.CopyFrom(timestamp(record.lease_until))
    if math.isfinite(record.expires_at):
        message.expire_time.CopyFrom(timestamp(record.expires_at))
    if record.answer is not None:
        message.answer_bytes = len(record.answer)
        message.code = _code_of(record.answer)
    return message


def _code_of(answer: bytes) -> str:
    try:
        return Answer.decode(answer).code.name
    except UnreadableAnswerError:
        return "unreadable"
