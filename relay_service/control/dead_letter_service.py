"""DeadLetterService: what could not be done, and what is decided about it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Never, TypeVar

from protos.relay.v1 import dead_letter_pb2
from protos.relay.v1.dead_letter_pb2_grpc import DeadLetterServiceServicer
from relay_service import contract
from relay_service.control.job_proto import (
    UnreadableMessageError,
    end_message,
    forecast_message,
    group_message,
    letter_filter_of,
    letter_message,
    letter_of,
    report_message,
)
from relay_service.control.job_service import PAGE, PAGE_MAX, Facts
from relay_service.control.refusals import Context, end, refuse, refuse_field
from relay_service.core.job import DeadLetter, LetterState
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.jobs.letters import LetterNotOpenError
from relay_service.jobs.office import JobsOffice
from relay_service.jobs.replaying import ReplayPlan, ReplayReport
from relay_service.stores.interface import InvalidPageTokenError, LetterFilter, StoreUnavailableError
from relay_service.times import seconds

RATE_MAX = 10_000.0
WAIT_MAX_S = 3_600.0
BY_CHARS_MAX = 200
NOTE_CHARS_MAX = 1_000


class DeadLetters(DeadLetterServiceServicer):
    """Answers from the office; see the proto for what each method promises."""

    def __init__(self, office: JobsOffice, facts: Facts) -> None:
        self._office = office
        self._store = office.store
        self._facts = facts

    # Looking ------------------------------------------------------------------------------------

    async def GetLetter(
        self, request: dead_letter_pb2.GetLetterRequest, context: Context
    ) -> dead_letter_pb2.GetLetterResponse:
        """One letter."""
        letter = await self._find(request.id, context)
        return dead_letter_pb2.GetLetterResponse(letter=self._message(letter, request.include_payloads))

    async def ListLetters(
        self, request: dead_letter_pb2.ListLettersRequest, context: Context
    ) -> dead_letter_pb2.ListLettersResponse:
        """A page of letters."""
        which = await _filter(request.filter, context)
        if not 0 <= request.page_size <= PAGE_MAX:
            await refuse_field(context, "page_size", f"must be from 0 to {PAGE_MAX}")
        try:
            letters, token = await self._store.letters(
                which, after=request.page_token, limit=request.page_size or PAGE
            )
        except InvalidPageTokenError as error:
            await refuse_field(context, "page_token", f"is not one: {error}")
        except StoreUnavailableError as error:
            await _away(context, error)
        return dead_letter_pb2.ListLettersResponse(
            letters=[self._message(letter, request.include_payloads) for letter in letters],
            next_page_token=token,
        )

    async def GroupLetters(
        self, request: dead_letter_pb2.GroupLettersRequest, context: Context
    ) -> dead_letter_pb2.GroupLettersResponse:
        """Counts."""
        which = await _filter(request.filter, context)
        try:
            groups = await self._store.groups(which)
        except StoreUnavailableError as error:
            await _away(context, error)
        return dead_letter_pb2.GroupLettersResponse(groups=[group_message(group) for group in groups])

    async def Export(
        self, request: dead_letter_pb2.ExportRequest, context: Context
    ) -> AsyncIterator[dead_letter_pb2.ExportResponse]:
        """All of a filter, whole."""
        which = await _filter(request.filter, context)
        try:
            async for letter in self._office.letters.each(which):
                yield dead_letter_pb2.ExportResponse(letter=self._message(letter, True))
        except StoreUnavailableError as error:
            await _away(context, error)

    # Replaying ----------------------------------------------------------------------------------

    async def PlanReplay(
        self, request: dead_letter_pb2.PlanReplayRequest, context: Context
    ) -> AsyncIterator[dead_letter_pb2.PlanReplayResponse]:
        """Forecasts, in the order in which a replay would begin."""
        which = await _filter(request.filter, context)
        try:
            for letter in await self._office.replayer.chosen(which):
                forecast = await self._office.letters.forecast(letter)
                yield dead_letter_pb2.PlanReplayResponse(forecast=forecast_message(forecast))
        except StoreUnavailableError as error:
            await _away(context, error)

    async def Replay(
        self, request: dead_letter_pb2.ReplayRequest, context: Context
    ) -> AsyncIterator[dead_letter_pb2.ReplayResponse]:
        """Ends as they come, then the report."""
        plan = await self._plan(request, context)
        report = ReplayReport()
        told_total = False
        try:
            async for one in self._office.replayer.run(plan, report):
                if not told_total:
                    told_total = True
                    yield dead_letter_pb2.ReplayResponse(total=report.total)
                yield dead_letter_pb2.ReplayResponse(end=end_message(one))
        except StoreUnavailableError as error:
            await _away(context, error)
        if not told_total:
            yield dead_letter_pb2.ReplayResponse(total=report.total)
        yield dead_letter_pb2.ReplayResponse(report=report_message(report))

    async def _plan(self, request: dead_letter_pb2.ReplayRequest, context: Context) -> ReplayPlan:
        which = await _filter(request.filter, context)
        if not 0 <= request.rate_per_second <= RATE_MAX:
            await refuse_field(context, "rate_per_second", f"must be from 0 to {RATE_MAX:g}")
        if request.canary < 0 or request.max_failures < 0:
            await refuse_field(context, "canary", "and max_failures must not be negative")
        default = ReplayPlan(which, request.by[:BY_CHARS_MAX])
        wait_s = seconds(request.wait) if request.HasField("wait") else default.wait_s
        if not 0 < wait_s <= WAIT_MAX_S:
            await refuse_field(context, "wait", f"must be above 0 and at most {WAIT_MAX_S:g} s")
        return ReplayPlan(
            which,
            default.by,
            rate_per_s=request.rate_per_second or default.rate_per_s,
            canary=request.canary if request.HasField("canary") else default.canary,
            failures_max=request.max_failures or default.failures_max,
            wait_s=wait_s,
        )

    async def EditAndReplay(
        self, request: dead_letter_pb2.EditAndReplayRequest, context: Context
    ) -> dead_letter_pb2.EditAndReplayResponse:
        """Other work under another key."""
        letter = await self._find(request.id, context)
        key = request.idempotency_key.encode("ascii", "replace")
        if key and (key == letter.work.key or not contract.is_key(key)):
            await refuse_field(
                context, "idempotency_key", "must be a new one of 1 to 255 printable ASCII characters"
            )

        async def edit() -> str:
            by = request.by[:BY_CHARS_MAX]
            return await self._office.letters.edit(letter, request.request.value, key, by)

        job_id = await _decided(context, edit)
        self._office.workers.wake()
        return dead_letter_pb2.EditAndReplayResponse(job_id=job_id)

    # Deciding -----------------------------------------------------------------------------------

    async def Hold(
        self, request: dead_letter_pb2.HoldRequest, context: Context
    ) -> dead_letter_pb2.HoldResponse:
        """Keep it from replays and expiry."""
        await self._set_state(request.id, LetterState.HELD, request.note, context)
        return dead_letter_pb2.HoldResponse()

    async def Release(
        self, request: dead_letter_pb2.ReleaseRequest, context: Context
    ) -> dead_letter_pb2.ReleaseResponse:
        """Open it again."""
        await self._set_state(request.id, LetterState.OPEN, request.note, context)
        return dead_letter_pb2.ReleaseResponse()

    async def Discard(
        self, request: dead_letter_pb2.DiscardRequest, context: Context
    ) -> dead_letter_pb2.DiscardResponse:
        """It need not be done."""
        if not request.reason.strip():
            await refuse_field(context, "reason", "must say why the work need not be done")
        await self._set_state(request.id, LetterState.DISCARDED, request.reason, context)
        return dead_letter_pb2.DiscardResponse()

    async def _set_state(self, letter_id: str, state: LetterState, note: str, context: Context) -> None:
        await self._find(letter_id, context)
        await _decided(
            context, lambda: self._office.letters.set_state(letter_id, state, note[:NOTE_CHARS_MAX])
        )

    async def Import(
        self, requests: AsyncIterator[dead_letter_pb2.ImportRequest], context: Context
    ) -> dead_letter_pb2.ImportResponse:
        """Take letters in; those before one that is unreadable are in already."""
        imported = known = 0
        async for request in requests:
            try:
                is_new = await self._office.letters.take_in(letter_of(request.letter))
            except UnreadableMessageError as error:
                await refuse_field(context, f"letters[{imported + known}]", f"is none: {error}")
            except StoreUnavailableError as error:
                await _away(context, error)
            imported += is_new
            known += not is_new
        return dead_letter_pb2.ImportResponse(imported=imported, known=known)

    # Shared -------------------------------------------------------------------------------------

    async def _find(self, letter_id: str, context: Context) -> DeadLetter:
        try:
            letter = await self._store.letter(letter_id)
        except StoreUnavailableError as error:
            await _away(context, error)
        if letter is None:
            await end(context, Code.NOT_FOUND, f"no dead letter {letter_id[:200]!r}")
        return letter

    def _message(self, letter: DeadLetter, payloads: bool) -> dead_letter_pb2.DeadLetter:
        facts = self._facts(letter.work.method) if payloads else None
        return letter_message(letter, facts, payloads=payloads)


async def _filter(message: dead_letter_pb2.LetterFilter, context: Context) -> LetterFilter:
    try:
        return letter_filter_of(message)
    except UnreadableMessageError as error:
        await refuse_field(context, "filter", str(error))


T = TypeVar("T")


async def _decided(context: Context, decision: Callable[[], Awaitable[T]]) -> T:
    """What was decided, or the end of the call when the letter's state does not allow it."""
    try:
        return await decision()
    except LetterNotOpenError as error:
        await end(context, Code.FAILED_PRECONDITION, str(error))
    except StoreUnavailableError as error:
        await _away(context, error)


async def _away(context: Context, error: StoreUnavailableError) -> Never:
    await refuse(context, Reason.STORE_UNAVAILABLE, str(error))
