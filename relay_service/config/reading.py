"""From a file to JSON that means one thing: no duplicate keys, no NaN, no surprise in size."""

import json
from pathlib import Path
from typing import Any, NoReturn

from relay_service.config.problems import ConfigError, Problem, UnreadableError, shown

FILE_BYTES_MAX = 1024 * 1024


def read_json(path: Path) -> Any:
    """The JSON in a file.

    Raises `UnreadableError` when it cannot be read, `ConfigError` when it is too large or not strict JSON.
    """
    where = str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        problem = Problem(where, "", "", f"cannot be read: {error.strerror or error}")
        raise UnreadableError([problem]) from error
    if len(raw) > FILE_BYTES_MAX:
        raise _not_json(where, f"is larger than the {FILE_BYTES_MAX} bytes a policy file may have")
    return parse_json(raw, where)


def parse_json(raw: bytes, where: str) -> Any:
    """Strict JSON; ``where`` is named in the `ConfigError` raised when it is not."""
    try:
        return json.loads(
            raw.decode("utf-8-sig"), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        raise _not_json(where, f"is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise _not_json(f"{where}:{error.lineno}:{error.colno}", f"is not JSON: {error.msg}") from error
    except RecursionError as error:
        raise _not_json(where, "is nested too deeply") from error
    except ValueError as error:
        raise _not_json(where, f"is not strict JSON: {error}") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON leaves open which of two equal keys counts; an operator who wrote both meant one of them."""
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} stands twice in one object")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _not_json(where: str, allowed: str) -> ConfigError:
    return ConfigError([Problem(where, "", "", allowed)])
