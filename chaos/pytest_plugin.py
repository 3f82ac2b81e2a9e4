"""pytest's door to the lab: fixtures, options, and how to repeat a test that failed.

pytest loads this in every session where the package is installed, so it imports nothing heavy by itself.
"""

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from chaos.plugin.lab import Lab
    from chaos.toxiproxy.launcher import Choice, Toxiproxy

AUTO, REAL, EMBEDDED = "auto", "real", "embedded"
SEEDS = 2**31
SECTION = "chaos lab"

_SEED = pytest.StashKey[int]()
_USED = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("chaos", "chaos lab: a service behind a relay and Toxiproxy")
    group.addoption(
        "--chaos-toxiproxy",
        default=AUTO,
        metavar="auto|real|embedded|URL",
        help="Which Toxiproxy: TOXIPROXY_URL, a binary, else the embedded one (auto); one of the last two; "
        "or the one at a URL.",
    )
    group.addoption(
        "--chaos-seed",
        type=int,
        default=None,
        help="Seed of every draw, to repeat a run. Default: a new one.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Settle the seed, and refuse a Toxiproxy that cannot be meant."""
    if config.option.chaos_seed is None:
        # Into the options, because xdist hands those to its workers: all then draw from the same seed.
        config.option.chaos_seed = random.SystemRandom().randrange(SEEDS)
    config.stash[_SEED] = config.option.chaos_seed
    wanted = config.getoption("--chaos-toxiproxy")
    if wanted not in (AUTO, REAL, EMBEDDED) and not wanted.startswith(("http://", "https://")):
        raise pytest.UsageError(f"--chaos-toxiproxy must be auto, real, embedded or a URL, not {wanted!r}")


def pytest_report_header(config: pytest.Config) -> str:
    """The seed and which Toxiproxy it will be."""
    return f"chaos: seed {config.stash[_SEED]}, Toxiproxy: {_choice(config) or 'no real one was found'}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failed test that used the lab tells how to repeat it and where its logs are."""
    report: pytest.TestReport = yield  # type: ignore[assignment]  # a wrapper's yield gives the result
    used = item.stash.get(_USED, None)
    if used is not None and report.failed and call.when == "call":
        report.sections.append((SECTION, used))
    return report  # type: ignore[return-value]  # as above


@pytest.fixture(scope="session")
def chaos_toxiproxy(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[Toxiproxy]":
    """A Toxiproxy for the session, real where one is found, else embedded; ``kind`` says which."""
    from chaos.toxiproxy.launcher import launch

    choice = _choice(pytestconfig)
    if choice is None:
        pytest.fail("--chaos-toxiproxy real: no toxiproxy-server on PATH or in the cache", pytrace=False)
    seed = pytestconfig.stash[_SEED]
    with launch(choice, seed=seed, log_dir=tmp_path_factory.mktemp("toxiproxy")) as toxiproxy:
        yield toxiproxy


@pytest.fixture
def chaos_lab(
    request: pytest.FixtureRequest, chaos_toxiproxy: "Toxiproxy", tmp_path: "Path"
) -> "Iterator[Lab]":
    """Ways through Toxiproxy, services, relays and a record of calls; all ended when the test ends."""
    from chaos.plugin.lab import open_lab

    seed = request.config.stash[_SEED]
    folder = tmp_path / "chaos"
    request.node.stash[_USED] = (
        f"repeat: pytest '{request.node.nodeid}' --chaos-seed {seed}\n"
        f"Toxiproxy: {chaos_toxiproxy.kind} {chaos_toxiproxy.version}\n"
        f"logs and history: {folder}"
    )
    with open_lab(chaos_toxiproxy, folder, seed) as lab:
        yield lab


def _choice(config: pytest.Config) -> "Choice | None":
    """What the option means here; None when a real one is wanted and there is none."""
    from chaos.toxiproxy.launcher import Binary, Embedded, Running, find, find_binary

    match config.getoption("--chaos-toxiproxy"):
        case "auto":
            return find()
        case "embedded":
            return Embedded()
        case "real":
            binary = find_binary()
            return Binary(binary) if binary else None
        case url:
            return Running(str(url))
