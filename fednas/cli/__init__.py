"""The command line: plan a budget, verify ledgers, audit, export networks. Thin, and imported lazily."""

import sys
from typing import NoReturn

import click
import typer

from fednas.cli import (
    audits,
    examining,
    leaving,
    ledger_service,
    ledgers,
    metrics,
    networks,
    planning,
    sites,
    watch,
)
from fednas.errors import FednasError

__all__ = ["app", "main", "run_cli"]

app = typer.Typer(
    help="Federated, differentially private architecture search with a ledger that proves every epsilon.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("plan")(planning.plan)
ledgers.group.command("serve")(ledger_service.serve_ledger)
ledgers.group.command("pull")(ledger_service.pull_ledgers)
ledgers.group.command("request")(ledger_service.request_identity)
app.add_typer(ledgers.group, name="ledger")
app.add_typer(audits.group, name="audit")
app.add_typer(sites.group, name="site")
app.command("doctor")(examining.examine_kit)
app.command("watch")(watch.watch_run)
app.command("metrics")(metrics.serve_metrics)
app.command("wire")(leaving.show_wire)
app.command("export")(networks.export_networks)


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
