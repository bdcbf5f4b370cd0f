"""`fednas ledger`: show, verify and state what a site's ledger proves."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fednas.cli.tables import Json, epsilon_text, print_json, table
from fednas.errors import LedgerError, RunDirectoryError

group = typer.Typer(help="Read and verify what a site's ledger proves.", no_args_is_help=True)

Ledgers = Annotated[list[Path], typer.Argument(help="Ledger files, or run directories with sites.")]


@group.command("show")
def show_ledger(paths: Ledgers, as_json: Json = False) -> None:
    """Show what ledgers say their datasets have spent."""
    from fednas.privacy.ledger import read_statement

    statements = [(path, read_statement(path)) for path in _ledger_files(paths)]
    if as_json:
        print_json([{"file": str(path)} | _statement(statement) for path, statement in statements])
        return
    for path, statement in statements:
        table(
            f"{statement.dataset}  ({path})",
            ["stream", "epsilon claimed", "epsilon charged"],
            [
                [
                    s.stream,
                    epsilon_text(s.claimed_epsilon, s.nominal_claimed_epsilon),
                    epsilon_text(s.charged_epsilon, s.nominal_charged_epsilon),
                ]
                for s in statement.streams
            ],
            caption=f"cap {statement.cap.epsilon:g} at delta {statement.delta:g}; "
            f"{statement.entries} entries, {statement.open_reservations} open reservations, "
            f"{statement.refusals} refusals; head {statement.head[:16]}",
        )


@group.command("verify")
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
        print_json(rows)
    else:
        table(
            "ledgers, recomputed from their own events",
            ["dataset", "chain and charges", "epsilon (PLD)", "epsilon (proved)", "cap", "entries", "head"],
            [
                [
                    r["dataset"],
                    "[green]hold[/]",
                    epsilon_text(r["claimed_epsilon"], r["nominal_claimed_epsilon"]),
                    epsilon_text(r["proved"], r["nominal_proved"]),
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
