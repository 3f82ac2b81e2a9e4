"""The payment service itself: checks requests, applies effects, reads and follows the ledger."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final

from downstream_service.book import PageQuery
from downstream_service.calls import KEY_METADATA_KEY, Calls, Context, checked_key
from downstream_service.effects import Effects
from downstream_service.errors import InvalidInputError
from downstream_service.ledger import Ledger, LedgerClosingError
from protos.downstream.v1 import payment_pb2, payment_pb2_grpc

SERVICE: Final = payment_pb2.DESCRIPTOR.services_by_name["PaymentService"].full_name

ACCOUNT_LENGTH_MAX: Final = 200
NOTE_LENGTH_MAX: Final = 2_000
CURRENCY_LENGTH: Final = 3
BATCH_ITEMS_MAX: Final = 1_000
PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1_000
PADDING_BYTES_MAX: Final = 1 << 20
FOLLOW_CHUNK: Final = 100
AUTHORIZE_AMOUNT_MINOR_MAX: Final = 1_000_000


class PaymentService(payment_pb2_grpc.PaymentServiceServicer):
    """The servicer of ``downstream.v1.PaymentService``; the proto says what each method promises.

    The streaming methods write instead of yielding: a generator that is suspended at a ``yield`` when its
    call is cancelled would only end with the garbage collection.

    Mutable state: whether the service is draining.
    """

    def __init__(self, calls: Calls, effects: Effects, ledger: Ledger) -> None:
        self._calls = calls
        self._effects = effects
        self._ledger = ledger
        self._draining = False

    def drain(self) -> None:
        """End the streams that would never end by themselves."""
        self._draining = True
        self._ledger.stop_following()

    async def Charge(
        self, request: payment_pb2.ChargeRequest, context: Context
    ) -> payment_pb2.ChargeResponse:
        """Take money once."""
        async with self._calls.attend(f"{SERVICE}/Charge", context) as call:
            check_charge(request, "")
            posted = await self._effects.charge(request, call.key)
            call.posted(posted)
            # Parsed and written again by the same library, the stored bytes come out as they went in.
            return payment_pb2.ChargeResponse.FromString(posted.reply)

    async def ChargeBatch(
        self, request: payment_pb2.ChargeBatchRequest, context: Context
    ) -> payment_pb2.ChargeBatchResponse:
        """Take money many times."""
        async with self._calls.attend(f"{SERVICE}/ChargeBatch", context) as call:
            if not 1 <= len(request.items) <= BATCH_ITEMS_MAX:
                raise InvalidInputError("items", f"must be 1 to {BATCH_ITEMS_MAX}, not {len(request.items)}")
            posted = await self._effects.charge_batch(request, _problems(request), call.key)
            call.posted(posted)
            return payment_pb2.ChargeBatchResponse.FromString(posted.reply)

    async def ListCharges(
        self, request: payment_pb2.ListChargesRequest, context: Context
    ) -> payment_pb2.ListChargesResponse:
        """Read one page."""
        async with self._calls.attend(f"{SERVICE}/ListCharges", context):
            page = await self._effects.page(_page_query(request))
            return payment_pb2.ListChargesResponse(
                charges=page.charges,
                next_page_token=str(page.charges[-1].sequence) if page.has_more else "",
                total_charges=page.total_charges,
                duplicate_keys=page.duplicate_keys,
            )

    async def WatchCharges(  # type: ignore[override]  # grpcio takes coroutines that write, too
        self, request: payment_pb2.WatchChargesRequest, context: Context
    ) -> None:
        """Follow the ledger, or stream made-up entries; no faster than the reader takes them."""
        async with self._calls.attend(f"{SERVICE}/WatchCharges", context) as call:
            _check_watch(request)
            charges = self._made_up(request.after_sequence) if request.synthetic else self._followed(request)
            response = payment_pb2.WatchChargesResponse(padding=bytes(request.padding_bytes))
            sent = 0
            async with aclosing(charges):
                async for charge in charges:
                    response.charge.CopyFrom(charge)
                    # Returns when flow control has taken the message: this await is the backpressure.
                    await context.write(response)
                    sent += 1
                    if sent == 1:
                        await call.first_message_sent()
                    if sent == request.max_charges:
                        return

    async def UploadCharges(
        self, request_iterator: AsyncIterator[payment_pb2.UploadChargesRequest], context: Context
    ) -> payment_pb2.UploadChargesResponse:
        """Take money for each message, one after the other."""
        async with self._calls.attend(f"{SERVICE}/UploadCharges", context) as call:
            if call.key:
                raise InvalidInputError(KEY_METADATA_KEY, "covers no stream: put a key into each message")
            summary = payment_pb2.UploadChargesResponse()
            async for request in request_iterator:
                path = f"messages[{summary.received}]."
                check_charge(request.charge, f"{path}charge.")
                key = checked_key(request.idempotency_key, f"{path}idempotency_key")
                posted = await self._effects.charge(request.charge, key)
                summary.received += 1
                summary.received_bytes += request.ByteSize()
                summary.charged += not posted.replayed
                summary.replayed += posted.replayed
            return summary

    async def Authorize(  # type: ignore[override]  # grpcio takes coroutines that write, too
        self, request_iterator: AsyncIterator[payment_pb2.AuthorizeRequest], context: Context
    ) -> None:
        """Decide each request in turn."""
        async with self._calls.attend(f"{SERVICE}/Authorize", context) as call:
            first = True
            async for request in request_iterator:
                await self._effects.think()
                await context.write(_decision(request))
                if first:
                    first = False
                    await call.first_message_sent()

    async def _followed(
        self, request: payment_pb2.WatchChargesRequest
    ) -> AsyncGenerator[payment_pb2.Charge, None]:
        sequence = request.after_sequence
        while True:
            for charge in await self._ledger.after(sequence, FOLLOW_CHUNK):
                sequence = charge.sequence
                yield charge

    async def _made_up(self, sequence: int) -> AsyncGenerator[payment_pb2.Charge, None]:
        while not self._draining:
            sequence += 1
            yield payment_pb2.Charge(
                charge_id=f"made_up_{sequence}",
                sequence=sequence,
                account="made-up",
                amount_minor=1,
                currency="XXX",
            )
        raise LedgerClosingError


def check_charge(request: payment_pb2.ChargeRequest, path: str) -> None:
    """Check what is to be charged; raises ``InvalidInputError`` with ``path`` before the field."""
    if not 1 <= len(request.account) <= ACCOUNT_LENGTH_MAX:
        raise InvalidInputError(f"{path}account", f"must be 1 to {ACCOUNT_LENGTH_MAX} characters")
    if request.amount_minor <= 0:
        raise InvalidInputError(
            f"{path}amount_minor", f"must be greater than zero, not {request.amount_minor}"
        )
    currency = request.currency
    if len(currency) != CURRENCY_LENGTH or not (
        currency.isascii() and currency.isalpha() and currency.isupper()
    ):
        raise InvalidInputError(f"{path}currency", f"must be three capital letters, not {currency!r}")
    if len(request.note) > NOTE_LENGTH_MAX:
        raise InvalidInputError(f"{path}note", f"must be at most {NOTE_LENGTH_MAX} characters")


def _problems(request: payment_pb2.ChargeBatchRequest) -> dict[int, str]:
    """Return by index what is wrong with a batch's items."""
    problems = {}
    for index, item in enumerate(request.items):
        path = f"items[{index}]."
        try:
            check_charge(item.charge, f"{path}charge.")
            checked_key(item.idempotency_key, f"{path}idempotency_key")
        except InvalidInputError as error:
            problems[index] = str(error)
    return problems


