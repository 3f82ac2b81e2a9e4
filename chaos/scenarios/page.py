"""The reference page of all scenarios, made from the data."""

from collections.abc import Iterator

from chaos.scenarios.library import SCENARIOS
from chaos.scenarios.model import Scenario
from chaos.store import StoreEngine

STORES = {StoreEngine.SQLITE: "a SQLite store", StoreEngine.POSTGRES: "a PostgreSQL store"}
COMMAND = "python -m chaos.scenarios.page"


def page() -> str:
    """The page as Markdown."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Scenarios"
    yield ""
    yield f"Every scenario of `relay-chaos list`, written by `{COMMAND}`. Besides what it"
    yield "expects, each is judged by what is always promised: I1 (answered by the deadline), I2 (at most one"
    yield "effect; OK is in the ledger, a definite refusal is not), I4 (retries within the budget in every"
    yield "second), I6 (back soon after the fault) and I7 (nothing lost, the relay's books balance, nothing"
    yield "left in flight, traces whole, a span for every failure). Where jobs are submitted, also by I3"
    yield "(what was accepted is never lost) and by whether they all get done."
    yield ""
    yield f"A normal run has {_length(SCENARIOS[0])}, unless its length is given"
    yield "below; `--for SECONDS` changes it."
    for scenario in SCENARIOS:
        yield ""
        yield f"## {scenario.name}"
        yield scenario.hypothesis
        yield ""
        yield f"- Traffic: {_traffic(scenario)}."
        yield f"- Faults: {_faults(scenario)}."
        if (stack := _stack(scenario)) != "":
            yield f"- Stack: {stack}."
        if scenario.expects:
            yield f"- Expects: {'; '.join(expected.words for expected in scenario.expects)}."
        if _length(scenario) != _length(SCENARIOS[0]):
            yield f"- Length: {_length(scenario)}."


def _length(scenario: Scenario) -> str:
    timing = scenario.timing
    return f"{timing.steady_s:g} s steady, {timing.fault_s:g} s fault, {timing.recovery_s:g} s recovery"


def _traffic(scenario: Scenario) -> str:
    traffic = scenario.traffic
    kinds = ", ".join(
        dict.fromkeys(
            f"{kind.method.rpartition('/')[2]}{' with a key' if kind.keys.value == 'fresh' else ''}"
            f"{f' ({kind.criticality})' if kind.criticality else ''}"
            for kind in (*traffic.mix, *traffic.flood)
        )
    )
    retry = traffic.retry
    again = f", callers try up to {retry.tries_max} times" if retry.tries_max > 1 else ""
    return f"{traffic.rate_per_s:g} calls/s ({kinds}), timeout {traffic.timeout_s:g} s{again}"


def _faults(scenario: Scenario) -> str:
    if not scenario.faults:
        return f"one to five, drawn from the seed: {', '.join(scenario.menu)}"
    return "; ".join(
        f"{placed.fault.title} (from {placed.begin:.0%} to {placed.end:.0%} of the phase)"
        for placed in scenario.faults
    )


def _stack(scenario: Scenario) -> str:
    stack = scenario.stack
    words = [f"policy `{stack.policy['relay']['name']}`"]
    changed = {
        name: value
        for name, value in stack.policy["relay"].items()
        if name in ("admission", "clients", "off")
    }
    words += [f"with {changed}"] if changed else []
    words += [
        f"a bulkhead {entry['bulkhead']} for {' and '.join(name['method'] for name in entry['name'])}"
        for entry in stack.policy["relay"].get("methods", ())
        if "bulkhead" in entry
    ]
    words += [stack.capacity.title] if stack.capacity else []
    words += [f"{stack.relays} relays in a row"] if stack.relays > 1 else []
    words += ["a trace collector"] if stack.collector else []
    words += [STORES[stack.store]] if stack.store is not None else []
    return ", ".join(words) if len(words) > 1 else ""


if __name__ == "__main__":
    print(page(), end="")
