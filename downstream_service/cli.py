"""The command line: ``relay-downstream serve`` and ``relay-downstream faults show|set|clear``."""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

# The core's own lines on stderr would only repeat the errors reported here. Set before grpc is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

app = typer.Typer(
    name="relay-downstream",
    help="A payment service that fails on purpose, to practise on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
faults_app = typer.Typer(help="See, set and clear the faults of a running service.", no_args_is_help=True)
app.add_typer(faults_app, name="faults")

ENV = "RELAY_DOWNSTREAM_"
CANNOT_TELL = 2
RPC_TIMEOUT_S = 5.0

Address = Annotated[str, typer.Option(envvar=f"{ENV}ADDRESS", help="Where the service listens.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.command()
def serve(  # noqa: PLR0917 (typer reads the options from the signature)
    listen: Annotated[
        str, typer.Option(envvar=f"{ENV}LISTEN", help="HOST:PORT; port 0 takes a free one.")
    ] = ("127.0.0.1:50052"),
    ledger: Annotated[
        str, typer.Option(envvar=f"{ENV}LEDGER", help="SQLite file, made if missing, or :memory:.")
    ] = ":memory:",
    faults: Annotated[
        Path | None,
        typer.Option(envvar=f"{ENV}FAULTS", help="Faults from the start: JSON of a SetFaultsRequest."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(envvar=f"{ENV}SEED", help="Seed of the fault draws; random and logged if not given."),
    ] = None,
    trace_file: Annotated[
        Path | None, typer.Option(envvar=f"{ENV}TRACE_FILE", help="Append spans as OTLP JSON lines.")
    ] = None,
    grace: Annotated[
        float, typer.Option(envvar=f"{ENV}GRACE", min=0.0, help="Seconds for calls in flight after SIGTERM.")
    ] = 10.0,
    log_level: Annotated[
        str, typer.Option(envvar=f"{ENV}LOG_LEVEL", help="debug, info, warning or error.")
    ] = "info",
    ignore_keys: Annotated[
        bool, typer.Option(envvar=f"{ENV}IGNORE_KEYS", help="Be naive: charge again for a key that was seen.")
    ] = False,
    metadata_faults: Annotated[
        bool, typer.Option(envvar=f"{ENV}METADATA_FAULTS", help="Let calls bring faults in their metadata.")
    ] = True,
    ready_json: Annotated[
        bool, typer.Option(envvar=f"{ENV}READY_JSON", help="Print one line of JSON on stdout when serving.")
    ] = False,
) -> None:
    """Run the service until SIGTERM or Ctrl-C; a second one ends it at once."""
    host, port = _host_and_port(listen)
    from downstream_service.app import Settings
    from downstream_service.app import serve as serve_until_stopped
    from downstream_service.book import KeyPolicy
    from downstream_service.calls import no_faults_of_call
    from downstream_service.errors import InvalidInputError
    from downstream_service.fault_input import faults_of_call
    from downstream_service.ledger import LedgerError
    from downstream_service.logs import LEVELS, configure_logs
    from downstream_service.server import BindError
    from downstream_service.telemetry import TelemetryError

    if log_level not in LEVELS:
        _fail(f"--log-level: must be one of {', '.join(LEVELS)}, not {log_level!r}")
    settings = Settings(
        host=host,
        port=port,
        ledger=ledger,
        faults_file=faults,
        seed=seed,
        trace_file=trace_file,
        key_policy=KeyPolicy.RECORD_ONLY if ignore_keys else KeyPolicy.ENFORCE,
        own_faults=faults_of_call if metadata_faults else no_faults_of_call,
        grace_s=grace,
    )
    announce = _print_ready if ready_json else _stay_silent
    try:
        _run(serve_until_stopped(settings, configure_logs(log_level), announce))
    except (InvalidInputError, LedgerError, TelemetryError, BindError) as error:
        _fail(str(error))


@faults_app.command("show")
def show_faults(address: Address = "127.0.0.1:50052", as_json: AsJson = False) -> None:
    """Show the faults in force, how often each has struck, and the counters."""
    from protos.downstream.v1 import fault_pb2

    state, counters = _with_service(
        address,
        lambda service: (
            service.GetFaults(fault_pb2.GetFaultsRequest(), timeout=RPC_TIMEOUT_S),
            service.GetCounters(fault_pb2.GetCountersRequest(), timeout=RPC_TIMEOUT_S),
        ),
    )
    if as_json:
        _print_json({"faults": _as_dict(state), "counters": _as_dict(counters)})
    else:
        _print_faults(state, counters)


@faults_app.command("set")
def set_faults(
    source: Annotated[
        str, typer.Argument(help="A file with the JSON of a SetFaultsRequest, or - for stdin.")
    ],
    address: Address = "127.0.0.1:50052",
    as_json: AsJson = False,
) -> None:
    """Replace every fault by those in a file."""
    from downstream_service.errors import InvalidInputError
    from downstream_service.fault_input import parse_request, read_request

    try:
        request = parse_request(sys.stdin.read(), "stdin") if source == "-" else read_request(Path(source))
    except InvalidInputError as error:
        _fail(str(error))
    _with_service(address, lambda service: service.SetFaults(request, timeout=RPC_TIMEOUT_S))
    show_faults(address, as_json)


@faults_app.command("clear")
def clear_faults(address: Address = "127.0.0.1:50052", as_json: AsJson = False) -> None:
    """Remove every fault and the capacity model."""
    from protos.downstream.v1 import fault_pb2

    _with_service(
        address, lambda service: service.ClearFaults(fault_pb2.ClearFaultsRequest(), timeout=RPC_TIMEOUT_S)
    )
    show_faults(address, as_json)


def main() -> None:
    """Run the command line; exit status 2 means that it could not be done, and stderr says why."""
    app()


def _run(service: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(service)
    else:
        uvloop.run(service)


def _host_and_port(listen: str) -> tuple[str, int]:
    host, separator, port = listen.rpartition(":")
    if not (separator and host and port.isascii() and port.isdigit() and int(port) <= 65_535):
        _fail(f"--listen: must be HOST:PORT, not {listen!r}")
    return host, int(port)


def _print_ready(address: str) -> None:
    print(json.dumps({"listen": address, "pid": os.getpid()}), flush=True)


def _stay_silent(address: str) -> None:
    """Announce nothing on stdout; the log has the address."""


def _with_service(address: str, use: Callable[[Any], Any]) -> Any:
    """Call the FaultService at ``address``; an error ends the command with its reason."""
    import grpc

    from protos.downstream.v1 import fault_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        try:
            return use(fault_pb2_grpc.FaultServiceStub(channel))
        except grpc.RpcError as error:
            # What grpc raises is a call as well; its stubs do not say so.
            call: Any = error
            _fail(f"{address}: {call.code().name}: {call.details()}")


def _print_faults(state: Any, counters: Any) -> None:
    from google.protobuf import json_format
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"faults, seed {state.seed}")
    for heading in ("name", "strikes", "probability", "what"):
        table.add_column(heading)
    for each in state.faults:
        kind = each.fault.WhichOneof("kind")
        what = json_format.MessageToJson(
            getattr(each.fault, kind), indent=None, preserving_proto_field_name=True
        )
        chance = each.fault.probability if each.fault.HasField("probability") else 1.0
        table.add_row(each.fault.name, str(each.strikes), f"{chance:g}", f"{kind} {what}")
    console = Console()
    console.print(table)
    if state.HasField("capacity"):
        console.print("capacity:", json_format.MessageToJson(state.capacity, indent=None))
    console.print(", ".join(f"{name} {value}" for name, value in _as_dict(counters).items()))


def _as_dict(message: Any) -> dict[str, Any]:
    from google.protobuf import json_format

    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value))


def _fail(message: str) -> NoReturn:
    print(f"relay-downstream: {message}", file=sys.stderr)
    raise typer.Exit(CANNOT_TELL)