def _page_query(request: payment_pb2.ListChargesRequest) -> PageQuery:
    if not 0 <= request.page_size <= PAGE_SIZE_MAX:
        raise InvalidInputError("page_size", f"must be 0 to {PAGE_SIZE_MAX}, not {request.page_size}")
    token = request.page_token
    # Eighteen digits always fit the database's integers.
    if token and not (token.isascii() and token.isdigit() and len(token) <= 18):
        raise InvalidInputError("page_token", "must come from a previous response")
    return PageQuery(
        limit=request.page_size or PAGE_SIZE_DEFAULT,
        before_sequence=int(token or 0),
        account=request.account,
        idempotency_key=request.idempotency_key,
    )


def _check_watch(request: payment_pb2.WatchChargesRequest) -> None:
    if not 0 <= request.padding_bytes <= PADDING_BYTES_MAX:
        raise InvalidInputError(
            "padding_bytes", f"must be 0 to {PADDING_BYTES_MAX}, not {request.padding_bytes}"
        )
    if request.after_sequence < 0:
        raise InvalidInputError("after_sequence", "must not be negative")
    if request.max_charges < 0:
        raise InvalidInputError("max_charges", "must not be negative")


def _decision(request: payment_pb2.AuthorizeRequest) -> payment_pb2.AuthorizeResponse:
    reason = ""
    try:
        check_charge(request.charge, "charge.")
    except InvalidInputError as error:
        reason = str(error)
    else:
        if request.charge.amount_minor > AUTHORIZE_AMOUNT_MINOR_MAX:
            reason = f"more than {AUTHORIZE_AMOUNT_MINOR_MAX} minor units"
    return payment_pb2.AuthorizeResponse(request_id=request.request_id, approved=not reason, reason=reason)
