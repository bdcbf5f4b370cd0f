"""Real Flower processes over TLS: the same network as in process, and a proxy that passes the fleet alone."""

import ssl
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from client.kit import SiteKit
from fednas.config import load_sites
from fednas.privacy.ledger import read_statement
from server.kit import ServerKit
from simulations import runner
from simulations.__main__ import adjust
from simulations.flower_command import FlowerCommand, free_port
from simulations.scenarios import SCENARIOS
from tests.client.test_kit import SITE
from tests.doctor.kits import found

APP_DIR = Path(__file__).resolve().parents[2]


def test_three_devices_over_tls_make_what_one_process_makes(tmp_path: Path) -> None:
    """One study, seeded noise: every weight and every entry of every ledger is the same to the last bit."""
    for runtime in ("loopback", "deployment"):
        scenario = SCENARIOS["hospitals"]()
        study = adjust(scenario.study, rounds=2)
        options = runner.Options(runtime=runtime, sites=3, test_noise=True)
        runner.start(scenario, study, tmp_path / runtime, options)
    here, deployed = tmp_path / "loopback", tmp_path / "deployment"
    ours, theirs = (load_file(run / "supernet.safetensors") for run in (here, deployed))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
    heads = [[read_statement(config.ledger).head for config in load_sites(run)] for run in (here, deployed)]
    assert heads[0] == heads[1]
    assert len(set(heads[0])) == 3
    kits = sorted((deployed / "deployment" / "sites").iterdir())
    assert len({(kit / "node.key").read_bytes() for kit in kits}) == 3
    tiers = {config.device.tier for config in load_sites(deployed)}
    assert len(tiers) > 1


# The reverse proxy


def status(kit: ServerKit, port: int, path: str) -> int:
    """What a POST to a path answers; the server's certificate must be the authority's."""
    context = ssl.create_default_context(cafile=kit.authority)
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    request = urllib.request.Request(f"https://localhost:{port}{path}", data=b"", method="POST")
    try:
        with opener.open(request, timeout=10.0) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return int(error.code)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-runs",
        "/v1/runtime/acquire-task",
        "/v1/fleet/../control/list-runs",
        "/v1/control/../fleet/activate-node",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet//../../v1/control/list-runs",
        "//v1/control/list-runs",
        "/v1/fleet/activate-node?x=/v1/control",
        "/V1/FLEET/activate-node",
        "/",
    ],
)
def test_the_proxy_passes_no_path_that_could_start_a_run(
    served: tuple[FlowerCommand, ServerKit, Path], path: str
) -> None:
    _, kit, _ = served
    assert status(kit, kit.public_port, path) == 404


def test_what_the_proxy_leaves_out_is_there_behind_it(served: tuple[FlowerCommand, ServerKit, Path]) -> None:
    """Otherwise a path that is passed would look like one that is not."""
    _, kit, _ = served
    assert status(kit, kit.port, "/v1/control/list-runs") != 404
    assert status(kit, kit.port, "/v1/runtime/acquire-task") != 404
    assert status(kit, kit.public_port, "/v1/fleet/activate-node") == status(
        kit, kit.port, "/v1/fleet/activate-node"
    )
    assert status(kit, kit.public_port, "/v1/fleet/activate-node") != 404


def test_a_known_device_comes_online_through_the_proxy_and_an_unknown_one_does_not(
    served: tuple[FlowerCommand, ServerKit, Path],
) -> None:
    flower, kit, folder = served
    site = folder / "site.toml"
    site.write_text(SITE)
    address = f"localhost:{kit.public_port}"
    known, unknown = (
        SiteKit.prepare(folder / name, site, superlink=address, authority=kit.authority, port=free_port())
        for name in ("known", "unknown")
    )
    flower.register(known.public_key, "known")
    with ExitStack() as stack:
        for device in (known, unknown):
            own = {"FLWR_HOME": str(device.folder / "flower")}
            log = device.folder / "log"
            stack.enter_context(flower.process(device.supernode, log, own))
        end = time.monotonic() + 60.0
        online: list[str] = []
        while not online and time.monotonic() < end:
            nodes = flower.ask(["supernode", "list", "fednas", "--format", "json"]).get("nodes")
            assert isinstance(nodes, list)
            online = [str(node["node-id"]) for node in nodes if node["status"] == "online"]
            time.sleep(0.5)
        # A doctor tells them apart, and disturbs neither: its request is one that is never granted.
        findings = [found(device.folder, None) for device in (known, unknown)]
        nodes = flower.ask(["supernode", "list", "fednas", "--format", "json"]).get("nodes")
        assert isinstance(nodes, list)
        still = [str(node["node-id"]) for node in nodes if node["status"] == "online"]
    assert len(online) == 1
    assert still == online
    assert [one["registration"].state for one in findings] == ["ok", "fail"]
    assert findings[0]["port"].seen == f"the service runs at port {known.port}"
