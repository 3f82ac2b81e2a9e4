"""JobService: durable jobs over gRPC."""

from collections.abc import AsyncIterator, Callable
from typing import Never

from protos.relay.v1 import job_pb2
from protos.relay.v1.job_pb2_grpc import JobServiceServicer
from relay_service import contract
from relay_service.control.job_proto import (
    UnreadableMessageError,
    job_filter_of,
    job_message,
    work_of,
)
from relay_service.control.refusals import Context, end, refuse, refuse_field
from relay_service.core.job import Job
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.jobs.office import JobsOffice
from relay_service.jobs.submitting import Order, SubmissionRefusedError
from relay_service.methods import MethodFacts
from relay_service.stores.interface import InvalidPageTokenError, JobFilter, StoreUnavailableError
from relay_service.times import seconds

PAGE = 100
PAGE_MAX = 1_000
DURABILITY = "relay-durability"

Facts = Callable[[str], MethodFacts | None]
"""What is known of ``package.Service/Method``."""


class Jobs(JobServiceServicer):
    """Answers from the office; names what a payload is where the upstream's reflection has told."""

    def __init__(self, office: JobsOffice, facts: Facts) -> None:
        self._office = office
        self._store = office.store
        self._facts = facts

    async def Submit(self, request: job_pb2.SubmitRequest, context: Context) -> job_pb2.SubmitResponse:
        """Accept a job; answered after the commit."""
        try:
            order = Order(
                work_of(request.work, tenant_of(context), _traceparent(context)),
                seconds(request.delay),
                seconds(request.time_to_live) if request.HasField("time_to_live") else None,
            )
            await self._check_type(request, context)
            accepted = await self._office.submitter.submit(order)
        except UnreadableMessageError as error:
            await refuse(context, Reason.JOB_INVALID, str(error))
        except SubmissionRefusedError as error:
            details = {"reference": error.reference} if error.reference else {}
            await refuse(context, error.reason, str(error), method=request.work.method, **details)
        if accepted.is_new:
            self._office.workers.wake()
        context.set_trailing_metadata(((DURABILITY, self._store.durability.name),))
        return job_pb2.SubmitResponse(
            job=self._message(accepted.job, payloads=False), existed=not accepted.is_new
        )

    async def _check_type(self, request: job_pb2.SubmitRequest, context: Context) -> None:
        """A request of another type would be found out by the upstream, much later."""
        facts = self._facts(request.work.method)
        given = request.work.request.type_url.rpartition("/")[2]
        if facts is not None and given and given != facts.input_type:
            await refuse(
                context,
                Reason.JOB_INVALID,
                f"{request.work.method} takes {facts.input_type}, the job holds {given}",
            )

    async def GetJob(self, request: job_pb2.GetJobRequest, context: Context) -> job_pb2.GetJobResponse:
        """One job."""
        job = await self._find(request.id, context)
        return job_pb2.GetJobResponse(job=self._message(job, payloads=request.include_payloads))

    async def ListJobs(self, request: job_pb2.ListJobsRequest, context: Context) -> job_pb2.ListJobsResponse:
        """A page of jobs."""
        which = await _filter(request.filter, context)
        if not 0 <= request.page_size <= PAGE_MAX:
            await refuse_field(context, "page_size", f"must be from 0 to {PAGE_MAX}")
        try:
            jobs, token = await self._store.jobs(
                which, after=request.page_token, limit=request.page_size or PAGE
            )
        except InvalidPageTokenError as error:
            await refuse_field(context, "page_token", f"is not one: {error}")
        except StoreUnavailableError as error:
            await refuse(context, Reason.STORE_UNAVAILABLE, str(error))
        return job_pb2.ListJobsResponse(
            jobs=[self._message(job, payloads=request.include_payloads) for job in jobs],
            next_page_token=token,
        )

    async def WatchJob(
        self, request: job_pb2.WatchJobRequest, context: Context
    ) -> AsyncIterator[job_pb2.WatchJobResponse]:
        """The job and its changes."""
        await self._find(request.id, context)
        try:
            async for job in self._store.job_changes(request.id):
                yield job_pb2.WatchJobResponse(job=self._message(job, payloads=request.include_payloads))
        except StoreUnavailableError as error:
            await refuse(context, Reason.STORE_UNAVAILABLE, str(error))

    async def CancelJob(
        self, request: job_pb2.CancelJobRequest, context: Context
    ) -> job_pb2.CancelJobResponse:
        """Cancel; a run of this relay is given up at once, another relay's at its next heartbeat."""
        await self._find(request.id, context)
        try:
            job = await self._store.cancel(request.id)
        except StoreUnavailableError as error:
            await refuse(context, Reason.STORE_UNAVAILABLE, str(error))
        if job is None:
            await _no_such_job(context, request.id)
        self._office.workers.give_up(request.id)
        return job_pb2.CancelJobResponse(job=self._message(job, payloads=False))

    async def PauseJobs(
        self, request: job_pb2.PauseJobsRequest, context: Context
    ) -> job_pb2.PauseJobsResponse:
        """Hold waiting jobs back."""
        which = await _filter(request.filter, context)
        try:
            return job_pb2.PauseJobsResponse(paused=await self._store.pause(which))
        except StoreUnavailableError as error:
            await refuse(context, Reason.STORE_UNAVAILABLE, str(error))

    async def ResumeJobs(
        self, request: job_pb2.ResumeJobsRequest, context: Context
    ) -> job_pb2.ResumeJobsResponse:
        """Let them run again."""
        which = await _filter(request.filter, context)
        try:
            resumed = await self._store.resume(which)
        except StoreUnavailableError as error:
            await refuse(context, Reason.STORE_UNAVAILABLE, str(error))
        self._office.workers.wake()
        return job_pb2.ResumeJobsResponse(resumed=resumed)

    async def _find(self, job_id: str, context: Context) -> Job:
        """The job, if it is the caller's: another tenant's is not there for it."""
        try:
            job = await self._store.job(job_id)
        except StoreUnavailableError as error:
            await refuse(context, Reason.STORE_UNAVAILABLE, str(error))
        if job is None or job.work.tenant != tenant_of(context):
            await _no_such_job(context, job_id)
        return job

    def _message(self, job: Job, *, payloads: bool) -> job_pb2.Job:
        return job_message(job, self._facts(job.work.method) if payloads else None, payloads=payloads)


async def _filter(message: job_pb2.JobFilter, context: Context) -> JobFilter:
    try:
        return job_filter_of(message, tenant_of(context))
    except UnreadableMessageError as error:
        await refuse_field(context, "filter", str(error))


async def _no_such_job(context: Context, job_id: str) -> Never:
    await end(context, Code.NOT_FOUND, f"no job {job_id[:200]!r}; those that ended are kept for a while only")


def tenant_of(context: Context) -> str:
    """Who calls, as the data plane has verified it; empty for all callers without an identity."""
    for name, value in context.invocation_metadata() or ():
        if name == contract.IDENTITY.decode() and isinstance(value, bytes):
            return value.decode()
    return ""


def _traceparent(context: Context) -> str:
    """The trace the submission is part of: the data plane's own span."""
    for name, value in context.invocation_metadata() or ():
        if name == "traceparent" and isinstance(value, str):
            return value
    return ""
