"""Prometheus metrics of runs and ledgers, on the loopback interface and nowhere else."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Final, final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fednas.config import SiteConfig
from fednas.errors import ConfigurationError, FednasError
from fednas.monitoring.ledgers import LedgerWatch
from fednas.monitoring.progress import Progress, RunReader

ADDRESS: Final = "127.0.0.1"
"""Whoever may read metrics from elsewhere asks a program on this machine that knows who asks."""


@final
class MonitoringCollector(Collector):
    """Reads runs and ledgers whenever it is asked: counters survive any crash, as files do.

    Args:
        runs: run directories, or folders that hold some; looked for anew each time.
        sites: whose ledgers are read; none without one.

    Raises:
        ConfigurationError: two sites have the same dataset.

    Guarantees:
        - What is shown is in files of the server and of ledgers: public facts.
        - A damaged file is a metric, never an error.
    """

    def __init__(self, runs: Sequence[Path], sites: Sequence[SiteConfig]) -> None:
        datasets = [site.dataset for site in sites]
        if len(set(datasets)) != len(datasets):
            raise ConfigurationError("two sites have the same dataset; name each site.toml once")
        self._places = tuple(runs)
        self._readers: dict[Path, RunReader] = {}
        self._ledgers = [LedgerWatch(site) for site in sites]
        self._lock = Lock()

    def collect(self) -> Iterable[Metric]:
        """All metrics as the files are now."""
        with self._lock:
            return [*self._run_metrics(), *self._ledger_metrics()]

    def _run_metrics(self) -> Iterator[Metric]:
        healthy = GaugeMetricFamily(
            "fednas_run_healthy", "1 if the run directory could be read", labels=["run"]
        )
        found: list[tuple[str, Progress]] = []
        for path in sorted({run.resolve() for place in self._places for run in run_directories(place)}):
            label = _text(path)
            try:
                reader = self._readers.setdefault(path, RunReader(path))
                found.append((label, reader.read()))
            except (FednasError, OSError):
                healthy.add_metric([label], 0)
            else:
                healthy.add_metric([label], 1)
        yield healthy
        yield from _of_runs(found)

    def _ledger_metrics(self) -> Iterator[Metric]:
        readings = [ledger.read() for ledger in self._ledgers]
        believed = [reading for reading in readings if reading.healthy]
        healthy = _gauge("ledger_healthy", "1 if the ledger's chain and signature hold", "dataset")
        cap = _gauge("epsilon_cap", "Epsilon that the owner allows per stream", "dataset")
        entries = _gauge("ledger_entries", "Entries of the ledger", "dataset")
        spent = _gauge("epsilon_spent", "Epsilon to state", "dataset", "stream")
        left = _gauge("epsilon_left", "The cap less what counts against it", "dataset", "stream")
        for reading in readings:
            healthy.add_metric([reading.dataset], int(reading.healthy))
        for reading in believed:
            cap.add_metric([reading.dataset], reading.cap)
            entries.add_metric([reading.dataset], reading.entries or 0)
            for family, values in ((spent, reading.spent), (left, reading.left)):
                for stream, epsilon in values.items():
                    family.add_metric([reading.dataset, stream], epsilon)
        yield from (healthy, cap, entries, spent, left)


def run_directories(place: Path) -> list[Path]:
    """A run directory, or those that a folder holds."""
    if (place / "run.json").is_file():
        return [place]
    try:
        return [path for path in place.iterdir() if (path / "run.json").is_file()]
    except OSError:
        return []


def serve(collector: MonitoringCollector, port: int) -> tuple[int, Callable[[], None]]:
    """Answer scrapes on the loopback interface until told to stop.

    Args:
        collector: what is shown; it is read once before the first scrape, as accountants are slow to start.
        port: 0 takes a free one.

    Returns:
        The port, and what stops it.

    Raises:
        ConfigurationError: the port is taken or may not be used.
    """
    collector.collect()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    try:
        server, thread = start_http_server(port, addr=ADDRESS, registry=registry)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such port"
        raise ConfigurationError(
            f"cannot listen on {ADDRESS}:{port}: {reason}; choose another --port"
        ) from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return int(server.server_port), stop


def _of_runs(runs: Sequence[tuple[str, Progress]]) -> Iterator[Metric]:
    of_run, of_site = ("study", "run"), ("study", "run", "site")
    rounds = _counter("rounds", "Rounds that were completed", *of_run, "kind")
    planned = _gauge("rounds_planned", "Rounds that the study has", *of_run, "kind")
    complete = _gauge("run_complete", "1 once the results are written", *of_run)
    last = _gauge("last_round_timestamp_seconds", "When a round was last completed", *of_run)
    replies = _counter("replies", "Answers that the server took", *of_site)
    rejects = _counter("rejects", "Requests without an answer that could be taken", *of_site, "code")
    num_bytes = _counter("bytes", "Bytes of requests and replies", *of_site, "direction")
    epsilon = _gauge("plan_epsilon", "Epsilon of the site's plan in this run", *of_site)
    for label, progress in runs:
        names = [progress.study, label]
        done = Counter(record.step.kind for record in progress.rounds)
        for kind, number in Counter(step.kind for step in progress.agenda).items():
            rounds.add_metric([*names, kind], done[kind])
            planned.add_metric([*names, kind], number)
        complete.add_metric(names, int(progress.complete))
        last.add_metric(names, progress.last_s)
        for site in progress.sites:
            replies.add_metric([*names, site.site], site.replies)
            epsilon.add_metric([*names, site.site], site.epsilon_planned)
            for code, number in site.rejects.items():
                rejects.add_metric([*names, site.site, code], number)
            for direction, amount in (("sent", site.sent_bytes), ("received", site.received_bytes)):
                num_bytes.add_metric([*names, site.site, direction], amount)
    yield from (rounds, planned, complete, last, replies, rejects, num_bytes, epsilon)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"fednas_{name}", text, labels=labels)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"fednas_{name}", text, labels=labels)


def _text(path: Path) -> str:
    """A path as a label, which is UTF-8 whatever the path's bytes are."""
    return os.fsencode(path).decode("utf-8", "replace")
