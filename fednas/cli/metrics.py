"""`fednas metrics`: runs and ledgers for Prometheus, on this machine's loopback interface."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fednas.cli.tables import print_line
from fednas.errors import ConfigurationError


def serve_metrics(
    run: Annotated[
        list[Path] | None,
        typer.Option(help="A run directory, or a folder that holds some; repeat for several."),
    ] = None,
    site: Annotated[
        list[Path] | None, typer.Option(help="A site.toml, whose ledger is read; repeat for several.")
    ] = None,
    port: Annotated[int, typer.Option(help="On 127.0.0.1; port 0 takes a free one.")] = 9464,
) -> None:
    """Show runs and ledgers to a Prometheus of this machine: rounds, replies, rejects, bytes, epsilons.

    Files are read at each scrape, so it may be started and stopped at any time. It listens on 127.0.0.1 and
    nowhere else, and ends on SIGTERM or Ctrl-C.
    """
    import signal
    import threading

    from fednas.config import load_site
    from fednas.monitoring import require_extra

    if not run and not site:
        raise ConfigurationError("give a run directory with --run, or a site.toml with --site")
    missing = [path for path in run or [] if not path.is_dir()]
    if missing:
        raise ConfigurationError(
            f"there is no folder {missing[0]}; give a run directory, or the folder of runs"
        )
    if not 0 <= port <= 65535:
        raise ConfigurationError(f"expected a port from 0 to 65535 after --port, got {port}")
    require_extra()
    from fednas.monitoring.exporter import ADDRESS, MonitoringCollector, serve

    sites = [load_site(path) for path in site or []]
    end = threading.Event()
    # Before anybody is told that it serves: who reads that may end it at once.
    before = signal.signal(signal.SIGTERM, lambda *_: end.set())
    try:
        found, stop = serve(MonitoringCollector(run or [], sites), port)
        print_line(f"serving metrics on http://{ADDRESS}:{found}/metrics")
        sys.stdout.flush()
        try:
            end.wait()
        finally:
            stop()
    finally:
        signal.signal(signal.SIGTERM, before)
