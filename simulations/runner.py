"""Run a scenario: write each site down as a real one would, then let the unmodified apps meet on a grid."""

import platform
import secrets
import shutil
import subprocess
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

from fednas.config import StudyConfig, load_site, load_sites, space_of
from fednas.errors import ConfigurationError, FednasError, LedgerError, RunDirectoryError
from fednas.evaluation import public_accuracy
from fednas.export import require_exporters, run_onnx
from fednas.operations import write_secret
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.ledger import read_statement
from fednas.privacy.signing import TaskSigner
from fednas.privacy.spend_statement import SpendStatement
from fednas.privacy.verify import LedgerTampered, verify
from fednas.site.datasets import load as load_records
from fednas.space import Architecture
from fednas.supernet import Supernet
from fednas.wire import SiteFacts
from server.checkpoint import RunDirectory, create_run, read_json
from server.cohort import Cohort, Member
from server.report import PACKAGES
from simulations.scenario import Scenario, ScenarioData, prepare

Runtime = Literal["loopback", "workers", "ray", "deployment"]

_SIGNING_KEY = Path("sites", "signing.key")  # beside the ledgers: what a run directory may hold of secrets
_APP_DIR = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run a study in simulation.

    Args:
        runtime: `loopback` (this process), `workers` (processes here), `ray` (through `flwr run`), or
            `deployment` (a SuperLink and a SuperNode a site, over TLS).
        sites: only so many of the scenario's sites, the first of them; None takes all.
        workers: number of worker processes.
        state: folder of the sites' ledgers and of the server's marks, kept across runs; None keeps them in
            the run directory.
        cap: epsilon cap of every site; None is the study's own epsilon.
        caps: by name, the epsilon caps of sites with another one.
        test_noise: draw noise from the seeded test generator: reproducible, and not private.
    """

    runtime: Runtime = "loopback"
    sites: int | None = None
    workers: int = 2
    state: Path | None = None
    cap: float | None = None
    caps: Mapping[str, float] = field(default_factory=dict)
    test_noise: bool = False


def start(scenario: Scenario, study: StudyConfig, path: Path, options: Options) -> dict[str, Any]:
    """Run a study from its beginning.

    Args:
        scenario: where the records come from.
        study: what to run on them.
        path: the run directory to make.
        options: how to run it.

    Returns:
        The result, as `result.json` and `oracle.json` hold it.

    Raises:
        FednasError: one line each; when no round was completed the run directory is gone again.
    """
    require_exporters()
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise RunDirectoryError(
            f"{path} is there and not empty; pass --resume to continue a run, or choose another folder"
        )
    data = scenario.load()
    if options.sites is not None:
        data = replace(data, sites=data.sites[: options.sites])
    cap, caps = _caps(study, data, options)
    check(data, study, {site.name: caps.get(site.name, cap) for site in data.sites})
    existed = path.exists()
    run = f"test-{study.name}-{study.seed}" if options.test_noise else uuid.uuid4().hex
    with _draft(path) as draft:
        create_run(draft, study, run=run, about=about(scenario, data, options))
        secret = secrets.token_bytes(32)
        sites = prepare(
            data,
            draft,
            state=options.state,
            cap=cap,
            caps=caps,
            test_seed=study.seed if options.test_noise else None,
            server_key=TaskSigner(secret).public_key,
        )
        write_secret(draft / _SIGNING_KEY, secret)
        for site in sites:
            load_records(load_site(site), study.data)
        np.savez(draft / "public_test.npz", x=data.test_x, y=data.test_y)
    try:
        return _execute(path, options, resume=False)
    except FednasError:
        if not (path / "checkpoints").exists():
            shutil.rmtree(path)
            if existed:
                path.mkdir()
        raise


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A folder that becomes `path` when the block ends well: a run directory is whole or not there."""
    draft = path.resolve().with_name(f".{path.resolve().name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        draft.rename(path.resolve())
    except OSError as error:
        raise RunDirectoryError(f"cannot write {path}: {error.strerror}; choose another folder") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def resume(path: Path, options: Options, *, scenario: str) -> dict[str, Any]:
    """Continue an interrupted run after its last whole round; a finished one only reports again.

    Args:
        path: the run directory.
        options: how to run what is left. Ledgers, caps and noise are the run's own: options that name them
            must name the same.
        scenario: the name of the run's scenario.

    Raises:
        RunDirectoryError: the folder is not a run, or of another scenario.
        ConfigurationError: the run began with other ledgers, caps or noise.
    """
    manifest = RunDirectory(path).read("run.json")
    if manifest.get("scenario") != scenario:
        raise RunDirectoryError(f"{path} is a run of {manifest.get('scenario')!r}, not of {scenario!r}")
    if not isinstance(manifest.get("num_sites"), int) or not isinstance(manifest.get("refused"), list):
        raise RunDirectoryError(f"{path}/run.json is incomplete; the run cannot go on from here")
    _check_unchanged(path, options)
    return _execute(path, options, resume=True)


def _check_unchanged(path: Path, options: Options) -> None:
    """Refuse options of a resumed run that its sites do not have, rather than ignore them."""
    sites = {config.name: config for config in load_sites(path)}
    _check_names(options, sites)
    if options.sites is not None and options.sites != len(sites):
        raise ConfigurationError(
            f"the run in {path} began with {len(sites)} sites, which --sites cannot change now; leave it out"
        )
    for name, config in sites.items():
        cap = options.caps.get(name, options.cap)
        if cap is not None and cap != config.epsilon:
            raise ConfigurationError(
                f"the run in {path} began with a cap of {config.epsilon:g} at {name}, which --cap cannot "
                "change now; leave it out"
            )
        if options.test_noise and config.test_seed is None:
            raise ConfigurationError(
                f"the run in {path} began without --test-noise, which cannot change now; leave it out"
            )
        if options.state is not None and not config.ledger.is_relative_to(options.state.resolve()):
            raise ConfigurationError(
                f"the run in {path} keeps the ledger of {name} at {config.ledger}, which --state cannot "
                "change now; leave it out"
            )


def _check_names(options: Options, sites: Collection[str]) -> None:
    unknown = sorted(set(options.caps) - set(sites))
    if unknown:
        raise ConfigurationError(f"--cap names the site {unknown[0]!r}; the sites are {', '.join(sites)}")


def check(data: ScenarioData, study: StudyConfig, caps: Mapping[str, PrivacyBudget]) -> None:
    """Find what is wrong with a study on these sites before anything is written or spent.

    Args:
        data: a loaded scenario.
        study: what is to run on it.
        caps: the budget of each site, by name.

    Raises:
        FednasError: a device that nothing fits, a delta that is too large, too few sites.
    """
    space = space_of(study)
    members = [
        Member(
            node=index,
            facts=SiteFacts(
                site=site.name,
                dataset=f"{data.name}/{site.name}",
                declared_size=site.declared_size,
                epsilon_cap=caps[site.name].epsilon,
                delta=caps[site.name].delta,
                device=site.device,
            ),
        )
        for index, site in enumerate(data.sites)
    ]
    Cohort(members, space, study)


def about(scenario: Scenario, data: ScenarioData, options: Options) -> Mapping[str, Any]:
    """What a reader of a run should know beside its study."""
    # Seeded runs of one seed have one name: the second gets the stored replies of the first, which marks of
    # both would take for an older copy of the ledgers.
    shared = options.state if not options.test_noise else None
    return {
        "scenario": scenario.name,
        "refused": [{"site": site, "reason": reason} for site, reason in data.refused],
        "num_sites": len(data.sites),
        "marks": None if shared is None else str(shared.resolve() / "marks.json"),
        "runtime": options.runtime,
        "test_noise": options.test_noise,
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "commit": _commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def oracle(path: Path) -> dict[str, Any]:
    """What the public test set says of every tier's network: reported, never selected on.

    The exported ONNX file is run on the same records: `onnx_difference` is the largest difference of a logit,
    and `onnx_relative` the same as a share of the largest logit, which is what float32 can be held to.
    """
    directory = RunDirectory(path)
    space = space_of(directory.study)
    supernet = Supernet.load(space, path / "supernet.safetensors")
    with np.load(path / "public_test.npz") as file:
        x, y = file["x"], file["y"]
    found = {}
    for tier, entry in directory.read("result.json")["tiers"].items():
        network = supernet.extract(Architecture.of(space.name, entry["architecture"]))
        accuracy = public_accuracy(network, x, y)
        with torch.no_grad():
            logits = network(torch.from_numpy(x)).numpy()
        onnx = run_onnx(path / "tiers" / tier / "network.onnx", x)
        difference = float(np.max(np.abs(logits - onnx)))
        found[tier] = {
            "accuracy": accuracy.accuracy,
            "balanced_accuracy": accuracy.balanced_accuracy,
            "onnx_difference": difference,
            "onnx_relative": difference / max(1.0, float(np.max(np.abs(logits)))),
        }
    return {"tiers": found, "num_records": len(y)}


def site_statements(path: Path) -> dict[str, SpendStatement]:
    """What each site's ledger says, by the site's name, once the verifier has found nothing wrong with it.

    Raises:
        LedgerError: a ledger is corrupt.
    """
    statements = {}
    for config in load_sites(path):
        try:
            verify(config.ledger)
        except LedgerTampered as error:
            raise LedgerError(f"the ledger of {config.name} does not hold: {error}") from error
        statements[config.name] = read_statement(config.ledger)
    return statements


def _execute(path: Path, options: Options, *, resume: bool) -> dict[str, Any]:
    directory = RunDirectory(path)
    if not (path / "result.json").exists():
        manifest = directory.read("run.json")
        num_sites = int(manifest["num_sites"])
        run_config: dict[str, str | int | float | bool] = {
            "run-dir": str(path.resolve()),
            "sites-dir": str((path / "sites").resolve()),
            "marks-file": str(manifest.get("marks") or ""),
            "signing-key-file": str((path / _SIGNING_KEY).resolve()),
            "resume": resume,
        }
        if options.runtime == "ray":
            from simulations.flower import run_on_ray

            run_on_ray(_APP_DIR, run_config, num_sites, home=path / "flower")
        elif options.runtime == "deployment":
            from simulations.deployment import run_deployed

            files = [path / "sites" / f"site-{number}" / "site.toml" for number in range(num_sites)]
            run_deployed(_APP_DIR, run_config, files, home=path / "deployment")
        else:
            _run_here(run_config, num_sites, options)
        if not (path / "result.json").exists():
            raise RunDirectoryError(f"the run ended without a result; look into {path} and pass --resume")
    if not (path / "oracle.json").exists():
        directory.write("oracle.json", oracle(path))
    result, found = read_json(path / "result.json"), read_json(path / "oracle.json")
    if not isinstance(result.get("tiers"), dict) or not isinstance(found.get("tiers"), dict):
        raise RunDirectoryError(
            f"the results in {path} are corrupt; delete result.json and oracle.json, then pass --resume"
        )
    refused = [*read_json(path / "run.json")["refused"], *_refused(result)]
    return {"result": result, "oracle": found, "refused": refused}


def _refused(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """The sites that took no part, or not to the end, and the constant code that says why."""
    codes = {name: entry.get("refused") for name, entry in result.get("sites", {}).items()}
    codes |= result.get("left_out", {})
    return [{"site": name, "reason": code} for name, code in sorted(codes.items()) if code]


def _run_here(run_config: Mapping[str, Any], num_sites: int, options: Options) -> None:
    """Run both apps in this process, or the clients in worker processes: those that a deployment runs."""
    from client.app import app as client_app
    from fednas.site import open_site
    from server.app import app as server_app
    from simulations.loopback import InProcessGrid, node_configs
    from simulations.workers import WorkerGrid

    torch.set_num_threads(1)
    nodes = node_configs(num_sites)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=dict(run_config))
    if options.runtime == "workers":
        with WorkerGrid("client.app:app", nodes, dict(run_config), num_workers=options.workers) as workers:
            server_app(workers, context)
    else:
        grid: Grid = InProcessGrid(client_app, nodes, dict(run_config))
        try:
            server_app(grid, context)
        finally:
            open_site.cache_clear()  # closes the ledgers, and the next run may use the same folder


def _caps(
    study: StudyConfig, data: ScenarioData, options: Options
) -> tuple[PrivacyBudget, Mapping[str, PrivacyBudget]]:
    """What every site allows, and what those allow that were named.

    A site whose cap is below the study's epsilon takes part with a plan of its own. A study without privacy
    asks for more than any cap allows: a site with one refuses it.

    Raises:
        ConfigurationError: an unknown name, a cap out of its bounds, or one at every site of a study without
            privacy.
    """
    _check_names(options, [site.name for site in data.sites])
    privacy = study.privacy
    if privacy.non_private and options.cap is not None:
        raise ConfigurationError(
            "--cap for every site and --non-private contradict each other: a site with a cap refuses a study "
            "without noise; leave one of them out"
        )
    cap = privacy.budget if options.cap is None else _budget(options.cap, privacy.delta, "every site")
    return cap, {name: _budget(epsilon, privacy.delta, name) for name, epsilon in options.caps.items()}


def _budget(epsilon: float, delta: float, whose: str) -> PrivacyBudget:
    try:
        return PrivacyBudget(epsilon=epsilon, delta=delta)
    except ConfigurationError as error:
        raise ConfigurationError(f"--cap of {whose}: {error}") from error


def _commit() -> str:
    """The commit of the checkout, or `unknown` outside one."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    answer = subprocess.run(
        [git, "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return answer.stdout.strip() or "unknown"
