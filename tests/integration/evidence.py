"""What a disturbed run leaves, looked at as an attacker would: rounds, answers, ledgers, marks."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from flwr.app import Message
from safetensors.numpy import load_file

from client.app import app
from fednas.config import load_site, load_sites, load_study, save_site
from fednas.privacy.signing import TaskSigner
from fednas.privacy.verify import verify
from fednas.schedule import agenda
from fednas.site import open_site
from fednas.wire import decode_task
from server.app import run_study
from simulations.loopback import InProcessGrid, LocalGrid


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of a ledger's file."""

    seq: int
    kind: str
    body: Mapping[str, Any]
    digest: str


def entries(ledger: Path) -> list[Entry]:
    """All entries of a ledger, in order."""
    with sqlite3.connect(ledger) as connection:
        rows = connection.execute("SELECT seq, kind, body, digest FROM entries ORDER BY seq").fetchall()
    connection.close()
    return [
        Entry(seq=seq, kind=kind, body=json.loads(body), digest=digest) for seq, kind, body, digest in rows
    ]


def rounds_of(run: Path) -> list[dict[str, Any]]:
    """The records of all rounds, which must be those of the study, whole and in order."""
    files = sorted((run / "rounds").glob("*.json"))
    records: list[dict[str, Any]] = [json.loads(file.read_text()) for file in files]
    steps = agenda(load_study(run / "study.toml"))
    assert [(r["round"], r["kind"]) for r in records] == [(step.round, step.kind) for step in steps]
    return records


def answered(record: Mapping[str, Any]) -> set[str]:
    """The sites whose answer was merged in a round."""
    return {site for site, entry in record["sites"].items() if entry["outcome"] == "ok"}


def assert_complete(run: Path) -> None:
    """Every round is there and every tier has its network, in files that load."""
    rounds_of(run)
    result = json.loads((run / "result.json").read_text())
    assert result["tiers"]
    assert load_file(run / "supernet.safetensors")
    for tier in result["tiers"]:
        assert load_file(run / "tiers" / tier / "weights.safetensors")
        assert (run / "tiers" / tier / "network.onnx").stat().st_size > 0
    assert not list(run.rglob("*.draft"))


