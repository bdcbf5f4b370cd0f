"""The command line: plan a budget, read and verify ledgers, export networks. Thin, and imported lazily."""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import click
import typer

from fednas.errors import ConfigurationError, FednasError, LedgerError, RunDirectoryError

if TYPE_CHECKING:
    from fednas.config import StudyConfig

app = typer.Typer(
    help="Federated, differentially private architecture search with a ledger that proves every epsilon.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ledger_app = typer.Typer(help="Read and verify what a site's ledger proves.", no_args_is_help=True)
app.add_typer(ledger_app, name="ledger")

Json = Annotated[bool, typer.Option("--json", help="For programs.")]
Ledgers = Annotated[list[Path], typer.Argument(help="Ledger files, or run directories with sites.")]


@app.command()
def plan(
    study: Annotated[Path, typer.Argument(help="A study.toml, or a run directory.")],
    epsilon: Annotated[float | None, typer.Option(help="Instead of the study's.")] = None,
    delta: Annotated[float | None, typer.Option(help="Instead of the study's.")] = None,
    sites: Annotated[
        list[int] | None, typer.Option(help="Declared size of a site; repeat for each. Checks delta.")
    ] = None,
    tiers: Annotated[int, typer.Option(min=1, help="Number of device tiers.")] = 3,
    as_json: Json = False,
) -> None:
    """Show what a study will spend, stream by stream, before anything runs."""
    from fednas.config import PrivacySection, load_study, validated

    path = study / "study.toml" if study.is_dir() else study
    config = load_study(path)
    changes = {k: v for k, v in (("epsilon", epsilon), ("delta", delta)) if v is not None}
    if changes:
        privacy = validated(PrivacySection, config.privacy.model_dump() | changes, "privacy")
        config = config.model_copy(update={"privacy": privacy})
    made = _plan(config, study / "plan.json" if study.is_dir() and not changes else None, tiers)
    for size in sites or []:
        made.budget.check_size(size)
    from fednas.privacy.accounting import epsilon_rdp
    from fednas.privacy.plan import STREAMS

    shares = dict(made.proportions)
    streams = {
        stream: {
            "share": shares[stream],
            "epsilon": made.epsilon(stream),
            "epsilon_proved": epsilon_rdp(made.events(stream), made.budget.delta),
        }
        for stream in STREAMS
        if shares[stream] > 0
    }
    if as_json:
        _print_json(
            {"id": made.id, "claim": made.claim, "delta": made.budget.delta, "streams": streams}
            | _terms(made)
        )
        return
    _table(
        f"plan {made.id[:12]}: epsilon {made.claim:.4f} at delta {made.budget.delta:g}, "
        "add or remove one record",
        ["release", "streams", "at most", "sampling", "noise multiplier", "clip norm"],
        [
            [a["what"], ", ".join(a["streams"]), a["times"], a["sampling"], a["noise"], a["clip"]]
            for a in _terms(made)["releases"]
        ],
    )
    _table(
        "streams are disjoint, so a record's epsilon is the maximum",
        ["stream", "share of records", "epsilon (PLD)", "epsilon (proved, Rényi)"],
        [
            [name, f"{s['share']:.0%}", f"{s['epsilon']:.4f}", f"{s['epsilon_proved']:.4f}"]
            for name, s in streams.items()
        ],
    )


@ledger_app.command("show")
def show_ledger(paths: Ledgers, as_json: Json = False) -> None:
    """Show what ledgers say their datasets have spent."""
    from fednas.privacy.ledger import read_statement

    statements = [(path, read_statement(path)) for path in _ledger_files(paths)]
    if as_json:
        _print_json([{"file": str(path)} | _statement(statement) for path, statement in statements])
        return
    for path, statement in statements:
        _table(
            f"{statement.dataset}  ({path})",
            ["stream", "epsilon claimed", "epsilon charged"],
            [
                [
                    s.stream,
                    _epsilon(s.claimed_epsilon, s.nominal_claimed_epsilon),
                    _epsilon(s.charged_epsilon, s.nominal_charged_epsilon),
                ]
                for s in statement.streams
            ],
            caption=f"cap {statement.cap.epsilon:g} at delta {statement.delta:g}; "
            f"{statement.entries} entries, {statement.open_reservations} open reservations, "
            f"{statement.refusals} refusals; head {statement.head[:16]}",
        )


@ledger_app.command("verify")
def verify_ledger(
    paths: Ledgers,
    head: Annotated[
        str | None, typer.Option(help="A head seen earlier; the file must still contain it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Recompute every digest, charge and epsilon of ledgers; exit code 1 when one does not hold."""
    from fednas.privacy.ledger import read_statement
    from fednas.privacy.verify import LedgerTampered, verify

    rows: list[dict[str, Any]] = []
    for path in _ledger_files(paths):
        try:
            found = verify(path, expected_head=head)
            statement = read_statement(path)
        except (LedgerTampered, LedgerError) as error:
            rows.append({"file": str(path), "ok": False, "finding": str(error)})
            continue
        bound = {s: v["claimed_rdp"] for s, v in found.streams.items()}
        rows.append(
            {
                "file": str(path),
                "ok": True,
                "proved_by_stream": bound,
                "proved": max(bound.values()),
                "nominal_proved": max(v["nominal_claimed_rdp"] for v in found.streams.values()),
            }
            | _statement(statement)
        )
    if as_json:
        _print_json(rows)
    else:
        _table(
            "ledgers, recomputed from their own events",
            ["dataset", "chain and charges", "epsilon (PLD)", "epsilon (proved)", "cap", "entries", "head"],
            [
                [
                    r["dataset"],
                    "[green]hold[/]",
                    _epsilon(r["claimed_epsilon"], r["nominal_claimed_epsilon"]),
                    _epsilon(r["proved"], r["nominal_proved"]),
                    f"{r['cap']:g}",
                    str(r["entries"]),
                    r["head"][:12],
                ]
                if r["ok"]
                else [r["file"], f"[red]{r['finding']}[/]", "", "", "", "", ""]
                for r in rows
            ],
            caption="a head that somebody else kept (--head) is what an old copy of a file cannot show",
        )
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)


@app.command("export")
def export_networks(
    run: Annotated[Path, typer.Argument(help="A finished run directory.")],
    tier: Annotated[str | None, typer.Option(help="One tier only.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the files. Default: RUN/tiers.")] = None,
    as_json: Json = False,
) -> None:
    """Write the network of each device tier again: ONNX, one torch file, weights, architecture."""
    from fednas.config import load_study
    from fednas.export import export
    from fednas.space import Architecture, create
    from fednas.supernet import Supernet

    try:
        result = json.loads((run / "result.json").read_text())
        chosen = {name: entry["architecture"] for name, entry in result["tiers"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunDirectoryError(
            f"{run} is not a finished run directory: result.json is missing or corrupt"
        ) from error
    if tier is not None and tier not in chosen:
        raise ConfigurationError(f"the run has no tier {tier!r}; choose one of {', '.join(chosen)}")
    config = load_study(run / "study.toml")
    space = create(config.search.space, config.data.input_shape, config.data.num_classes)
    supernet = Supernet.load(space, run / "supernet.safetensors")
    written = {}
    for name, choices in chosen.items():
        if tier in (None, name):
            architecture = Architecture.of(space.name, choices)
            folder = (out or run / "tiers") / name
            files = export(
                supernet.extract(architecture), architecture, folder, input_shape=space.input_shape
            )
            written[name] = {key: str(path) for key, path in asdict(files).items()}
    if as_json:
        _print_json(written)
    else:
        _table(
            "exported", ["tier", "onnx", "torch"], [[n, f["onnx"], f["torch"]] for n, f in written.items()]
        )


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2, never a traceback."""
    run_cli(app)


def run_cli(application: typer.Typer) -> None:
    """Run a Typer application; a mistake of any kind is one line on standard error and exit code 2."""
    try:
        code = application(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except FednasError as error:
        _fail(str(error))
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    if code:
        sys.exit(code)


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    sys.exit(2)


def _plan(config: "StudyConfig", stored: Path | None, tiers: int) -> Any:
    from fednas.privacy.plan import PrivacyPlan
    from fednas.schedule import release_schedule

    if stored is not None and stored.exists():
        return PrivacyPlan.from_json(str(json.loads(stored.read_text())["canonical"]))
    privacy = config.privacy
    return PrivacyPlan.calibrate(
        budget=privacy.budget, proportions=privacy.proportions, schedule=release_schedule(config, tiers)
    )


def _terms(plan: Any) -> dict[str, Any]:
    return {
        "releases": [
            {
                "what": allowance.name,
                "streams": list(allowance.streams),
                "times": str(allowance.amount),
                "sampling": f"{allowance.sampling_probability:g}",
                "noise": f"{allowance.noise_multiplier:g}",
                "clip": f"{allowance.clip_norm:g}",
            }
            for allowance in plan.allowances
        ]
    }


def _ledger_files(paths: list[Path]) -> list[Path]:
    """Files as they are; a run directory stands for the ledgers of its sites."""
    from fednas.config import load_sites

    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            sites = load_sites(path)
            if not sites:
                raise RunDirectoryError(f"{path} holds no sites; give a ledger file or a run directory")
            files += [site.ledger for site in sites]
        elif path.is_file():
            files.append(path)
        else:
            raise RunDirectoryError(f"there is no file or folder {path}")
    return files


def _statement(statement: Any) -> dict[str, Any]:
    return {
        "dataset": statement.dataset,
        "cap": statement.cap.epsilon,
        "delta": statement.delta,
        "claimed_epsilon": statement.claimed_epsilon,
        "nominal_claimed_epsilon": statement.nominal_claimed_epsilon,
        "streams": [asdict(stream) for stream in statement.streams],
        "entries": statement.entries,
        "head": statement.head,
        "non_private": statement.non_private,
        "open_reservations": statement.open_reservations,
        "refusals": statement.refusals,
    }


def _epsilon(value: float, nominal: float) -> str:
    if math.isinf(value) and math.isfinite(nominal):
        return f"[red]infinite[/] (test noise; nominal {nominal:.4f})"
    return f"{value:.4f}"


def _table(title: str, columns: list[str], rows: list[list[str]], *, caption: str | None = None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, sort_keys=True))  # noqa: T201


if __name__ == "__main__":
    main()
