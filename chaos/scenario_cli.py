"""The verbs about scenarios: ``relay-chaos list``, ``run``, ``explore`` and ``mutants``."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

HELD, BROKEN, COULD_NOT_TELL = 0, 1, 2
EXIT_CODES = {"held": HELD, "broken": BROKEN, "could_not_tell": COULD_NOT_TELL}
RUNS_DIR = Path("out/chaos")
ALL = "all"

Seed = Annotated[int, typer.Option(help="Seed of every draw: faults, traffic, the downstream's failures.")]
ForSeconds = Annotated[
    float | None, typer.Option("--for", help="Seconds of traffic in all.", min=2, max=3600)
]
OutDir = Annotated[
    Path, typer.Option(help="Where each run gets its folder; one of the same name is overwritten.")
]
Short = Annotated[bool, typer.Option("--short", help="A few seconds instead of about a quarter of a minute.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summaries as JSON.")]


def list_scenarios(as_json: Json = False) -> None:
    """Every scenario with its hypothesis."""
    from chaos.scenarios import SCENARIOS

    if as_json:
        rows = [{"name": each.name, "hypothesis": each.hypothesis} for each in SCENARIOS]
        typer.echo(json.dumps(rows, indent=2))
        return
    width = max(len(each.name) for each in SCENARIOS)
    for each in SCENARIOS:
        typer.echo(f"{each.name:<{width}}  {each.hypothesis}")


def run(
    name: Annotated[str, typer.Argument(help="A scenario's name, or `all`.")],
    seed: Seed = 1,
    for_s: ForSeconds = None,
    out: OutDir = RUNS_DIR,
    *,
    short: Short = False,
    as_json: Json = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what would be done, as JSON, and do nothing.")
    ] = False,
    jobs: Annotated[int, typer.Option(help="With `all`: runs side by side.", min=1, max=16)] = 1,
    schedule: Annotated[
        Path | None, typer.Option(help="Faults from this file instead of the scenario's own.", exists=True)
    ] = None,
    mutant: Annotated[
        str | None, typer.Option(help="Run a relay with this protection taken from it.")
    ] = None,
    pictures: Annotated[str, typer.Option(help="Draw the report: `always`, or `unless-held`.")] = "always",
) -> None:
    """Run a scenario: steady state, faults, recovery, drain, verdict.

    Exit code 0: every promise held. 1: one was broken. 2: too little happened to tell.
    """
    from chaos.faults.kinds import FaultError
    from chaos.mutants import UnknownMutantError
    from chaos.scenarios.library import UnknownScenarioError

    try:
        if name == ALL:
            words = _passed_on(for_s=for_s, short=short, mutant=mutant, pictures=pictures)
            _run_all(seed, out, words, asked_s=for_s or 0.0, jobs=jobs, as_json=as_json)
        else:
            config = _config(name, seed, out, for_s=for_s, short=short, schedule=schedule, mutant=mutant)
            if plan:
                typer.echo(config.plan.text(), nl=False)
                return
            _run_one(config, pictures, as_json=as_json)
    except (UnknownScenarioError, UnknownMutantError, FaultError) as error:
        fail(error, COULD_NOT_TELL)


def _config(
    name: str,
    seed: int,
    out: Path,
    *,
    for_s: float | None,
    short: bool,
    schedule: Path | None,
    mutant: str | None,
) -> Any:
    from chaos.mutants import change_of
    from chaos.runner import Form, RunConfig
    from chaos.runner.plan import Change
    from chaos.scenarios import find
    from chaos.schedule import schedule_from_text

    scenario = find(name)
    return RunConfig(
        scenario,
        out / scenario.name,
        seed,
        Form.SHORT if short else Form.NORMAL,
        for_s,
        schedule_from_text(schedule.read_text(encoding="utf-8")) if schedule else None,
        change_of(mutant) if mutant else Change(),
    )


def _run_one(config: Any, pictures: str, *, as_json: bool) -> None:
    from chaos.interrupt import Interrupted, run_interruptible
    from chaos.runner import RunFailedError, run_scenario
    from chaos.runner.output import REPORT_FILE, Pictures, failed_summary, write_summary

    try:
        result = run_interruptible(lambda: run_scenario(config, Pictures(pictures)))
    except Interrupted as interrupted:
        typer.echo(f"{interrupted}; faults are undone and everything is stopped", err=True)
        raise typer.Exit(interrupted.exit_code) from None
    except RunFailedError as error:
        summary = failed_summary(config, str(error))
        write_summary(config.out_dir, summary)
        if as_json:
            typer.echo(json.dumps(summary, indent=2))
        fail(error, COULD_NOT_TELL)
    if as_json:
        typer.echo(json.dumps(result.summary, indent=2))
    else:
        tell(result.summary, config.out_dir / REPORT_FILE)
    raise typer.Exit(EXIT_CODES[result.summary["verdict"]])


def _passed_on(*, for_s: float | None, short: bool, mutant: str | None, pictures: str) -> tuple[str, ...]:
    words = ["--pictures", pictures]
    words += ["--for", str(for_s)] if for_s is not None else []
    words += ["--short"] if short else []
    words += ["--mutant", mutant] if mutant else []
    return tuple(words)


def _run_all(
    seed: int, out: Path, words: tuple[str, ...], *, asked_s: float, jobs: int, as_json: bool
) -> NoReturn:
    from chaos.interrupt import Interrupted, run_interruptible
    from chaos.runner.matrix import Job
    from chaos.runner.output import write_junit
    from chaos.scenarios import SCENARIOS

    own = ("--seed", str(seed), "--out", str(out))
    planned = [
        Job(each.name, seed, (each.name, *own, *words), out / each.name, asked_s) for each in SCENARIOS
    ]
    try:
        summaries = run_interruptible(lambda: _gather(planned, jobs=jobs, quiet=as_json))
    except Interrupted as interrupted:
        typer.echo(f"{interrupted}; faults are undone and everything is stopped", err=True)
        raise typer.Exit(interrupted.exit_code) from None
    out.mkdir(parents=True, exist_ok=True)
    write_junit(out / "junit.xml", summaries)
    if as_json:
        typer.echo(json.dumps(summaries, indent=2))
    verdicts = [summary["verdict"] for summary in summaries]
    typer.echo(
        f"{verdicts.count('held')} of {len(verdicts)} held, {verdicts.count('broken')} broken, "
        f"{verdicts.count('could_not_tell')} could not tell; in {out}",
        err=as_json,
    )
    raise typer.Exit(worst_exit_code(verdicts))


async def _gather(planned: Sequence[Any], *, jobs: int, quiet: bool) -> list[dict[str, Any]]:
    from chaos.runner.matrix import run_all

    summaries = []
    async for job, summary in run_all(planned, jobs):
        summaries.append(summary)
        typer.echo(one_line(job.scenario, summary), err=quiet)
    return summaries


def worst_exit_code(verdicts: Iterable[str]) -> int:
    """Broken beats could not tell, which beats held."""
    seen = set(verdicts)
    return BROKEN if "broken" in seen else COULD_NOT_TELL if "could_not_tell" in seen or not seen else HELD


def one_line(name: str, summary: dict[str, Any]) -> str:
    """A run in one line: the verdict and, when it is not held, the first reason."""
    verdict = summary["verdict"].replace("_", " ")
    reason = next(
        (
            f"{each['id']} {each['statement']}: {each['detail']}"
            for each in summary["invariants"]
            if each["verdict"] == summary["verdict"] != "held"
        ),
        "",
    )
    return f"{verdict:<15} {name:<22} {reason}".rstrip()


def tell(summary: dict[str, Any], report: Path) -> None:
    """A run for people."""
    typer.echo(f"{summary['scenario']}: {summary['hypothesis']}")
    for each in summary["invariants"]:
        verdict = each["verdict"].replace("_", " ")
        typer.echo(f"  {verdict:<15} {each['id']:<8} {each['statement']}: {each['detail']}")
    typer.echo(f"{summary['verdict'].replace('_', ' ')}, on the {summary['toxiproxy']} Toxiproxy")
    typer.echo(f"again: {summary['replay']}")
    if report.exists():
        typer.echo(f"report: {report}")


def fail(error: Exception, code: int) -> NoReturn:
    """End with this exit code and the reason."""
    typer.echo(f"relay-chaos: {error}", err=True)
    raise typer.Exit(code)


def explore(
    name: Annotated[str, typer.Argument(help="The scenario whose traffic and stack are used.")] = "drawn",
    seed: Seed = 1,
    for_s: Annotated[
        float | None, typer.Option("--for", help="Stop after so many seconds; else at Ctrl-C.", min=1)
    ] = None,
    out: OutDir = Path("out/explore"),
    *,
    short: Short = False,
    shrink: Annotated[
        int, typer.Option(help="Runs of each candidate when a failing schedule is shrunk; 0 does not.", min=0)
    ] = 2,
) -> None:
    """Draw schedules from one seed after another, and print the command that replays what was found.

    Exit code 0: every run held. 1: one was broken. 2: none was broken and one could not tell.
    """
    from chaos.interrupt import Interrupted, run_interruptible
    from chaos.runner import Form, RunFailedError
    from chaos.scenarios.library import UnknownScenarioError, find

    verdicts: list[str] = []
    try:
        scenario = find(name)
        form = Form.SHORT if short else Form.NORMAL
        run_interruptible(lambda: _explore(scenario, seed, for_s, out, form, shrink, verdicts))
    except (UnknownScenarioError, RunFailedError) as error:
        fail(error, COULD_NOT_TELL)
    except Interrupted:
        typer.echo("stopped; faults are undone and everything is stopped", err=True)
    raise typer.Exit(worst_exit_code(verdicts))


async def _explore(  # noqa: PLR0917 (a verb's options, handed on once)
    scenario: Any, seed: int, for_s: float | None, out: Path, form: Any, shrink: int, verdicts: list[str]
) -> None:
    from chaos.findings import Verdict
    from chaos.runner.explore import explore as runs
    from chaos.runner.explore import shrunk

    now = asyncio.get_running_loop().time
    stop_at_s = None if for_s is None else now() + for_s
    async for result in runs(scenario, out, seed, form):
        verdicts.append(result.summary["verdict"])
        typer.echo(one_line(f"seed {result.config.seed}", result.summary))
        if result.verdict is Verdict.BROKEN:
            typer.echo(f"  again: {result.config.command} --out {result.config.out_dir}")
            if shrink:
                smallest = await shrunk(result.config, shrink)
                path = result.config.out_dir / "smallest-schedule.json"
                typer.echo(
                    f"  smallest: {len(smallest.faults)} of {len(result.config.plan.schedule.faults)} "
                    f"faults: {result.config.command} --schedule {path}"
                )
        if stop_at_s is not None and now() >= stop_at_s:
            return


def mutants(
    *,
    write: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Each mutant on each of the scenarios that catch one.")
    ] = False,
    only: Annotated[list[str] | None, typer.Option(help="Only this mutant; may be repeated.")] = None,
    seed: Seed = 1,
    jobs: Annotated[int, typer.Option(help="Runs side by side.", min=1, max=16)] = 2,
    out: OutDir = Path("out/mutants"),
) -> None:
    """Run relays with one protection taken from each: a scenario must notice every one.

    Exit code 0: every mutant was caught. 1: one was not.
    """
    from chaos.interrupt import Interrupted, run_interruptible
    from chaos.mutant_table import jobs_for, missed, run_mutants, table
    from chaos.mutants import MUTANTS, UnknownMutantError, find

    try:
        chosen = [find(name) for name in only] if only else list(MUTANTS)
    except UnknownMutantError as error:
        fail(error, COULD_NOT_TELL)
    scenarios = sorted({mutant.caught_by for mutant in MUTANTS}) if everything else None
    planned = jobs_for(chosen, scenarios, seed, out)
    try:
        found = run_interruptible(
            lambda: run_mutants(planned, jobs, lambda name, summary: typer.echo(one_line(name, summary)))
        )
    except Interrupted as interrupted:
        raise typer.Exit(interrupted.exit_code) from None
    if write is not None:
        write.write_text(table(found, seed), encoding="utf-8")
    lost = missed(found)
    typer.echo(f"not caught: {', '.join(lost)}" if lost else f"all {len(chosen)} mutants were caught")
    raise typer.Exit(BROKEN if lost else HELD)
