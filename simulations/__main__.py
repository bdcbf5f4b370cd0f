"""`python -m simulations`: list the scenarios, run one, compare it with its baselines, or audit it."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fednas.cli import run_cli
from fednas.cli.audits import Canaries, Claim, Layers, Mutants, chosen_layers, report_audit
from fednas.cli.audits import Seed as AuditSeed
from fednas.config import StudyConfig, validated
from fednas.errors import ConfigurationError
from simulations.scenarios import SCENARIOS

cli = typer.Typer(
    help="Private, federated architecture search on real data, simulated on one machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Epsilon = Annotated[float | None, typer.Option(help="Privacy budget of every site. Default: the scenario's.")]
Rounds = Annotated[int | None, typer.Option(min=2, help="Training rounds in all. Default: the scenario's.")]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Public seed: paths, initial weights, search. Default: 0.")
]
Strategy = Annotated[str | None, typer.Option(help="random, evolution, tpe or differentiable.")]


@cli.command("list")
def list_scenarios(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List the scenarios: what they hold, where their data come from, who their sites are."""
    scenarios = [make() for make in SCENARIOS.values()]
    if as_json:
        print(json.dumps([{"name": s.name, "description": s.description} for s in scenarios], indent=1))  # noqa: T201
        return
    table = Table("scenario", "space", "epsilon", "what it is")
    for scenario in scenarios:
        study = scenario.study
        table.add_row(
            scenario.name,
            study.search.space,
            f"{study.privacy.epsilon:g}",
            scenario.description,
            end_section=True,
        )
    Console().print(table)


@cli.command("run")
def run_scenario(
    name: Annotated[str, typer.Argument(help="A scenario; see `list`.")],
    epsilon: Epsilon = None,
    delta: Annotated[float | None, typer.Option(help="Default: 1e-5.")] = None,
    rounds: Rounds = None,
    seed: Seed = None,
    strategy: Strategy = None,
    out: Annotated[Path | None, typer.Option(help="Run directory. Default: runs/NAME-TIME.")] = None,
    state: Annotated[
        Path | None, typer.Option(help="Keep the sites' ledgers and the server's marks here, across runs.")
    ] = None,
    cap: Annotated[
        list[str] | None,
        typer.Option(
            help="Epsilon cap of every site, or SITE=EPSILON for one; repeat for several. A site that allows "
            "less than the study's epsilon gets a plan with more noise. Default: the epsilon.",
        ),
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="loopback, workers (processes), ray, or deployment (SuperNodes over TLS).")
    ] = "loopback",
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    sites: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many sites of the scenario. Default: all.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out, with what it began with.")
    ] = False,
    non_private: Annotated[
        bool, typer.Option("--non-private", help="No noise, epsilon = infinity: a baseline.")
    ] = False,
    test_noise: Annotated[
        bool, typer.Option("--test-noise", help="Seeded noise: reproducible and NOT private.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the sites' own logs too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result for programs.")] = False,
) -> None:
    """Run a scenario: search under differential privacy, then a network for every device tier."""
    from server.checkpoint import RunDirectory
    from simulations import console, runner

    if runtime not in ("loopback", "workers", "ray", "deployment"):
        raise ConfigurationError(f"unknown runtime {runtime!r}; choose loopback, workers, ray or deployment")
    if name not in SCENARIOS:
        raise ConfigurationError(f"unknown scenario {name!r}; choose one of {', '.join(SCENARIOS)}")
    everyone, caps = parse_caps(cap or [])
    options = runner.Options(
        runtime=runtime,  # type: ignore[arg-type]
        workers=workers,
        sites=sites,
        state=state,
        cap=everyone,
        caps=caps,
        test_noise=test_noise,
    )
    if resume and out is None:
        raise ConfigurationError("--resume needs --out, the run directory to continue")
    path = out or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    scenario = SCENARIOS[name]()
    began = RunDirectory(path).study if resume else scenario.study
    study = adjust(
        began,
        epsilon=epsilon,
        delta=delta,
        rounds=rounds,
        seed=seed,
        strategy=strategy,
        non_private=non_private,
    )
    if resume and study != began:
        raise ConfigurationError(f"the run in {path} began with other settings, which cannot change now")
    with console.site_logs(shown=verbose), console.progress(name, shown=not as_json):
        if resume:
            outcome = runner.resume(path, options, scenario=name)
        else:
            outcome = runner.start(scenario, study, path, options)
    if as_json:
        print(json.dumps(outcome | {"path": str(path)}, indent=1, sort_keys=True))  # noqa: T201
    else:
        console.show(path, outcome)


