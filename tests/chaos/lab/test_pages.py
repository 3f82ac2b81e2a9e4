"""The pages about the lab say what the lab is."""

from pathlib import Path

from chaos.mutants import MUTANTS
from chaos.scenarios import SCENARIOS
from chaos.scenarios.page import COMMAND, page

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_of_scenarios_is_the_one_the_data_makes():
    assert (DOCS / "reference" / "scenarios.md").read_text() == page(), f"write it anew: {COMMAND}"


def test_every_mutant_names_a_scenario_there_is_and_stands_in_the_table():
    names = {scenario.name for scenario in SCENARIOS}
    table = (DOCS / "reference" / "mutants.md").read_text()
    for mutant in MUTANTS:
        assert mutant.caught_by in names
        assert f"| `{mutant.name}` |" in table


def test_every_command_of_the_bug_table_names_a_scenario_there_is():
    names = {scenario.name for scenario in SCENARIOS}
    for line in (DOCS / "reference" / "bugs-found.md").read_text().splitlines():
        if "`relay-chaos run " in line:
            assert line.split("`relay-chaos run ")[1].split()[0].rstrip("`") in names
