"""The PostgreSQL engine."""

from relay_service.stores.postgres.engine import PostgresStore
from relay_service.stores.postgres.settings import PostgresSettings

__all__ = ["PostgresSettings", "PostgresStore"]
