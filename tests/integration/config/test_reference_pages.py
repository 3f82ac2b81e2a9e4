"""The reference pages say what the code does: same names, same defaults, same words."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from relay_service.cli.explain import explanation, told_as
from relay_service.config.complaints import nested_model
from relay_service.config.document import preset_names
from relay_service.config.durations import format_duration
from relay_service.config.lint import Rule
from relay_service.config.schema import PolicyFile, Switch
from relay_service.config.settings import Settings, flag, variable
from relay_service.core.reason import Reason
from relay_service.core.status import Code

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"

CONTAINERS = {
    "methodConfig",
    "methodConfig[].hedgingPolicy",
    "relay",
    "relay.methods",
    "relay.upstreams",
    "relay.routes",
    "relay.admission",
    "relay.callers",
    "relay.admission.limit",
    "relay.clients",
    "relay.criticality",
    "relay.clients.named",
    "relay.retryBudget",
    "relay.breaker",
    "relay.methods[].batch",
    "relay.methods[].batch.items",
    "relay.methods[].batch.results",
    "relay.jobs",
    "relay.deadLetters",
    "relay.deadLetters.recovery",
    "relay.keys",
}
"""Fields that are documented by what they hold."""

SAME_AS_ELSEWHERE = {
    "relay.methods[].breaker",
    "relay.bulkhead",
    "relay.upstreams.NAME.bulkhead",
    "relay.methods[].bulkhead",
}
"""Fields that hold what is documented at another place."""


def table_rows(page: str) -> Iterator[list[str]]:
    """The cells of every table row of a page, without headings and rules."""
    lines = (REFERENCE / page).read_text().splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("| ") and not line.startswith("| ---") and before.startswith("| "):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def documented(page: str, pattern: str) -> dict[str, list[str]]:
    """Rows whose first cell is one code span that matches ``pattern``, by its text."""
    found = ((re.fullmatch(r"`([^`]+)`", row[0]), row) for row in table_rows(page))
    return {m[1]: row for m, row in found if m and re.fullmatch(pattern, m[1])}


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every field of the policy file: path as documented, core name, default."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        yield path, name, field.default
        if path not in SAME_AS_ELSEWHERE and (inner := nested_model(field.annotation)):
            many = (
                "[]."
                if "list[" in str(field.annotation)
                else ".NAME."
                if "dict[" in str(field.annotation)
                else "."
            )
            yield from fields(inner, path + many)


def test_every_field_of_the_policy_file_is_documented_and_no_other() -> None:
    in_code = {path for path, _, _ in fields(PolicyFile)} - CONTAINERS
    assert set(documented("policy-file.md", r"(methodConfig|retryThrottling|relay\.).*")) == in_code


def test_the_documented_defaults_are_those_of_the_code() -> None:
    rows = documented("policy-file.md", r"relay\..*")
    for path, name, default in fields(PolicyFile):
        if path in CONTAINERS or path not in rows or default in (None, PydanticUndefined):
            continue
        text = rows[path][2].strip("`")
        told = format_duration(default) if name.endswith("_s") and name != "floor_per_s" else str(default)
        assert text in (told, told.lower(), told.removesuffix(".0")), path


@pytest.mark.parametrize(
    ("names", "pattern"),
    [(preset_names(), r"[a-z]+(-[a-z]+)?"), ([str(rule) for rule in Rule], r"[a-z]+(-[a-z]+)+")],
    ids=["presets", "rules"],
)
def test_presets_and_rules_are_documented(names: list[str], pattern: str) -> None:
    assert set(names) <= set(documented("policy-file.md", pattern))


def test_no_preset_or_rule_is_documented_that_is_not_there() -> None:
    named = set(documented("policy-file.md", r"[a-z-]+"))
    assert named == {*preset_names(), *(str(rule) for rule in Rule)}


def test_every_switch_is_documented() -> None:
    row = documented("policy-file.md", r"relay\.off")["relay.off"]
    assert re.findall(r"`(\w+)`", row[3]) == list(get_args(Switch))


def test_every_setting_is_documented_with_variable_default_and_meaning() -> None:
    rows = documented("settings.md", r"--.*")
    assert set(rows) == {flag(name) for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default is None else f"`{field.default}`"
        assert rows[flag(name)][1:] == [f"`{variable(name)}`", default, field.description]


def test_every_flag_of_serve_is_a_setting_or_documented() -> None:
    import inspect

    from relay_service.cli.serve import serve

    flags = {f"--{name.replace('_', '-')}" for name in inspect.signature(serve).parameters}
    assert flags == {flag(name) for name in Settings.model_fields} | {"--ready-json"}
    assert "`--ready-json`" in (REFERENCE / "settings.md").read_text()


def test_every_reason_is_documented_in_the_words_of_relay_explain() -> None:
    page = (REFERENCE / "reasons.md").read_text()
    rows = documented("reasons.md", r"[A-Z_]+")
    assert list(rows) == [reason.name for reason in Reason]
    for reason in Reason:
        said = explanation(reason)
        assert rows[reason.name][1:] == [told_as(reason), reason.meaning]
        section = f"### {reason.name}\n**When.** {said.when}\n\n**What to do.** {said.advice}\n"
        assert section in page, reason.name


def test_every_status_code_is_documented_in_the_words_of_relay_explain() -> None:
    page = (REFERENCE / "reasons.md").read_text()
    for code in Code:
        said = explanation(code)
        assert f"| `{code.name}` ({code.value}) | {said.meaning} | {said.when} | {said.advice} |" in page


def test_the_example_in_the_policy_page_is_valid_and_lints_clean(policy_file) -> None:
    from relay_service.config.document import read_document
    from relay_service.config.lint import findings

    example = re.search(r"```json\n(.*?)```", (REFERENCE / "policy-file.md").read_text(), re.DOTALL)
    assert example is not None
    assert findings(read_document(str(policy_file(example[1]))), "h:1") == []
