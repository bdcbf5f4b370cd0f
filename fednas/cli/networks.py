"""`fednas export`: the networks of a finished run, written again."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fednas.cli.tables import Json, print_json, table
from fednas.errors import ConfigurationError, RunDirectoryError


def export_networks(
    run: Annotated[Path, typer.Argument(help="A finished run directory.")],
    tier: Annotated[str | None, typer.Option(help="One tier only.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the files. Default: RUN/tiers.")] = None,
    as_json: Json = False,
) -> None:
    """Write the network of each device tier again: ONNX, one torch file, weights, architecture.

    RUN is the directory of a finished run.
    """
    from fednas.config import load_study, space_of
    from fednas.export import export
    from fednas.space import Architecture
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
    space = space_of(config)
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
        print_json(written)
    else:
        table("exported", ["tier", "onnx", "torch"], [[n, f["onnx"], f["torch"]] for n, f in written.items()])
