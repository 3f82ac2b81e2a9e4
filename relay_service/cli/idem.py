"""``relay idem``: what a running relay's store knows of idempotency keys."""

import json
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer

from relay_service.cli.admin_target import admin_target
from relay_service.cli.failures import BROKEN, COULD_NOT_TELL, fail

ANSWER_TIMEOUT_S = 5.0
PAGE_SIZE = 500

app = typer.Typer(
    name="idem",
    help="Look up idempotency keys.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Address = Annotated[
    str | None,
    typer.Option("--address", "-a", help="The relay's admin address (RELAY_ADMIN_LISTEN) by default."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one line for each key.")]


@app.command("show")
def show(
    key: Annotated[str, typer.Argument(help="The key as the caller sent it.")],
    method: Annotated[str, typer.Argument(help="package.Service/Method.")],
    *,
    tenant: Annotated[str, typer.Option(help="Whose key it is; empty for callers without an identity.")] = "",
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Show what is known of one key; exit code 1 when nothing is."""
    from protos.relay.v1 import admin_pb2

    request = admin_pb2.GetIdempotencyRecordRequest(method=method, key=key, tenant=tenant)
    answer = _ask(address, lambda stub: stub.GetIdempotencyRecord(request, timeout=ANSWER_TIMEOUT_S))
    _print(answer.record, as_json=as_json)


@app.command("ambiguous")
def ambiguous(*, address: Address = None, as_json: AsJson = False) -> None:
    """List the keys whose outcome nobody knows; exit code 1 when there are any."""
    from protos.relay.v1 import admin_pb2

    count, token = 0, ""
    while True:
        request = admin_pb2.ListAmbiguousRequest(page_size=PAGE_SIZE, page_token=token)
        page = _ask(address, partial(_page, request))
        for record in page.records:
            _print(record, as_json=as_json)
        count += len(page.records)
        token = page.next_page_token
        if not token:
            break
    if count:
        raise typer.Exit(BROKEN)


def _page(request: Any, stub: Any) -> Any:
    return stub.ListAmbiguous(request, timeout=ANSWER_TIMEOUT_S)


def _ask(address: str | None, question: Callable[[Any], Any]) -> Any:
    import grpc

    from protos.relay.v1.admin_pb2_grpc import AdminServiceStub

    target = admin_target(address)
    with grpc.insecure_channel(target) as channel:
        try:
            return question(AdminServiceStub(channel))
        except grpc.RpcError as error:
            # What grpc raises is a call as well; its stubs do not say so.
            call: Any = error
            missing = call.code() is grpc.StatusCode.NOT_FOUND
            fail(f"{target}: {call.code().name}: {call.details()}", BROKEN if missing else COULD_NOT_TELL)


def _print(record: Any, *, as_json: bool) -> None:
    from google.protobuf.json_format import MessageToDict

    fields = MessageToDict(record, preserving_proto_field_name=True)
    if as_json:
        typer.echo(json.dumps(fields))
        return
    owner = f", {record.reference}" if record.reference else ""
    code = f" {record.code}" if record.code else ""
    since = record.first_seen_time.ToJsonString()
    claims = f"{record.claims} claims" if record.claims != 1 else "1 claim"
    typer.echo(f"{record.key}  {record.method}  {record.state}{code}{owner}  since {since}, {claims}")
