"""What operators see of keys: AdminService, `relay idem`, metrics."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from protos.relay.v1 import admin_pb2, admin_pb2_grpc
from tests.integration.idempotency.sites import METHOD, Site, charge, policy_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def relay(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay_service", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three_keys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """One done, one whose outcome nobody knows, one that was never seen."""
    folder = tmp_path_factory.mktemp("three-keys")
    site = Site(folder, f"sqlite:{folder / 'relay.db'}")
    try:
        await site.start(policy_of("NONE"))
        await charge(site.relays[0], "done")
        await site.set_faults({"failure": {"code": 13, "when": "WHEN_AFTER_EFFECT"}})
        await charge(site.relays[0], "open")
        yield site
    finally:
        await site.stop()


async def test_a_key_is_shown_and_an_open_outcome_is_listed(three_keys: Site) -> None:
    admin = ["--address", three_keys.relays[0].admin]
    code, out, _ = await relay("idem", "show", "done", METHOD, "--json", *admin)
    shown = json.loads(out)
    assert (code, shown["state"], shown["code"], shown["claims"]) == (0, "DONE", "OK", 1)
    code, out, _ = await relay("idem", "ambiguous", *admin)
    assert (code, out.split()[:3]) == (1, ["open", METHOD, "AMBIGUOUS"])
    code, out, err = await relay("idem", "show", "never", METHOD, *admin)
    assert (code, out) == (1, "")
    assert "NOT_FOUND" in err


async def test_what_keys_came_to_is_counted(three_keys: Site) -> None:
    again = await charge(three_keys.relays[0], "done")
    assert again.trailers["relay-durability"].startswith("sqlite")
    keys = await three_keys.keys(0)
    assert (keys.decisions["execute"], keys.decisions["replay"]) == (2, 1)
    assert (keys.settled["kept"], keys.settled["ambiguous"], keys.stale_writes) == (1, 1, 0)
    _, out, _ = await relay("stats", "--address", three_keys.relays[0].admin)
    assert "Idempotency keys" in out


async def test_the_health_of_the_store_is_told(three_keys: Site) -> None:
    health = await _ask(three_keys, "GetHealth", admin_pb2.GetHealthRequest())
    assert (health.serving, health.store.trouble) == (True, "")
    assert health.store.durability.startswith("sqlite")


async def test_a_page_that_cannot_be_is_refused(three_keys: Site) -> None:
    for request in (
        admin_pb2.ListAmbiguousRequest(page_size=-1),
        admin_pb2.ListAmbiguousRequest(page_token="made up"),  # noqa: S106 (a page, not a password)
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _ask(three_keys, "ListAmbiguous", request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_relay_without_a_store_says_that_it_keeps_no_keys(site: Site) -> None:
    await site.start({"relay": {"preset": "default"}}, 0)
    await site.add_relay()
    told = await charge(site.relays[0], "k")
    assert (told.code, told.status) == (grpc.StatusCode.OK, "")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await site.ambiguous()
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def _ask(site: Site, rpc: str, request: Any) -> Any:
    async with grpc.aio.insecure_channel(site.relays[0].admin) as channel:
        return await getattr(admin_pb2_grpc.AdminServiceStub(channel), rpc)(request, timeout=10)
