"""What is wrong with a configuration: every fault with its place, the value found and what is allowed."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

VALUE_CHARACTERS_MAX = 120


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault.

    ``where`` is the file or the source of the setting, ``path`` the place in it
    (``methodConfig[0].retryPolicy.maxAttempts``; empty for the whole), ``found`` the value as JSON.
    """

    where: str
    path: str
    found: str
    allowed: str

    def __str__(self) -> str:
        place = f"{self.where}: {self.path}" if self.path else self.where
        return f"{place}: {self.found}; {self.allowed}" if self.found else f"{place}: {self.allowed}"


class ConfigError(Exception):
    """The configuration cannot be used. ``problems`` holds all that was found, at least one."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UnreadableError(ConfigError):
    """There is nothing to judge: no such file, or it cannot be read."""


def shown(value: object) -> str:
    """A value as it may be shown to a person: JSON, without URL credentials, cut to a bounded length."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    text = without_credentials(text)
    return text if len(text) <= VALUE_CHARACTERS_MAX else text[: VALUE_CHARACTERS_MAX - 1] + "…"


def without_credentials(text: str) -> str:
    """The same text with ``user:password@`` and any scheme before it replaced by ``***@``."""
    return re.sub(r"[^\s\"]*@", "***@", text)


def json_path(parts: Sequence[str | int]) -> str:
    """``("methodConfig", 0, "name")`` as ``methodConfig[0].name``."""
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path
