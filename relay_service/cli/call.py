"""``relay call``: make one call with nothing but the method's name and JSON."""

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from relay_service.cli.failures import BROKEN, COULD_NOT_TELL, fail
from relay_service.config.addresses import parse_target
from relay_service.config.problems import ConfigError
from relay_service.config.settings import read_settings
from relay_service.core.policy import UpstreamTls

if TYPE_CHECKING:
    from relay_service.cli.caller import Outcome


def call(
    method: Annotated[str, typer.Argument(help="package.Service/Method")],
    request: Annotated[
        str,
        typer.Argument(help="The request as JSON; a list of messages for a client stream; - reads stdin."),
    ] = "{}",
    *,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", "-a", help="Where to call; the relay's own address (RELAY_LISTEN) by default."
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", metavar="NAME:VALUE", help="Request metadata; may be repeated."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.001, max=86_400, help="Deadline of the call, in seconds.")
    ] = 15.0,
    tls: Annotated[
        bool, typer.Option("--tls", help="Speak TLS and check the server against the system's authorities.")
    ] = False,
    tls_ca: Annotated[
        str, typer.Option(metavar="FILE", help="PEM file of the authorities to check it against instead.")
    ] = "",
    tls_certificate: Annotated[
        str, typer.Option(metavar="FILE", help="PEM file of the certificate to present.")
    ] = "",
    tls_key: Annotated[str, typer.Option(metavar="FILE", help="PEM file of its private key.")] = "",
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show response metadata and trailers.")
    ] = False,
) -> None:
    """Call any method through the relay, or any gRPC server with reflection.

    Prints each response as JSON. Exit code 0 when the status is OK, 1 when the call failed, 2 when it
    could not be made.
    """
    from relay_service.cli import caller

    try:
        wanted = caller.Wanted(
            target=_target(address),
            method=method.removeprefix("/"),
            request_json=sys.stdin.read() if request == "-" else request,
            metadata=tuple(caller.parse_header(text) for text in header or ()),
            timeout_s=timeout,
            tls=_tls(tls_ca, tls_certificate, tls_key) if tls or tls_ca or tls_certificate else None,
        )
        outcome = asyncio.run(caller.make_call(wanted, typer.echo))
    except caller.UnusableCallError as error:
        fail(str(error), COULD_NOT_TELL)
    except caller.UnreachableError as error:
        fail(str(error), BROKEN)
    if verbose:
        _show_metadata("response metadata", outcome.initial_metadata)
        _show_metadata("trailers", outcome.trailers)
    if outcome.code != "OK":
        _show_failure(outcome)
        raise typer.Exit(BROKEN)


def _tls(ca: str, certificate: str, key: str) -> UpstreamTls:
    try:
        return UpstreamTls(ca, certificate, key)
    except ValueError as error:
        fail(f"--tls-certificate, --tls-key: {error}", COULD_NOT_TELL)


def _target(address: str | None) -> str:
    try:
        return str(parse_target(address if address is not None else read_settings({}).listen))
    except ValueError as error:
        fail(f"--address: got {address!r}; {error}", COULD_NOT_TELL)
    except ConfigError as error:
        fail(str(error), COULD_NOT_TELL)


def _show_metadata(title: str, metadata: tuple[tuple[str, str], ...]) -> None:
    typer.echo(f"{title}:", err=True)
    for name, value in metadata:
        typer.echo(f"  {name}: {value}", err=True)


def _show_failure(outcome: "Outcome") -> None:
    typer.echo(f"error: {outcome.code}: {outcome.message}", err=True)
    for detail in outcome.details:
        typer.echo(f"  {detail}", err=True)
