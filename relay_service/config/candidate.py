"""A policy as it may come into force: read, validated, judged and named by what it means."""

import hashlib
import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

from relay_service.config.document import read_document
from relay_service.config.lint import Finding, findings
from relay_service.config.loading import policy_from
from relay_service.config.settings import Settings
from relay_service.core.policy import RelayPolicy

VERSION_CHARACTERS = 12


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy without errors, and what is suspicious about it."""

    policy: RelayPolicy
    findings: tuple[Finding, ...]


def candidate_of(settings: Settings) -> Candidate:
    """Read the policy the settings ask for.

    Raises `ConfigError` with everything that is wrong, as `relay_service.config.loading.policy_of` does.
    """
    document = read_document(settings.policy)
    return Candidate(policy_from(document, settings), tuple(findings(document, settings.upstream)))


def policy_version(policy: RelayPolicy) -> str:
    """The first hex digits of a hash over all the policy says.

    Equal policies have equal versions, whatever their files look like and whichever relay reads them.
    """
    text = json.dumps(_plain(policy), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:VERSION_CHARACTERS]


def _plain(value: Any) -> Any:
    """The same in JSON's types, in an order that does not depend on the process."""
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value) if one.init}
    match value:
        case Enum():
            return value.name
        case Mapping():
            return {str(key): _plain(one) for key, one in value.items()}
        case AbstractSet():
            return sorted(_plain(one) for one in value)
        case tuple():
            return [_plain(one) for one in value]
    return value
