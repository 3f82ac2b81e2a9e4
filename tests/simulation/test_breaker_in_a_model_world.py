"""A relay with a breaker before an upstream that fails in every way, over many seeds."""

import pytest
from breaker_checks import CHECKS

SEEDS = 5
SEEDS_OF_A_SOAK = 200


@pytest.mark.parametrize("name", CHECKS)
def test_the_promise_holds_for_every_seed(name: str) -> None:
    for seed in range(SEEDS):
        CHECKS[name](seed)


@pytest.mark.soak
@pytest.mark.parametrize("name", CHECKS)
def test_the_promise_holds_for_many_seeds(name: str) -> None:
    for seed in range(SEEDS, SEEDS_OF_A_SOAK):
        CHECKS[name](seed)
