"""`fednas audit`: attack what a site runs, show that an attack would notice, verify what others wrote."""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fednas.cli.tables import Json, print_json, table
from fednas.errors import ConfigurationError, RunDirectoryError

if TYPE_CHECKING:
    from fednas.audit import Subject
    from fednas.audit.findings import Check, Game, Layer
    from fednas.audit.nursery import Outcome

group = typer.Typer(
    help="Attack what a site runs on made-up records, and bound what leaves it from below.",
    no_args_is_help=True,
)

Claim = Annotated[
    float | None,
    typer.Option(
        help="Epsilon that canaries are played at. Default: the study's, and at most 3: the fewer the "
        "canaries, the smaller the claim must be for a leak to show."
    ),
]
Canaries = Annotated[int, typer.Option(help="How many canaries, at least 100; more see more.")]
Seed = Annotated[int, typer.Option(min=0, help="Public seed of the made-up records.")]
Layers = Annotated[
    list[str] | None,
    typer.Option("--layer", help="L0, L1, L2, L3 or all; repeat for several. Default: all."),
]
Mutants = Annotated[
    bool, typer.Option("--mutants", help="Also break the code in every known way, and see each one found.")
]
Out = Annotated[
    Path | None,
    typer.Option(help="File of the audit. Default: audit.json of the run; without a run, none."),
]


