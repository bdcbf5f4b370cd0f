"""The wire is the one door: no other module of the library knows Flower, and nobody decodes a pickle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PICKLERS = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "pickletools",
}
HASHED_READ = "simulations/scenarios/watches.py"  # checked against a published sha256 before it is decoded


def sources(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(tree: ast.Module) -> set[str]:
    """The top-level packages that a module imports, anywhere in it, by statement or by name."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in (
            "import_module",
            "__import__",
        ):
            texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            found |= {text.split(".")[0] for text in texts}
    return found


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression of names, else an empty string."""
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return node.id if isinstance(node, ast.Name) else ""


def pickled(tree: ast.Module) -> Iterator[str]:
    """What a module does that could run a stranger's pickle."""
    for package in sorted(imported(tree) & PICKLERS):
        yield f"imports {package}"
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield "allows pickles"
        elif isinstance(node, ast.keyword) and node.arg == "weights_only":
            yield "chooses what torch.load decodes"
        elif isinstance(node, ast.Call) and dotted(node.func) in (
            "torch.load",
            "torch.save",
            "torch.jit.load",
            "pd.read_pickle",
            "pandas.read_pickle",
        ):
            yield f"calls {dotted(node.func)}"


@pytest.mark.parametrize("path", sources("fednas"), ids=name_of)
def test_only_the_wire_knows_flower(path: Path) -> None:
    found = imported(ast.parse(path.read_text())) & {"flwr", "ray", "grpc"}
    # An auditor's service is no way for tasks and answers: it serves what a ledger file holds.
    spoken = {"grpc"} if name_of(path).startswith("fednas/ledger_service/") else set()
    assert found - spoken == ({"flwr"} if name_of(path) == "fednas/wire.py" else set())


@pytest.mark.parametrize("path", sources("fednas", "server", "client"), ids=name_of)
def test_nothing_that_is_deployed_decodes_a_pickle(path: Path) -> None:
    assert list(pickled(ast.parse(path.read_text()))) == []


def test_a_simulation_decodes_one_pickle_and_checks_its_digest_first() -> None:
    guilty = {
        name_of(path): found
        for path in sources("simulations")
        if (found := list(pickled(ast.parse(path.read_text()))))
    }
    assert guilty == {HASHED_READ: ["allows pickles"]}
    assert "sha256" in (ROOT / HASHED_READ).read_text()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import joblib.numpy_pickle",
        "def f():\n    from cloudpickle import loads",
        "importlib.import_module('dill')",
        "__import__('pickle')",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=trusted)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pd.read_pickle(path)",
    ],
)
def test_the_scan_sees_each_way_to_decode_a_pickle(source: str) -> None:
    assert list(pickled(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "np.load(path, allow_pickle=False)",
        "torch.export.load(path)",
        "json.loads(text)",
        "from safetensors.numpy import load",
    ],
)
def test_the_scan_lets_other_readers_alone(source: str) -> None:
    assert list(pickled(ast.parse(source))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import flwr.app",
        "from flwr.app import Array",
        "def f():\n    import flwr",
        "import_module('flwr.app')",
    ],
)
def test_the_scan_sees_each_way_to_import_flower(source: str) -> None:
    assert "flwr" in imported(ast.parse(source))


def test_encode_has_no_callers_but_the_client_and_its_rehearsal() -> None:
    """Whoever sends a reply sends it through `encode`; one such place to review sends anything anywhere."""
    callers = {
        name_of(path)
        for path in sources("fednas", "server", "client", "simulations")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and node.module == "fednas.wire"
        and any(alias.name == "encode" for alias in node.names)
    }
    assert callers == {"client/app.py", "fednas/audit/rehearsal.py"}
