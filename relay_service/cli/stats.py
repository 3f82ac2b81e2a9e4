"""``relay stats``: what a running relay counts and how its policies stand."""

import asyncio
from typing import Annotated

import typer

from relay_service.cli.admin_target import AddressOption, admin_target
from relay_service.cli.failures import COULD_NOT_TELL, fail


def stats(
    *,
    address: AddressOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again, until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, max=60, help="Seconds between looks with --watch.")
    ] = 1.0,
    method: Annotated[str, typer.Option(help="Only methods whose full name starts so.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one line for each look.")] = False,
) -> None:
    """Show the counters and the state of every policy of a running relay."""
    from relay_service.cli import stats_view

    target = admin_target(address)
    if watch:
        looks = stats_view.watch(target, method, interval)
        show = stats_view.lines() if as_json else stats_view.live_tables()
    else:
        looks = stats_view.look(target, method)
        show = stats_view.lines() if as_json else stats_view.tables()
    try:
        asyncio.run(stats_view.show_each(looks, show))
    except stats_view.NoStatsError as error:
        fail(f"{error}. Is the relay running, and is {target} its admin address?", COULD_NOT_TELL)
    except KeyboardInterrupt:
        raise typer.Exit from None
