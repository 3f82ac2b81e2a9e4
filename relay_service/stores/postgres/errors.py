"""PostgreSQL's errors as the store's, once."""

import asyncpg

from relay_service.stores.interface import StoreError, StoreFullError, StoreUnavailableError

LOST_TO_ANOTHER = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
"""The transaction did not happen and may be tried again as it is."""

UNREACHABLE = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
)
_PASSING = (
    TimeoutError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.PostgresIOError,
    *LOST_TO_ANOTHER,
    *UNREACHABLE,
)
OPEN_END = (
    TimeoutError,
    asyncpg.QueryCanceledError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    *UNREACHABLE,
)
"""The transaction may have happened, or the server is in no state to try each of its writes again at once."""
_REFUSED = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidPasswordError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)


def as_store_error(error: Exception, where: str) -> Exception:
    """What a caller is told; an error that only a fault of this program explains stays as it is."""
    said = str(error) or type(error).__name__
    match error:
        case asyncpg.DiskFullError():
            return StoreFullError(f"{where} has no room ({said}): make room, the relay tries again by itself")
        case _ if isinstance(error, _REFUSED):
            return StoreError(f"{where} refuses this relay ({said}): check user, password and database")
        case _ if isinstance(error, _PASSING):
            return StoreUnavailableError(f"{where} cannot be used now ({said})")
        case _:
            return error
