"""Which relay's AdminService a verb speaks to."""

from typing import Annotated

import typer

from relay_service.cli.failures import COULD_NOT_TELL, fail
from relay_service.config.addresses import parse_target
from relay_service.config.problems import ConfigError
from relay_service.config.settings import read_settings

AddressOption = Annotated[
    str | None,
    typer.Option("--address", "-a", help="The relay's admin address (RELAY_ADMIN_LISTEN) by default."),
]


def admin_target(address: str | None) -> str:
    """The address given, else the one the settings name; ends the command when it is none."""
    try:
        return str(parse_target(address if address is not None else read_settings({}).admin_listen))
    except ValueError as error:
        fail(f"--address: got {address!r}; {error}", COULD_NOT_TELL)
    except ConfigError as error:
        fail(str(error), COULD_NOT_TELL)
