"""Exported files stand alone and compute the same function as the network they were made from."""

import importlib.util
import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file

from fednas import export as export_module
from fednas.errors import MissingExtraError
from fednas.export import OPSET, Exported, export, load_torch, require_exporters, run_onnx
from fednas.space import Architecture, create
from fednas.space.layers import Network
from fednas.supernet import flatten, load
from tests.training.sites import CHOSEN, SPACES, built, drawn

KEYS = ["mlp-residual", "conv-scattering", "conv1d-spectrum"]
TOLERANCE = 1e-4
Made = dict[str, tuple[Network, Exported]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One exported network of each kind."""
    folder = tmp_path_factory.mktemp("exports")
    result: Made = {}
    for key in KEYS:
        network, architecture = built(CHOSEN[key], seed=4), CHOSEN[key]
        shape = SPACES[architecture.space].input_shape
        result[key] = network, export(network, architecture, folder / key, input_shape=shape)
    return result


def records(key: str, number: int) -> NDArray[np.float32]:
    return drawn(SPACES[CHOSEN[key].space], number, seed=9)[0]


def logits(network: torch.nn.Module, x: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        result: NDArray[np.float32] = network(torch.from_numpy(x)).numpy()
    return result


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("number", [1, 7])
def test_onnxruntime_computes_the_same_logits(key: str, number: int, made: Made) -> None:
    network, files = made[key]
    x = records(key, number)
    computed, expected = run_onnx(files.onnx, x), logits(network, x)
    assert computed.dtype == np.float32
    assert computed.shape == (number, 3)
    assert np.abs(computed - expected).max() < TOLERANCE
    assert np.abs(expected[:1] - logits(network, x + 1.0)[:1]).max() > 10 * TOLERANCE  # the input matters


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("number", [1, 7])
def test_the_torch_file_computes_the_same_logits(key: str, number: int, made: Made) -> None:
    network, files = made[key]
    x = records(key, number)
    assert np.abs(logits(load_torch(files.torch), x) - logits(network, x)).max() < TOLERANCE


ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("fednas", "flwr", "opacus"):
            raise ImportError(f"{name} is not on this device")

sys.meta_path.insert(0, Refuse())
try:
    import fednas
except ImportError:
    pass
else:
    sys.exit("fednas could be imported")
import numpy as np
import torch

for file, x, out in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3], strict=True):
    module = torch.export.load(file).module()
    with torch.no_grad():
        np.save(out, module(torch.from_numpy(np.load(x))).numpy())
assert not any(name.split(".")[0] == "fednas" for name in sys.modules)
"""


def test_the_torch_files_need_no_fednas(made: Made, tmp_path: Path) -> None:
    arguments: list[str] = []
    for key, (_, files) in made.items():
        np.save(tmp_path / f"{key}-x.npy", records(key, 5))
        arguments += [str(files.torch), str(tmp_path / f"{key}-x.npy"), str(tmp_path / f"{key}.npy")]
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for key, (network, _) in made.items():
        computed = np.load(tmp_path / f"{key}.npy")
        assert np.abs(computed - logits(network, records(key, 5))).max() < TOLERANCE


@pytest.mark.parametrize("key", KEYS)
def test_the_onnx_file_is_valid_and_uses_standard_operators_only(key: str, made: Made) -> None:
    _, files = made[key]
    model = onnx.load(files.onnx, load_external_data=False)
    onnx.checker.check_model(model)
    assert {
        (entry.domain, entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")
    } == {("", OPSET)}
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert [value.name for value in model.graph.input] == ["records"]
    assert [value.name for value in model.graph.output] == ["logits"]
    assert [path.name for path in files.onnx.parent.glob("*.data")] == []  # one file, weights inside


@pytest.mark.parametrize("key", KEYS)
def test_the_plain_weights_rebuild_the_network(key: str, made: Made) -> None:
    network, files = made[key]
    architecture = Architecture.from_json(files.architecture.read_text())
    assert architecture == CHOSEN[key]
    with safe_open(files.weights, framework="np") as opened:
        assert opened.metadata() == {"architecture": architecture.to_json()}
    weights = load_file(files.weights)
    again = SPACES[architecture.space].build(architecture)
    flat = np.concatenate([weights[name].ravel() for name in sorted(weights)])
    load(again, flat)
    assert np.array_equal(flatten(again), flatten(network))
    assert np.array_equal(logits(again, records(key, 3)), logits(network, records(key, 3)))


def test_exporting_changes_no_weight_and_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = built(CHOSEN["mlp-small"])
    before = flatten(network)
    files = export(network, CHOSEN["mlp-small"], tmp_path / "a" / "b", input_shape=(5,))
    assert np.array_equal(flatten(network), before)
    assert capfd.readouterr() == ("", "")
    for path in (files.architecture, files.weights, files.onnx, files.torch):
        assert path.parent == tmp_path / "a" / "b"


def unpacked(path: Path) -> bytes:
    """All bytes of a file, or of what an archive holds."""
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return b"".join(archive.read(name) for name in archive.namelist())


@pytest.mark.parametrize("key", KEYS)
def test_the_files_do_not_tell_the_folders_of_the_machine_that_exported(key: str, made: Made) -> None:
    _, files = made[key]
    for path in (files.architecture, files.weights, files.onnx, files.torch):
        content = unpacked(path)
        assert str(Path(export_module.__file__).parents[1]).encode() not in content
        assert str(Path(torch.__file__).parent).encode() not in content


def test_the_architecture_file_is_readable_json(made: Made) -> None:
    _, files = made["mlp-residual"]
    assert json.loads(files.architecture.read_text())["choices"]["layers.0.width"] == 32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "shape"), [("mlp", (28,)), ("conv", (1, 28, 28)), ("conv", (3, 32, 32)), ("conv1d", (6, 128))]
)
def test_any_architecture_of_a_real_shape_exports(space: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    whole = create(space, shape, 4)
    generator = np.random.default_rng(0)
    drawn_ones = [whole.sample(generator) for _ in range(4)]
    for index, architecture in enumerate([whole.smallest(), whole.largest(), *drawn_ones]):
        torch.manual_seed(index)
        network = whole.build(architecture)
        files = export(network, architecture, tmp_path / str(index), input_shape=shape)
        for number in (1, 7):
            x = generator.standard_normal((number, *shape)).astype(np.float32)
            assert np.allclose(run_onnx(files.onnx, x), logits(network, x), atol=TOLERANCE)


def hide(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """Make packages look as if they were not installed."""
    found = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in missing else found(name, package)

    monkeypatch.setattr(export_module, "find_spec", find_spec)


@pytest.mark.parametrize("missing", [["onnx"], ["onnxscript"], ["onnxruntime"], ["onnx", "onnxruntime"]])
def test_without_the_extra_nothing_is_written(
    missing: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Made
) -> None:
    _, files = made["mlp-residual"]
    hide(monkeypatch, *missing)
    with pytest.raises(
        MissingExtraError, match=rf'{missing[0]} is not installed; run: pip install "fednas\[export\]"'
    ):
        require_exporters()
    with pytest.raises(MissingExtraError):
        export(built(CHOSEN["mlp-small"]), CHOSEN["mlp-small"], tmp_path / "out", input_shape=(5,))
    with pytest.raises(MissingExtraError):
        run_onnx(files.onnx, records("mlp-residual", 1))
    assert not (tmp_path / "out").exists()
