"""A trained sub-network as files that stand alone: ONNX for any runtime, one torch file, plain weights."""

import contextlib
import io
import json
import logging
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from fednas.errors import MissingExtraError
from fednas.space import Architecture
from fednas.space.layers import Network

OPSET = 20
_EXAMPLES = 4


def require_exporters() -> None:
    """Raise before anything is spent when the export extra is missing.

    Raises:
        MissingExtraError: with the command that installs it.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f'{missing[0]} is not installed; run: pip install "fednas[export]"')


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The files of one network.

    Args:
        architecture: its canonical JSON.
        weights: safetensors with the trunk's parameters by name.
        onnx: input `records` (batch, *input_shape) float32, output `logits` (batch, num_classes).
        torch: `torch.export.load(path).module()` gives the same function; neither file needs fednas.
    """

    architecture: Path
    weights: Path
    onnx: Path
    torch: Path


def export(
    network: Network, architecture: Architecture, folder: Path, *, input_shape: tuple[int, ...]
) -> Exported:
    """Write a network's files; the batch dimension stays free.

    Args:
        network: stem and trunk, ungated.
        architecture: what it was built from.
        folder: created when missing.
        input_shape: of one record.

    Raises:
        MissingExtraError: without the export extra.
    """
    require_exporters()
    folder.mkdir(parents=True, exist_ok=True)
    files = Exported(
        architecture=folder / "architecture.json",
        weights=folder / "weights.safetensors",
        onnx=folder / "network.onnx",
        torch=folder / "network.pt2",
    )
    files.architecture.write_text(json.dumps(json.loads(architecture.to_json()), indent=1) + "\n")
    state = {name: p.detach().clone().contiguous() for name, p in sorted(network.trunk.named_parameters())}
    save_file(state, files.weights, metadata={"architecture": architecture.to_json()})
    example = (torch.zeros((_EXAMPLES, *input_shape)),)
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    with _quiet():
        program = torch.export.export(network.eval(), example, dynamic_shapes=dynamic)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it names folders of the machine that exports
        torch.export.save(program, files.torch)
        onnx = torch.onnx.export(
            program,
            input_names=["records"],
            output_names=["logits"],
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
        )
        assert onnx is not None
        onnx.save(files.onnx, external_data=False)
    return files


def run_onnx(path: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits that onnxruntime computes: shape (n, num_classes).

    Args:
        path: an exported ONNX file.
        x: shape (n, *input_shape), float32.
    """
    require_exporters()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(["logits"], {"records": x})[0]
    return logits


def load_torch(path: Path) -> torch.nn.Module:
    """The module of an exported torch file."""
    module: Any = torch.export.load(path).module()
    assert isinstance(module, torch.nn.Module)
    return module


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep the exporters' own progress text off a user's terminal; their errors still travel."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
