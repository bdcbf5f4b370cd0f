"""`python -m server`: what an operator runs on the server itself."""

from pathlib import Path
from typing import Annotated

import typer

from fednas.cli import run_cli
from fednas.cli.tables import Json, print_json, table
from fednas.errors import ConfigurationError

cli = typer.Typer(help="On an operator's own server.", add_completion=False, pretty_exceptions_enable=False)


@cli.callback()
def explain() -> None:
    """On an operator's own server: prepare what it runs, and sign what sites and auditors ask for."""


@cli.command("prepare")
def prepare_server(
    folder: Annotated[Path, typer.Argument(help="Folder of the server's kit.")],
    host: Annotated[
        list[str], typer.Option(help="DNS name or IP address by which devices reach it; repeat for several.")
    ],
    port: Annotated[int, typer.Option(help="Of the SuperLink, on the loopback interface.")] = 9092,
    public_port: Annotated[int, typer.Option(help="At which nginx listens for devices.")] = 443,
    user: Annotated[str, typer.Option(help="Under whom systemd runs it.")] = "fednas",
    as_json: Json = False,
) -> None:
    """Make keys, certificates, systemd units and a reverse proxy's allow-list in FOLDER; keys are kept.

    Run it again to renew the server's certificate: devices trust the authority, which stays.
    """
    from server.kit import SUPEREXEC_UNIT, SUPERLINK_UNIT, ServerKit

    kit = ServerKit.prepare(folder, host, port=port, public_port=public_port, user=user)
    rows = {
        "ca.crt": "for every site: by this its device knows the server",
        "server.pub": "for every site: the server_key of its site.toml",
        "secrets/": "nobody else may read it; keep a copy of ca.key off this machine",
        SUPERLINK_UNIT: "sudo systemctl link it, then enable --now",
        SUPEREXEC_UNIT: "likewise",
        "nginx.conf": "what may be reached from outside: the fleet and nothing else",
        "config.toml": "for FLWR_HOME of whoever registers keys and starts runs",
    }
    if as_json:
        print_json({"folder": str(kit.folder), "port": kit.port, "files": sorted(rows)})
        return
    table(f"server kit in {kit.folder}", ["file", "what it is for"], [list(row) for row in rows.items()])


@cli.command("issue")
def issue_certificate(
    folder: Annotated[Path, typer.Argument(help="Folder of the server's kit.")],
    request: Annotated[Path, typer.Argument(help="What a site or an auditor sent: ledger.csr, NAME.csr.")],
    site: Annotated[
        list[str] | None,
        typer.Option(help="A site's name or address at which auditors reach it; repeat for several."),
    ] = None,
    auditor: Annotated[str | None, typer.Option(help="Name of an auditor, instead of --site.")] = None,
    as_json: Json = False,
) -> None:
    """Sign REQUEST for a site's ledger service or for an auditor, by the kit in FOLDER.

    The authority is one of its own: no device takes what it signed for its server.
    """
    from server.issue import issue_to_auditor, issue_to_site

    if (auditor is None) == (not site):
        raise ConfigurationError("give --site HOST or --auditor NAME: a certificate is good for one of them")
    issued = (
        issue_to_site(folder, request, site) if site else issue_to_auditor(folder, request, auditor or "")
    )
    rows = {
        "certificate": (issued.certificate, "send it back; a site keeps it as ledger.crt"),
        "authority": (issued.authority, "send it with it; a site keeps it as auditors.crt"),
    }
    if as_json:
        print_json({what: str(path) for what, (path, _) in rows.items()})
        return
    table(
        f"issued for {request.name}",
        ["what", "file", "what it is for"],
        [[what, str(path), use] for what, (path, use) in rows.items()],
    )


if __name__ == "__main__":
    run_cli(cli)