@group.command("run")
def run_audit(
    target: Annotated[Path, typer.Argument(help="A run directory, or a study.toml.")],
    layer: Layers = None,
    claim: Claim = None,
    canaries: Canaries = 1000,
    seed: Seed = 0,
    mutants: Mutants = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Audit a run or a study in four layers; exit code 1 if anything is accused.

    TARGET is a run directory, or a study.toml.

    No record of any site is touched: rehearsed sites hold made-up ones and run the same code over the same
    wire. L0 also reads the ledgers of a run's sites, where they are. The next `fednas ledger statement` of
    the run repeats what was found.
    """
    from fednas.audit import Subject

    if not target.exists():
        raise RunDirectoryError(
            f"there is no file or folder {target}; give a run directory or a study.toml, or audit a scenario "
            "with `python -m simulations audit NAME`"
        )
    subject = Subject.of(target, claim=claim, canaries=canaries, seed=seed)
    path = target / "audit.json" if out is None and target.is_dir() else out
    report_audit(subject, layers=chosen_layers(layer), mutants=mutants, out=path, as_json=as_json)


@group.command("mutants")
def run_mutants(
    name: Annotated[
        list[str] | None, typer.Option("--name", help="A mutant; repeat for several. Default: all.")
    ] = None,
    layer: Layers = None,
    out: Annotated[Path | None, typer.Option(help="File for the matrix, as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Break the code in every known way and see each broken version found; exit code 1 if one is not.

    A mutant lives in a process of its own, on made-up records, for a few seconds. The table says which layer
    must find it and which check did.
    """
    from fednas.audit.mutation import load_mutants

    layers = chosen_layers(layer)
    mutants = [m for m in load_mutants() if m.layer in layers and (not name or m.name in name)]
    unknown = sorted(set(name or []) - {m.name for m in mutants})
    if unknown or not mutants:
        raise ConfigurationError(
            f"there is no mutant {unknown[0]!r} in these layers; `fednas audit mutants` names them all"
            if unknown
            else "no mutant is left; name fewer conditions"
        )
    outcomes = _outcomes([m.name for m in mutants], shown=not as_json)
    matrix = _matrix(outcomes)
    if out is not None:
        _write_json(out, matrix)
    if as_json:
        print_json(matrix)
    else:
        _show_mutants(outcomes)
    if matrix["killed"] < matrix["of"]:
        raise typer.Exit(1)


@group.command("invert")
def invert_gradient(
    epsilon: Annotated[float, typer.Option(help="Privacy budget of the protected site.")] = 3.0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Show what a gradient gives away: a record recovered exactly without noise, and nothing with it."""
    from fednas.audit.inversion import invert, render
    from fednas.audit.scratch import scratch
    from fednas.audit.subject import reference
    from fednas.config import StudyConfig, validated

    values = reference().study.model_dump()
    values["privacy"] |= {"epsilon": epsilon}
    subject = reference(study=validated(StudyConfig, values, "study"), seed=seed)
    with scratch("fednas-audit-") as folder:
        inversion = invert(subject, Path(folder))
    if as_json:
        print_json(
            {
                "epsilon": inversion.epsilon,
                "delta": inversion.delta,
                "correlation_without_noise": inversion.exposed_correlation,
                "error_without_noise": inversion.error,
                "correlation_with_noise": inversion.protected_correlation,
                "readings": inversion.readings,
            }
        )
        return
    print(render(inversion))  # noqa: T201


@group.command("verify")
def verify_audit(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Ledgers, statements, audits, folders of them, or run directories."),
    ],
    as_json: Json = False,
) -> None:
    """Verify all that a stranger can without any private data; exit code 1 if something does not hold.

    PATHS are ledgers, statements, audits, folders of them, or run directories.

    Ledgers are recomputed, statements and their pages are made again and compared byte by byte, the bounds of
    an audit are computed again from the scores that it recorded.
    """
    from rich.markup import escape

    from fednas.audit.stranger import verify_everything

    rows = list(verify_everything(paths))
    if as_json:
        print_json([{"what": r.what, "subject": r.subject, "ok": r.ok, "words": r.words} for r in rows])
    else:
        kinds = list(dict.fromkeys(row.what for row in rows))
        table(
            "what a stranger can verify",
            ["what", "hold", "do not hold"],
            [[escape(kind), *_counted([row.ok for row in rows if row.what == kind])] for kind in kinds],
            caption="--json tells how each was verified",
        )
        marks = {False: "[red]does not hold[/]", None: "cannot be verified"}
        rest = [[escape(r.what), escape(r.subject), marks[r.ok], escape(r.words)] for r in rows if not r.ok]
        if rest:
            table("what does not hold, and what nobody could verify", ["what", "of", "", "why"], rest)
    if any(row.ok is False for row in rows):
        raise typer.Exit(1)


def _counted(verdicts: "Sequence[bool | None]") -> list[str]:
    """How many rows hold, and how many do not, as a table shows it."""
    held, failed = verdicts.count(True), verdicts.count(False)
    return [str(held) if held else "", f"[red]{failed}[/]" if failed else ""]


def chosen_layers(texts: Sequence[str] | None) -> "tuple[Layer, ...]":
    """What `--layer` says, in order.

    Raises:
        ConfigurationError: a layer is unknown.
    """
    from fednas.audit.findings import LAYERS

    wanted = set(texts or ["all"])
    unknown = sorted(wanted - {*LAYERS, "all"})
    if unknown:
        raise ConfigurationError(f"unknown layer {unknown[0]!r}; choose {', '.join(LAYERS)} or all")
    return tuple(layer for layer in LAYERS if "all" in wanted or layer in wanted)


def report_audit(
    subject: "Subject", *, layers: "Sequence[Layer]", mutants: bool, out: Path | None, as_json: bool
) -> None:
    """Carry an audit out, show it, and write it down.

    Raises:
        typer.Exit: with code 1, when something is accused or a mutant survives.
        FednasError: the audit could not be carried out.
    """
    from fednas.audit.report import compose, write
    from fednas.audit.verdict import too_few

    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigurationError(f"there is no folder for {out}; give another file after --out")
    checks, games = _conducted(subject, layers, shown=not as_json)
    outcomes = _outcomes(None, shown=not as_json) if mutants else []
    document = compose(subject, checks, games, mutants=_matrix(outcomes) if mutants else None)
    if out is not None:
        write(out, document)
    if as_json:
        print_json(document)
    else:
        _show_checks(checks)
        _show_games(document)
        for words in dict.fromkeys(filter(None, map(too_few, games))):
            print(f"note: {words}")  # noqa: T201
        if mutants:
            _show_mutants(outcomes)
        if out is not None:
            table(
                "audit", ["file", "what next"], [[str(out), "fednas ledger statement, fednas audit verify"]]
            )
    if document["accused"] or (mutants and document["mutants"]["killed"] < document["mutants"]["of"]):
        raise typer.Exit(1)


def _conducted(
    subject: "Subject", layers: "Sequence[Layer]", *, shown: bool
) -> "tuple[list[Check], list[Game]]":
    """Findings of an audit, with a line that says what is being looked at."""
    from rich.console import Console
    from rich.markup import escape

    from fednas.audit.conduct import conduct
    from fednas.audit.findings import Check, Game
    from fednas.audit.layers import TITLES

    checks: list[Check] = []
    games: list[Game] = []
    console = Console(stderr=True)
    with console.status("audit", spinner="line") if shown and console.is_terminal else nullcontext() as line:
        for layer, finding in conduct(subject, layers):
            if isinstance(finding, Game):
                games.append(finding)
            else:
                checks.append(finding)
            if line is not None:
                line.update(escape(f"{TITLES[layer]}: {len(checks)} checks, {len(games)} games"))
    return checks, games


def _show_checks(checks: "Sequence[Check]") -> None:
    from rich.markup import escape

    from fednas.audit.findings import LAYERS
    from fednas.audit.layers import TITLES

    rows = []
    for layer in LAYERS:
        mine = [check for check in checks if check.layer == layer]
        if mine:
            bad = sum(not check.holds for check in mine)
            verdict = f"[red]{bad} do not hold[/]" if bad else "[green]all hold[/]"
            rows.append([layer, escape(TITLES[layer]), str(len(mine)), verdict])
    table("audit", ["layer", "what it looks at", "checks", ""], rows)
    bad_rows = [[c.layer, escape(c.name), escape(c.detail)] for c in checks if not c.holds]
    if bad_rows:
        table("[red]accused[/]", ["layer", "what should be true", "what was seen"], bad_rows)


def _show_games(document: "Mapping[str, Any]") -> None:
    from fednas.statement.elements import round_down

    rows = []
    for game in document["games"]:
        for bound in game["bounds"]:
            rows.append(
                [
                    game["mechanism"],
                    str(len(game["members"])),
                    bound["estimator"],
                    round_down(bound["epsilon"], 2),
                    f"{game['claim']:.2f}",
                ]
            )
    if rows:
        table(
            "epsilon that an attacker proved, at least, and epsilon that is claimed, at most",
            ["releases of", "canaries", "estimator", "at least", "at most"],
            rows,
            caption="95 % confidence each, so one in twenty may be above the truth; only what a correct "
            "system does less than once in a million games accuses",
        )


def _outcomes(names: list[str] | None, *, shown: bool) -> "list[Outcome]":
    """Each mutant's end, with a progress bar."""
    from rich.console import Console
    from rich.progress import Progress

    from fednas.audit.mutation import load_mutants
    from fednas.audit.nursery import run_mutants as run

    mutants = [m for m in load_mutants() if names is None or m.name in names]
    found = []
    with Progress(console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("mutants", total=len(mutants))
        for outcome in run(mutants):
            found.append(outcome)
            bar.update(task, completed=len(found), description=outcome.name[:40])
    return found


def _matrix(outcomes: "Sequence[Outcome]") -> dict[str, Any]:
    from fednas.privacy.declaration import code_digest

    return {
        "code": code_digest(),
        "of": len(outcomes),
        "killed": sum(outcome.killed for outcome in outcomes),
        "rows": [asdict(outcome) for outcome in outcomes],
    }


def _show_mutants(outcomes: "Sequence[Outcome]") -> None:
    from rich.markup import escape

    table(
        f"mutants: {sum(o.killed for o in outcomes)} of {len(outcomes)} found by the layer that must find it",
        ["layer", "group", "mutant", "found by", "s"],
        [
            [
                o.layer,
                o.group,
                escape(o.name),
                escape(o.found_by) if o.killed else f"[red]{escape(o.error or 'survived')}[/]",
                f"{o.seconds:.1f}",
            ]
            for o in outcomes
        ],
    )


def _write_json(path: Path, value: Any) -> None:
    try:
        path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {path}: {error.strerror}; give another file after --out"
        ) from error
