"""`fednas ledger`: show, verify and state what a site's ledger proves."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fednas.cli.tables import Json, epsilon_text, print_json, table
from fednas.errors import ConfigurationError, LedgerError, RunDirectoryError
from fednas.privacy.numbers import is_digest

if TYPE_CHECKING:
    from fednas.privacy.marks import Mark
    from fednas.privacy.spend_statement import SpendStatement
    from fednas.privacy.verify import Verification

group = typer.Typer(help="Show, verify and state what a site's ledger proves.", no_args_is_help=True)

Ledgers = Annotated[list[Path], typer.Argument(help="Ledger files, or run directories with sites.")]


@group.command("show")
def show_ledger(paths: Ledgers, as_json: Json = False) -> None:
    """Show what ledgers say their datasets have spent.

    PATHS are ledger files, or run directories, which stand for the ledgers of their sites.
    """
    from fednas.privacy.ledger import read_statement

    statements = [(path, read_statement(path)) for path in _ledger_files(paths)]
    if as_json:
        print_json([{"file": str(path)} | _spend(statement) for path, statement in statements])
        return
    for path, statement in statements:
        order = statement.cap.order
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
            caption=f"cap {statement.cap.epsilon:g} at delta {statement.delta:g}"
            + ("" if order is None else f", a filter at order {order}")
            + f"; {statement.entries} entries, {statement.open_reservations} open reservations, "
            f"{statement.refusals} refusals; head {statement.head[:12]}, key {statement.signer[:12]}",
        )


@group.command("verify")
def verify_ledger(
    paths: Ledgers,
    head: Annotated[
        str | None, typer.Option(help="A head seen earlier; each file must still contain it.")
    ] = None,
    signer: Annotated[
        str | None,
        typer.Option(
            help="The public key seen earlier, 64 hexadecimal digits; each file must be signed by it."
        ),
    ] = None,
    marks: Annotated[
        Path | None,
        typer.Option(help="A server's marks.json: each file must go on from the state that the server saw."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Recompute every digest, signature, charge and epsilon of ledgers; exit code 1 if one does not hold.

    PATHS are ledger files, or run directories, which stand for the ledgers of their sites.
    """
    known = read_marks(marks) if marks is not None else None
    for name, digits in (("--head", head), ("--signer", signer)):
        if digits is not None and not is_digest(digits):
            raise ConfigurationError(f"expected 64 hexadecimal digits after {name}, got {digits!r:.80}")
    rows = [_verified(path, head, signer, known) for path in _ledger_files(paths)]
    if as_json:
        print_json(rows)
    else:
        columns = ["dataset", "chain, signature, charges", "epsilon (PLD)", "epsilon (proved)", "cap"]
        table(
            "ledgers, recomputed from their own events",
            [*columns, "entries", "head", "signed under", *(["mark"] if known is not None else [])],
            [_verified_row(row, marked=known is not None) for row in rows],
            caption="a head or a key that somebody else kept (--head, --signer, --marks) is what an old or a "
            "rewritten copy cannot show",
        )
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)


