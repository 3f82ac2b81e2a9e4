"""Which engine a store's address means."""

from urllib.parse import urlsplit, urlunsplit

from relay_service.stores.interface import Store, StoreError

_HOW = "a store is sqlite:PATH (e.g. sqlite:/var/lib/relay/relay.db) or postgres://USER@HOST:PORT/DATABASE"


def engine_from(url: str) -> Store:
    """The engine for ``sqlite:PATH`` or ``postgres://…`` (also ``postgresql://``), not opened yet.

    Raises `StoreError` that says what is wrong with it, and never a password.
    """
    scheme, colon, rest = url.partition(":")
    match scheme.lower():
        case "sqlite" if rest.strip("/"):
            from relay_service.stores.sqlite import SqliteSettings, SqliteStore

            return SqliteStore(SqliteSettings(path=_path_of(rest)))
        case "sqlite":
            raise StoreError(f"sqlite: names no file; {_HOW}")
        case "postgres" | "postgresql":
            from relay_service.stores.postgres import PostgresSettings, PostgresStore

            return PostgresStore(PostgresSettings(url=url))
        case _ if not colon:
            raise StoreError(f"{url!r} names no kind of store; {_HOW}")
        case _:
            raise StoreError(f"{without_password(url)!r} is no kind of store that is known; {_HOW}")


def _path_of(rest: str) -> str:
    """``sqlite:relative.db``, ``sqlite:/absolute.db`` and ``sqlite:///absolute.db``."""
    return rest.removeprefix("//")


def without_password(url: str) -> str:
    """The address as it may be shown."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        user = f"{parts.username}@" if parts.username else ""
    except ValueError:
        return f"{url.partition(':')[0]}://…"
    return urlunsplit((parts.scheme, user + host, parts.path, "", ""))
