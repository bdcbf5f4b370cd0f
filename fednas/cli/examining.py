"""`fednas doctor`: a checklist of what a kit needs to run, tried on the real endpoints."""

from pathlib import Path
from typing import Annotated, Final

import typer

from fednas.cli.tables import Json, print_json, table

_COLOURS: Final = {"ok": "green", "warn": "yellow", "fail": "red", "skip": "dim"}


def examine_kit(
    folder: Annotated[Path, typer.Argument(help="Folder of a server's or a site's kit.")],
    study: Annotated[
        Path | None, typer.Option(help="Of a site: the study.toml that it may take part in.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Test the kit in FOLDER against what is really there; exit code 1 if anything fails.

    Nothing is spent, and nothing of a record is shown.
    """
    import time
    from dataclasses import asdict

    from rich.markup import escape

    from fednas.config import load_study
    from fednas.doctor.examination import examine

    findings = examine(folder, None if study is None else load_study(study), time.time)
    failed = sum(one.state == "fail" for one in findings)
    if as_json:
        print_json([asdict(one) for one in findings])
    else:
        counts = {state: sum(one.state == state for one in findings) for state in _COLOURS}
        table(
            f"{folder}: {'fit to run' if not failed else 'not fit to run'}",
            ["check", "", "what was seen", "what should be, and what to do"],
            [
                [
                    escape(one.name),
                    f"[{_COLOURS[one.state]}]{one.state}[/]",
                    escape(one.seen),
                    # What is as it should be needs no words.
                    "" if one.state == "ok" else escape(": ".join(filter(None, (one.bound, one.remedy)))),
                ]
                for one in findings
            ],
            caption=", ".join(f"{count} {state}" for state, count in counts.items() if count),
        )
    if failed:
        raise typer.Exit(1)
