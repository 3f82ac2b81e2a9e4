"""The SQLite engine."""

from relay_service.stores.sqlite.database import SqliteSettings
from relay_service.stores.sqlite.engine import SqliteStore

__all__ = ["SqliteSettings", "SqliteStore"]