@cli.command("compare")
def compare_scenario(
    name: Annotated[str, typer.Argument(help="A scenario; see `list`.")],
    epsilon: Annotated[list[float] | None, typer.Option(help="Repeat for several. Default: 1 3 8.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds, from 0.")] = 3,
    draws: Annotated[int, typer.Option(min=1, help="Random architectures a seed.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    out: Annotated[
        Path | None, typer.Option(help="JSON lines, continued if there. Default: runs/compare-NAME.jsonl.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summaries for programs.")] = False,
) -> None:
    """Compare the search with random and fixed architectures and each tier alone, at the same epsilon."""
    from rich.progress import Progress

    from simulations import analysis, console

    if name not in SCENARIOS:
        raise ConfigurationError(f"unknown scenario {name!r}; choose one of {', '.join(SCENARIOS)}")
    path = out or Path("runs") / f"compare-{name}.jsonl"
    epsilons = epsilon or [1.0, 3.0, 8.0]
    jobs = analysis.plan_jobs(SCENARIOS[name](), epsilons=epsilons, seeds=seeds, draws=draws)
    with Progress(console=console.console, disable=as_json) as bar:
        task = bar.add_task(f"{name}: runs", total=len(jobs))
        for done, _ in analysis.compare(jobs, path, workers=workers):
            bar.update(task, completed=done)
    wanted = set(jobs)
    summaries = analysis.summarise([row for row in analysis.read_rows(path) if row.job in wanted])
    if as_json:
        print(json.dumps([asdict(summary) for summary in summaries], indent=1))  # noqa: T201
    else:
        Console().print(console.comparison_table(name, summaries))


@cli.command("audit")
def audit_scenario(
    name: Annotated[str, typer.Argument(help="A scenario; see `list`.")],
    layer: Layers = None,
    claim: Claim = None,
    canaries: Canaries = 1000,
    seed: AuditSeed = 0,
    mutants: Mutants = False,
    out: Annotated[Path | None, typer.Option(help="File of the audit. Default: none.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the audit for programs.")] = False,
) -> None:
    """Audit a scenario's study as `fednas audit run` audits a run: no record of the scenario is used."""
    from fednas.audit import Subject

    if name not in SCENARIOS:
        raise ConfigurationError(f"unknown scenario {name!r}; choose one of {', '.join(SCENARIOS)}")
    study = SCENARIOS[name]().study
    subject = Subject.of_study(study, claim=claim, canaries=canaries, seed=seed)
    report_audit(subject, layers=chosen_layers(layer), mutants=mutants, out=out, as_json=as_json)


def adjust(
    study: StudyConfig,
    *,
    epsilon: float | None = None,
    delta: float | None = None,
    rounds: int | None = None,
    seed: int | None = None,
    strategy: str | None = None,
    non_private: bool = False,
) -> StudyConfig:
    """The scenario's study with the command line's wishes; rounds keep their proportion of search to final.

    Raises:
        ConfigurationError: naming the value and its bound.
    """
    values = study.model_dump(exclude_unset=False)
    if seed is not None:
        values["seed"] = seed
    if epsilon is not None:
        values["privacy"]["epsilon"] = epsilon
    if non_private:
        values["privacy"] |= {"epsilon": float("inf"), "non_private": True}
    if delta is not None:
        values["privacy"]["delta"] = delta
    if strategy is not None:
        values["search"]["strategy"] = strategy
        if strategy == "differentiable" and values["privacy"]["architecture"] == 0.0:
            values["privacy"]["architecture"] = ARCHITECTURE_SHARE
            values["privacy"]["weights"] -= ARCHITECTURE_SHARE
    if rounds is not None:
        schedule = values["schedule"]
        share = schedule["search_rounds"] / (schedule["search_rounds"] + schedule["final_rounds"])
        search = min(max(1, round(rounds * share)), rounds - 1)
        schedule |= {"search_rounds": search, "final_rounds": rounds - search}
    return validated(StudyConfig, values, "study")


def parse_caps(texts: Sequence[str]) -> tuple[float | None, dict[str, float]]:
    """What `--cap` says: one number for all sites, and numbers for sites by name.

    Args:
        texts: `EPSILON` at most once, `SITE=EPSILON` at most once for each site.

    Raises:
        ConfigurationError: an epsilon is not positive and finite, or a site, or all of them, has two.
    """
    caps: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            epsilon = float(number)
        except ValueError:
            epsilon = math.nan
        if not 0.0 < epsilon < math.inf or text.startswith("="):
            raise ConfigurationError(
                f"--cap {text!r}: expected EPSILON or SITE=EPSILON with a finite epsilon > 0, as in "
                "--cap 3 --cap hospital-2=1"
            )
        if name in caps:
            raise ConfigurationError(f"--cap is there twice for {name or 'every site'}; give one epsilon")
        caps[name] = epsilon
    return caps.pop("", None), caps


ARCHITECTURE_SHARE = 0.05
"""Share of records for architecture gradients, taken from the weights when a strategy first needs them."""


def main() -> None:
    """Run the command line; a user's mistake is one line and exit code 2."""
    run_cli(cli)


if __name__ == "__main__":
    main()
