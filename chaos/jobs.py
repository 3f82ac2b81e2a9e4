"""The relay's own word on its durable jobs, asked for when all is over, past every proxy."""

import asyncio
import time

import grpc

from chaos.client import CHANNEL_OPTIONS
from chaos.history import JobRecord
from protos.relay.v1 import job_pb2, job_pb2_grpc

PAGE_SIZE = 1000
PAGES_MAX = 2000
CALL_TIMEOUT_S = 5.0
BEAT_S = 0.2
UNFINISHED = (job_pb2.JOB_STATE_PENDING, job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_PAUSED)


async def jobs_in_the_end(address: str, within_s: float) -> tuple[JobRecord, ...]:
    """Every job the relay at ``address`` knows, once none is unfinished or ``within_s`` is over.

    A relay that cannot say in that time has none: what it had accepted is then missing from its books.
    """
    give_up_s = time.monotonic() + within_s
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stub: job_pb2_grpc.JobServiceAsyncStub = job_pb2_grpc.JobServiceStub(channel)
        while True:
            try:
                late = time.monotonic() >= give_up_s
                if late or not await _unfinished(stub):
                    return await _all(stub)
            except grpc.aio.AioRpcError:
                if late:
                    return ()
            await asyncio.sleep(BEAT_S)


async def _unfinished(stub: "job_pb2_grpc.JobServiceAsyncStub") -> bool:
    request = job_pb2.ListJobsRequest(filter=job_pb2.JobFilter(states=UNFINISHED), page_size=1)
    return bool((await stub.ListJobs(request, timeout=CALL_TIMEOUT_S)).jobs)


async def _all(stub: "job_pb2_grpc.JobServiceAsyncStub") -> tuple[JobRecord, ...]:
    found: list[JobRecord] = []
    request = job_pb2.ListJobsRequest(page_size=PAGE_SIZE)
    for _ in range(PAGES_MAX):
        page = await stub.ListJobs(request, timeout=CALL_TIMEOUT_S)
        found += [_record(job) for job in page.jobs]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    return tuple(found)


def _record(job: job_pb2.Job) -> JobRecord:
    state = job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()
    return JobRecord(job.id, job.work.idempotency_key, state, job.attempts, job.lost_leases)
