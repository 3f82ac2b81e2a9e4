"""A store's address, right and wrong."""

import pytest

from relay_service.stores.interface import StoreError
from relay_service.stores.opening import engine_from, without_password
from relay_service.stores.postgres import PostgresStore
from relay_service.stores.sqlite import SqliteStore


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:relay.db", "relay.db"),
        ("sqlite:/var/lib/relay.db", "/var/lib/relay.db"),
        ("sqlite:///var/lib/relay.db", "/var/lib/relay.db"),
    ],
)
def test_a_sqlite_address_names_a_file(url: str, path: str) -> None:
    store = engine_from(url)
    assert isinstance(store, SqliteStore)
    assert store._settings.path == path


@pytest.mark.parametrize("url", ["postgres://u@h/d", "postgresql://h:5432/d?search_path=relay"])
def test_a_postgres_address_names_a_database(url: str) -> None:
    assert isinstance(engine_from(url), PostgresStore)


@pytest.mark.parametrize(
    "url", ["", "relay.db", "sqlite:", "sqlite://", "mysql://u:s3cret@h/d", "u:s3cret@h"]
)
def test_anything_else_says_what_would_be_right_and_no_password(url: str) -> None:
    with pytest.raises(StoreError, match="sqlite:PATH") as refused:
        engine_from(url)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgres://u:p%40ss@h:5/d?password=x", "postgres://u@h:5/d"),
        ("postgres://h/d", "postgres://h/d"),
        ("postgres://u:p@[::1]:5/d", "postgres://u@[::1]:5/d"),
        ("postgres://u:p@[broken/d", "postgres://u@[broken/d"),
        ("postgres://u:p/a?s:s@h/d", "postgres://u@h/d"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert without_password(url) == shown
