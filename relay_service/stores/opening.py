"""Which engine a store's address means."""

import re

from relay_service.stores.interface import Store, StoreError

_HOW = "say sqlite:PATH (e.g. sqlite:/var/lib/relay/relay.db) or postgres://USER@HOST:PORT/DATABASE"


def engine_from(url: str) -> Store:
    """The engine for ``sqlite:PATH`` or ``postgres://…`` (also ``postgresql://``), not opened yet.

    Raises `StoreError` that says what is wrong with it, and never a password.
    """
    scheme, _, rest = url.partition(":")
    match scheme.lower():
        case "sqlite" if rest.strip("/"):
            from relay_service.stores.sqlite import SqliteSettings, SqliteStore

            return SqliteStore(SqliteSettings(path=_path_of(rest)))
        case "sqlite":
            raise StoreError(f"the store's address names no file; {_HOW}")
        case "postgres" | "postgresql":
            from relay_service.stores.postgres import PostgresSettings, PostgresStore

            return PostgresStore(PostgresSettings(url=url))
        case _:
            raise StoreError(f"the store's address names no kind of store that is known; {_HOW}")


def _path_of(rest: str) -> str:
    """``sqlite:relative.db``, ``sqlite:/absolute.db`` and ``sqlite:///absolute.db``."""
    return rest.removeprefix("//")


def without_password(url: str) -> str:
    """The address as it may be shown: kind, user, host and database.

    Everything up to the last ``@`` counts as credentials, for a password that was not percent-encoded may
    hold any of the signs that divide an address.
    """
    scheme, _, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    user = re.split("[:/?]", credentials)[0]
    return f"{scheme}://{user}{at}{re.split('[?#]', place)[0]}"