def assert_ledgers_verify(run: Path) -> None:
    """The shipped verifiers hold: the stranger's, by itself, and the command with the server's marks."""
    for site in load_sites(run):
        verifier = Path(__file__).resolve().parents[2] / "fednas" / "privacy" / "verify.py"
        stranger = [sys.executable, "-I", "-S", str(verifier), str(site.ledger)]
        found = subprocess.run(stranger, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
    command = [sys.executable, "-m", "fednas.cli", "ledger", "verify", str(run)]
    command += ["--marks", str(run / "marks.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def assert_all_that_was_merged_was_charged_and_used_once(run: Path) -> int:
    """Hold each round's record against the ledgers; how many answers were merged.

    An answer's head is that of a RELEASE of the site's own ledger, after a RESERVE of the same operation, of
    that run and round; no operation and no head occurs in two rounds, and heads only grow.
    """
    records = rounds_of(run)
    name = json.loads((run / "run.json").read_text())["run"]
    merged = 0
    for site in load_sites(run):
        ledger = entries(site.ledger)
        last, used = 0, set()
        for record in records:
            if site.name not in answered(record):
                continue
            said = record["sites"][site.name]
            release = ledger[said["entries"] - 1]
            assert (release.kind, release.digest) == ("RELEASE", said["head"])
            operation = release.body["operation"]
            reserved = [
                e for e in ledger[: release.seq] if e.kind == "RESERVE" and e.body["operation"] == operation
            ]
            assert reserved, "released without a charge"
            assert {(e.body["run"], e.body["round"]) for e in reserved} == {(name, record["round"])}
            assert operation not in used, "merged twice"
            assert release.seq > last, "an answer from before one that was merged earlier"
            used.add(operation)
            last = release.seq
            merged += 1
    return merged


def assert_budgets_hold(run: Path) -> None:
    """No stream was charged more than its plan claims, and no plan claims more than its owner allows.

    The noise was seeded, so nothing protects; the figures are those that unseeded noise would have.
    """
    for site in load_sites(run):
        proof = verify(site.ledger)
        assert proof.plans == 1
        for stream in proof.streams.values():
            assert stream["nominal_charged_rdp"] <= stream["nominal_claimed_rdp"]
    result = json.loads((run / "result.json").read_text())
    caps = {site.name: site.epsilon for site in load_sites(run)}
    assert set(result["sites"]) == set(caps)
    assert all(entry["epsilon"] <= caps[site] for site, entry in result["sites"].items())


def assert_marks_are_the_newest_answers(run: Path) -> None:
    """The server's mark of each site is no older than any answer that it merged."""
    marks = json.loads((run / "marks.json").read_text())["datasets"]
    for site in load_sites(run):
        merged = [r["sites"][site.name]["entries"] for r in rounds_of(run) if site.name in answered(r)]
        mark = marks[site.dataset]
        assert mark["entries"] >= max(merged)
        assert entries(site.ledger)[mark["entries"] - 1].digest == mark["head"]


# The same study, undisturbed, with the same sites silent


class _Regroup(BaseException):
    """Another set of sites is asked from the next round on: the server has to greet them anew."""


@final
class ReplayGrid(LocalGrid):
    """Sites in this process, silent in the rounds in which they were silent in another run.

    Args:
        run: a copy of the run directory, without what the server wrote.
        records: of the other run's rounds.
        begin: the first round that is asked.
    """

    def __init__(self, run: Path, records: list[dict[str, Any]], begin: int) -> None:
        sites = [load_site(file).name for file in site_files(run)]
        nodes = {i + 1: {"partition-id": i} for i in range(len(sites))}
        super().__init__(nodes)
        self._grid = InProcessGrid(app, nodes, {"sites-dir": str(run / "sites")})
        self._name = dict(zip(nodes, sites, strict=True))
        self._records = {record["round"]: record for record in records}
        self._asked = set(self._records[begin]["sites"])

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            name = self._name[message.metadata.dst_node_id]
            if message.metadata.message_type == "query.hello":
                speaks = name in self._asked
            else:
                record = self._records[decode_task(message.content).round]
                if set(record["sites"]) != self._asked:
                    raise _Regroup
                speaks = name in answered(record)
            ids += self._grid.push_messages([message]) if speaks else [""]
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return list(self._grid.pull_messages(message_ids))

    def _accept(self, message: Message) -> None:
        raise AssertionError("messages go to the grid behind")


def site_files(run: Path) -> list[Path]:
    """The sites of a run in the order of their numbers."""
    number = len(list(run.glob("sites/site-*/site.toml")))
    return [run / "sites" / f"site-{index}" / "site.toml" for index in range(number)]


def copied(run: Path, target: Path, *, keep: Collection[str]) -> Path:
    """A run directory beside another one, its sites with ledgers of their own."""
    for name in ("study.toml", "run.json", *keep):
        source = run / name
        target.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target / name)
        else:
            shutil.copy2(source, target / name)
    for file in site_files(run):
        site = load_site(file)
        folder = target / "sites" / file.parent.name
        folder.mkdir(parents=True)
        shutil.copy2(site.data, folder / "data.npz")
        save_site(
            site.model_copy(update={"data": folder / "data.npz", "ledger": folder / "ledger.sqlite"}),
            folder / "site.toml",
        )
    return target


def assert_one_process_makes_the_same(run: Path, scratch: Path, signer: TaskSigner) -> None:
    """A server and sites in one process, nothing killed: with the same sites silent in each round, the same.

    The noise was seeded by what is asked, so one answer that was lost, taken twice or from another round
    would make other weights from there on.
    """
    records = rounds_of(run)
    twin = copied(run, scratch, keep=())
    open_site.cache_clear()
    for _ in range(len(records) + 1):
        done = len(list(twin.glob("rounds/*.json")))
        try:
            grid = ReplayGrid(twin, records, min(done + 1, len(records)))
            run_study(grid, twin, resume=True, signer=signer)
            break
        except _Regroup:
            open_site.cache_clear()
    open_site.cache_clear()
    for ours, theirs in zip(rounds_of(twin), records, strict=True):
        # Heads differ: a killed run's ledgers hold charges that nobody answered.
        assert {k: v for k, v in ours.items() if k != "sites"} == {
            k: v for k, v in theirs.items() if k != "sites"
        }
    for name in ("supernet.safetensors", "result.json"):
        assert comparable(twin / name) == comparable(run / name), name


def comparable(file: Path) -> object:
    """A file's content, without who was away when a result was written."""
    if file.suffix != ".json":
        return file.read_bytes()
    value = json.loads(file.read_text())
    for entry in value["sites"].values():
        del entry["refused"]
    return value
