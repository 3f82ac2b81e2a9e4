"""SQLite's errors as the store's, once."""

import apsw

from relay_service.stores.interface import StoreError, StoreFullError, StoreUnavailableError

_PASSING = (
    apsw.IOError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.CantOpenError,
    apsw.ReadOnlyError,
    apsw.NoMemError,
    apsw.InterruptError,
    apsw.ProtocolError,
    apsw.PermissionsError,
)


def as_store_error(error: apsw.Error, path: str) -> Exception:
    """What a caller is told; an error that only a fault of this program explains stays as it is."""
    match error:
        case apsw.FullError():
            return StoreFullError(
                f"no room to write {path} ({error}): make room, the relay tries again by itself"
            )
        case apsw.CorruptError() | apsw.NotADBError():
            return StoreError(f"{path} is damaged or no SQLite file ({error}): restore it from a backup")
        case _ if isinstance(error, _PASSING):
            return StoreUnavailableError(
                f"cannot read or write {path} now ({error}): see the disk and its mount"
            )
        case _:
            return error