@group.command("statement")
def state_ledger(
    paths: Ledgers,
    audit: Annotated[
        Path | None,
        typer.Option(help="An audit of what the sites run. Default: audit.json of a run, if it is there."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files. Default: beside each ledger.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the statement a data protection officer reads, as JSON and as a page, and one page for a run.

    PATHS are ledger files, or run directories, which stand for the ledgers of their sites. A run's page is
    privacy.html, beside its study.toml or in the folder of --out.
    """
    from fednas.statement import state, write

    audits = _audits(paths, audit)
    files = list(audits)
    statements = [state(path, audits[path]) for path in files]
    targets = _targets(files, [statement.dataset for statement in statements], out)
    rows: list[dict[str, Any]] = []
    for path, statement, (folder, stem) in zip(files, statements, targets, strict=True):
        document, page = write(statement, folder, stem)
        stated = json.loads(statement.document)
        claim, found = stated["claim"], stated["audit"]
        rows.append(
            {
                "ledger": str(path),
                "dataset": statement.dataset,
                "epsilon": claim["epsilon"],
                "delta": claim["delta"],
                "audit": None if found is None else found["sha256"],
                "accused": None if found is None else found["accused"],
                "statement": str(document),
                "page": str(page),
                "overview": None,
            }
        )
    for place, members in _overviews(paths, files, out).items():
        _write_overview(place, [row for row in rows if Path(row["ledger"]) in members])
    if as_json:
        print_json(rows)
        return
    table(
        "privacy statements",
        ["dataset", "epsilon", "delta", "audit", "JSON", "page"],
        [
            [
                r["dataset"],
                _claim_text(r["epsilon"]),
                f"{r['delta']:g}",
                {None: "none given", True: "[red]ACCUSED[/]", False: "not accused"}[r["accused"]],
                r["statement"],
                r["page"],
            ]
            for r in rows
        ],
        caption="made from ledgers and audits alone: whoever makes them again gets the same bytes"
        + "".join(f"; of all: {place}" for place in dict.fromkeys(r["overview"] for r in rows) if place),
    )


def _audits(paths: list[Path], given: Path | None) -> dict[Path, Mapping[str, Any] | None]:
    """The audit of each ledger file: the one that was given, or that of the file's run."""
    from fednas.statement import read_audit

    common = None if given is None else read_audit(given)
    found: dict[Path, Mapping[str, Any] | None] = {}
    for path in paths:
        audit = common
        if audit is None and path.is_dir() and (path / "audit.json").exists():
            audit = read_audit(path / "audit.json")
        for file in _ledger_files([path]):
            found[file] = found.get(file) or audit
    return found


def _overviews(paths: list[Path], files: list[Path], out: Path | None) -> dict[Path, list[Path]]:
    """Where an overview is written, and of which ledgers: one page says nothing more of a single ledger."""
    if out is not None:
        return {out / "privacy.html": files} if len(files) > 1 else {}
    runs = {path / "privacy.html": _ledger_files([path]) for path in paths if path.is_dir()}
    return {place: members for place, members in runs.items() if len(members) > 1}


def _write_overview(place: Path, rows: list[dict[str, Any]]) -> None:
    """Write the page of several statements, and note it in their rows."""
    from fednas.statement import Site, overview, write_file

    folder = place.parent.resolve()
    sites = [
        Site(
            document=json.loads(Path(row["statement"]).read_bytes()),
            page=PurePosixPath(Path(os.path.relpath(Path(row["page"]).resolve(), folder)).as_posix()),
        )
        for row in rows
    ]
    write_file(place, overview(sites))
    for row in rows:
        row["overview"] = str(place)


@group.command("verifier")
def write_verifier(
    out: Annotated[Path | None, typer.Option(help="File to write. Default: standard output.")] = None,
    as_json: Json = False,
) -> None:
    """Write the verifier as one file that needs nothing but Python: `python3 -I -S verify.py LEDGER`."""
    import hashlib
    import inspect

    from fednas.privacy import verify

    source = inspect.getsource(verify)
    digest = hashlib.sha256(source.encode()).hexdigest()
    if out is not None:
        try:
            out.write_text(source, encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(
                f"cannot write {out}: {error.strerror}; give another file after --out"
            ) from error
    if as_json:
        print_json({"file": None if out is None else str(out), "sha256": digest, "source": source})
    elif out is None:
        print(source, end="")  # noqa: T201
    else:
        table("verifier", ["file", "sha256"], [[str(out), digest]])


def _verified(
    path: Path, head: str | None, signer: str | None, marks: "Mapping[str, Mark] | None"
) -> dict[str, Any]:
    """What the verifier finds in one file, held against all that somebody else kept of it."""
    from fednas.privacy.ledger import read_statement
    from fednas.privacy.verify import LedgerTampered, verify

    row: dict[str, Any] = {"file": str(path)}
    try:
        found = verify(path, expected_head=head, expected_signer=signer)
        if marks is not None:
            row["mark"] = _hold(path, found, marks)
        statement = read_statement(path)
        if statement.head != found.head:
            raise LedgerTampered(f"{path} grew while it was read; verify it again, or a copy of it")
    except (LedgerTampered, LedgerError) as error:
        return row | {"ok": False, "finding": str(error)}
    bound = {stream: values["claimed_rdp"] for stream, values in found.streams.items()}
    return (
        row
        | {
            "ok": True,
            "proved_by_stream": bound,
            "proved": max(bound.values()),
            "nominal_proved": max(v["nominal_claimed_rdp"] for v in found.streams.values()),
        }
        | _spend(statement)
    )


def _hold(path: Path, found: "Verification", marks: "Mapping[str, Mark]") -> int:
    """Hold a file against the mark of its dataset: the number of entries that the server saw."""
    from fednas.privacy.verify import LedgerTampered, verify

    mark = marks.get(found.dataset)
    if mark is None:
        raise LedgerTampered(f"the marks know no dataset {found.dataset!r}: the server never saw this ledger")
    if found.entries < mark.entries:
        raise LedgerTampered(
            f"{path} has {found.entries} entries, the server has seen {mark.entries}: it was cut back"
        )
    verify(path, expected_head=mark.head, expected_signer=mark.signer)
    return mark.entries


def read_marks(path: Path) -> "dict[str, Mark]":
    """The server's marks by dataset.

    Raises:
        ConfigurationError: it is no such file.
    """
    from fednas.privacy.marks import FORMAT, parse_marks

    try:
        return parse_marks(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}: {error.strerror}; give a server's marks.json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{path} is not a server's marks.json of format {FORMAT}; give the file of a run"
        ) from error


def _verified_row(row: Mapping[str, Any], *, marked: bool) -> list[str]:
    from rich.markup import escape

    if not row["ok"]:
        return [escape(row["file"]), f"[red]{escape(row['finding'])}[/]", *[""] * (7 if marked else 6)]
    cells = [
        row["dataset"],
        "[green]hold[/]",
        epsilon_text(row["claimed_epsilon"], row["nominal_claimed_epsilon"]),
        epsilon_text(row["proved"], row["nominal_proved"]),
        f"{row['cap']:g}",
        str(row["entries"]),
        row["head"][:12],
        row["signer"][:12],
    ]
    return [*cells, f"entry {row['mark']}"] if marked else cells


def _targets(files: list[Path], datasets: list[str], out: Path | None) -> list[tuple[Path, str]]:
    """(folder, stem) of each statement: no two in the same place, none outside the folder asked for."""
    if out is None:
        targets = [
            (file.parent, "statement" if file.stem == "ledger" else f"{file.stem}.statement")
            for file in files
        ]
    elif len(files) == 1:
        targets = [(out, "statement")]
    else:  # a dataset's name comes from the file and may hold anything: only plain words make a path
        targets = [
            (out / re.sub("[^A-Za-z0-9_-]+", "-", dataset).strip("-"), "statement") for dataset in datasets
        ]
    if len(set(targets)) < len(targets):
        raise ConfigurationError(
            "two of these ledgers would write the same statement; state them one at a time, each with --out"
        )
    return targets


def _claim_text(epsilon: float | str) -> str:
    return f"{epsilon:.4f}" if isinstance(epsilon, int | float) else "[red]INFINITE[/]"


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
    return list(dict.fromkeys(files))


def _spend(statement: "SpendStatement") -> dict[str, Any]:
    return {
        "dataset": statement.dataset,
        "cap": statement.cap.epsilon,
        "order": statement.cap.order,
        "delta": statement.delta,
        "claimed_epsilon": statement.claimed_epsilon,
        "nominal_claimed_epsilon": statement.nominal_claimed_epsilon,
        "streams": [asdict(stream) for stream in statement.streams],
        "entries": statement.entries,
        "head": statement.head,
        "signer": statement.signer,
        "non_private": statement.non_private,
        "open_reservations": statement.open_reservations,
        "refusals": statement.refusals,
    }
