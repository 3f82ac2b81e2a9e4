"""``python -m tests.bench``, from the project's root; see docs/how-to/benchmark.md."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from tests.bench import overload, report
from tests.bench.cores import divide
from tests.bench.processes import ROOT
from tests.bench.run import Bench
from tests.bench.subjects import SUBJECTS
from tests.bench.toolchain import find_tools
from tests.bench.workload import FULL, QUICK, Plan

EXIT_MEASURED = 0
EXIT_COULD_NOT = 2


def main() -> int:
    """Measure, show, write; 0 when everything asked for was measured, else 2."""
    arguments = _parser().parse_args()
    # The tables are wider than most pipes pretend to be.
    console = Console() if sys.stdout.isatty() else Console(width=150)
    names = [name for name in SUBJECTS if name in arguments.only]
    plan = _plan(arguments)
    cores = divide()
    tools = find_tools(ROOT / ".cache" / "bench")
    bench = Bench(
        plan,
        tools,
        cores,
        directory=arguments.out / "logs",
        say=lambda line: console.print(line, style="dim", highlight=False),
    )
    outcome = bench.outcome
    whole = not arguments.overload and not arguments.policy_cost
    if whole:
        bench.run(names)
    if arguments.policy_cost or (whole and "relay" in names):
        bench.policy_cost()
    if arguments.overload or (whole and not arguments.quick):
        bench.flood(overload.QUICK if arguments.quick else overload.FULL)
    lines = report.preamble(plan, tools, cores)
    made = report.sheets(outcome, names)
    report.show(console, lines, made, outcome.problems)
    content = report.document(outcome, names, plan, tools, cores)
    written = report.write(arguments.out, content, report.markdown(lines, made, outcome.problems))
    console.print(f"written: {written}", highlight=False)
    measured = outcome.measurements or outcome.floods or outcome.policy_cost
    return EXIT_COULD_NOT if outcome.problems or not measured else EXIT_MEASURED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measure the relay, a bare grpc.aio proxy and Envoy side by side.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="100 B only and short rounds: less than a minute"
    )
    parser.add_argument(
        "--overload",
        action="store_true",
        help="nothing but the rows of 3 and 10 times what the upstream can serve",
    )
    parser.add_argument(
        "--policy-cost",
        action="store_true",
        help="nothing but what the default policy costs, compared with no policy at all",
    )
    parser.add_argument(
        "--only",
        type=_names,
        default=list(SUBJECTS),
        metavar="NAMES",
        help=f"some of {','.join(SUBJECTS)}; the ratios are the first one's",
    )
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="interleaved rounds; six are the fewest for 95 %%"
    )
    parser.add_argument("--duration-s", type=float, metavar="S", help="length of one measurement")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench", metavar="DIR")
    return parser


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in SUBJECTS]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(SUBJECTS)}")
    return names


def _plan(arguments: argparse.Namespace) -> Plan:
    plan = QUICK if arguments.quick else FULL
    if arguments.rounds is not None:
        plan = replace(plan, rounds=max(1, arguments.rounds))
    if arguments.duration_s is not None:
        plan = replace(plan, duration_s=max(0.05, arguments.duration_s))
    return plan


if __name__ == "__main__":
    sys.exit(main())
