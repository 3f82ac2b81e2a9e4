"""Reads what the engine would read: the Dockerfile, and .dockerignore as it decides what is sent."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

IgnoreRules = list[tuple[re.Pattern[str], bool]]
"""Patterns and whether they let through; the last that matches a path or a parent of it decides."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a Dockerfile, in the stage it belongs to."""

    stage: int
    name: str
    argument: str


def read_dockerfile(text: str) -> Iterator[Instruction]:
    """The instructions in order, continued lines joined."""
    stage = -1
    lines = (
        line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")
    )
    for line in lines:
        name, _, argument = line.strip().partition(" ")
        stage += name == "FROM"
        yield Instruction(stage, name, argument.strip())


def copies(dockerfile: list[Instruction], stage: int) -> list[tuple[list[str], str]]:
    """Sources and destination of each COPY from the context in a stage."""
    arguments = [shlex.split(i.argument) for i in dockerfile if i.stage == stage and i.name == "COPY"]
    return [(words[:-1], words[-1]) for words in arguments if not words[0].startswith("--")]


def read_dockerignore(text: str) -> IgnoreRules:
    """Its rules in order."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(_pattern(line.removeprefix("!")), line.startswith("!")) for line in lines]


def _pattern(glob: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*/|\*)", glob)
    translate = {"**/": "(?:.*/)?", "*": "[^/]*"}
    return re.compile("".join(translate.get(part, re.escape(part)) for part in parts))


def is_sent(path: Path, rules: IgnoreRules) -> bool:
    """Whether the file at this path, relative to the context, goes to the engine."""
    candidates = [str(path), *(str(parent) for parent in path.parents if str(parent) != ".")]
    sent = True
    for pattern, lets_through in rules:
        if any(pattern.fullmatch(candidate) for candidate in candidates):
            sent = lets_through
    return sent
