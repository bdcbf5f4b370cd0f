"""`python -m client`: what a site's operator runs on the device itself."""

from pathlib import Path
from typing import Annotated

import tomli_w
import typer

from fednas.cli import run_cli
from fednas.cli.tables import Json, print_json, table

cli = typer.Typer(help="On a site's own device.", add_completion=False, pretty_exceptions_enable=False)


@cli.callback()
def explain() -> None:
    """On a site's own device: measure it for its site.toml, and prepare what it runs."""


@cli.command("device")
def measure_device(
    tier: Annotated[str, typer.Argument(help="The name that devices of this kind share.")],
    max_latency_ms: Annotated[float, typer.Option(help="Target for one inference.")] = 10.0,
    upload_bytes: Annotated[int, typer.Option(help="What may be sent in one round.")] = 4_000_000,
    memory_bytes: Annotated[
        int | None, typer.Option(help="Memory for networks. Default: half of what is free.")
    ] = None,
) -> None:
    """Time a few small networks here and print the device table of a site.toml; no record is read."""
    from client.device import suggest

    profile = suggest(
        tier=tier, max_latency_ms=max_latency_ms, upload_bytes=upload_bytes, memory_bytes=memory_bytes
    )
    print(tomli_w.dumps({"device": profile.as_dict()}), end="")  # noqa: T201


@cli.command("prepare")
def prepare_site(
    folder: Annotated[Path, typer.Argument(help="Folder of the device's kit.")],
    site: Annotated[Path, typer.Option(help="The site.toml.")],
    superlink: Annotated[str, typer.Option(help="HOST:PORT at which the server is reached.")],
    authority: Annotated[Path, typer.Option(help="The server's ca.crt, from its operator.")],
    port: Annotated[int, typer.Option(help="Of the device's own apps, on the loopback interface.")] = 9094,
    user: Annotated[str, typer.Option(help="Under whom systemd runs it.")] = "fednas",
    ledger: Annotated[
        str | None,
        typer.Option(help="HOST:PORT at which auditors shall reach its ledger. Default: they do not."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the device's key and its systemd units in FOLDER; a key that is there is kept.

    No record is read."""
    from client.kit import LEDGER_UNIT, UNIT, SiteKit

    kit = SiteKit.prepare(
        folder, site, superlink=superlink, authority=authority, port=port, user=user, ledger=ledger
    )
    rows = {
        kit.public_key.name: "for the server's operator: flwr supernode register",
        kit.key.name: "nobody else may read it; it never leaves the device",
        UNIT: "sudo systemctl link it, then enable --now",
    }
    if ledger is not None:
        rows |= {
            "ledger.csr": "for the server's operator: python -m server issue; keep the answer as ledger.crt",
            "ledger.key": "nobody else may read it; it never leaves the device",
            LEDGER_UNIT: "likewise, once ledger.crt and auditors.crt are in the kit",
        }
    if as_json:
        print_json({"folder": str(kit.folder), "superlink": superlink, "files": sorted(rows)})
        return
    table(f"site kit in {kit.folder}", ["file", "what it is for"], [list(row) for row in rows.items()])


if __name__ == "__main__":
    run_cli(cli)
