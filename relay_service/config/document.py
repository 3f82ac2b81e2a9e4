"""One policy document, read and checked: a file or one of the presets that come with the relay."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from relay_service.config.checks import contradictions
from relay_service.config.complaints import problems_of
from relay_service.config.problems import ConfigError, Problem, UnreadableError, shown
from relay_service.config.reading import parse_json, read_json
from relay_service.config.schema import PolicyFile

_PRESETS = resources.files("relay_service") / "presets"


@dataclass(frozen=True, slots=True)
class Document:
    """A checked policy document; ``where`` is its path or ``preset NAME``."""

    where: str
    title: str
    """What the policy is called when the document gives no name of its own."""
    content: PolicyFile


def preset_names() -> list[str]:
    """The presets that come with the relay, sorted."""
    files = (Path(entry.name) for entry in _PRESETS.iterdir())
    return sorted(file.stem for file in files if file.suffix == ".json")


def read_document(source: str) -> Document:
    """Read a preset by its name, or a file by its path; a preset's name wins, ``./NAME`` is always a file.

    Raises `UnreadableError` when there is none, `ConfigError` with everything that is wrong in it.
    """
    if source in preset_names():
        return read_preset(source)
    path = Path(source)
    if not path.exists():
        presets = ", ".join(preset_names())
        raise UnreadableError(
            [Problem(source, "", "", f"no such file, and no preset of that name ({presets})")]
        )
    return Document(source, path.stem, _checked(read_json(path), source))


def read_preset(name: str) -> Document:
    """Read one of `preset_names`."""
    where = f"preset {name}"
    return Document(where, name, _checked(parse_json((_PRESETS / f"{name}.json").read_bytes(), where), where))


def layers(document: Document) -> list[Document]:
    """The document and the presets it is based on, the most basic first.

    Raises `ConfigError` when a preset is unknown or based on itself.
    """
    chain = [document]
    while (base := chain[0].content.relay.preset) is not None:
        if problem := _unusable_base(chain, base):
            raise ConfigError([problem])
        chain.insert(0, read_preset(base))
    return chain


def _unusable_base(chain: list[Document], base: str) -> Problem | None:
    where = chain[0].where
    if base not in preset_names():
        allowed = f"must be one of the presets {', '.join(preset_names())}"
        return Problem(where, "relay.preset", f"got {shown(base)}", allowed)
    if f"preset {base}" in (document.where for document in chain):
        return Problem(where, "relay.preset", f"got {shown(base)}", "must not be based on itself")
    return None


def _checked(data: Any, where: str) -> PolicyFile:
    try:
        content = PolicyFile.model_validate(data)
    except ValidationError as error:
        raise ConfigError(problems_of(error, where, PolicyFile)) from error
    if problems := list(contradictions(content, where)):
        raise ConfigError(problems)
    return content
