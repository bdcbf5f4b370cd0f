"""Nothing but the ledger makes what may leave a site: sources are scanned, classes refuse by themselves."""

import ast
import copy
import dataclasses
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fednas.errors import PrivacyError
from fednas.privacy import released as released_module
from fednas.privacy.entropy import SecureEntropy
from fednas.privacy.ledger import Arrays, Permit, PrivacyLedger, Released
from tests.privacy.ledgers import SMALL, noise, open_ledger, operation

ROOT = Path(__file__).parents[2]
PACKAGES = ("fednas", "server", "client", "simulations")
MAKERS = {"fednas/privacy/ledger.py"}
GUARDED = {"Released", "Permit"}
FIELDS = {"value", "operation_id", "previous", "head", "entries", "seal"}


def violations(source: str) -> list[str]:
    """What a module does that could make a Released or a Permit, or bring it past its constructor.

    It follows import aliases and assignments within the module; the run-time refusals below cover the rest.
    """
    return list(_Scan(ast.parse(source)).findings())


class _Scan:
    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.aliases = set(GUARDED)
        before = 0
        while len(self.aliases) != before:
            before = len(self.aliases)
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom):
                    self.aliases |= {a.asname for a in node.names if a.name in self.aliases and a.asname}
                elif isinstance(node, ast.Assign) and self.guarded(node.value):
                    self.aliases |= {target.id for target in node.targets if isinstance(target, ast.Name)}
                elif (
                    isinstance(node, ast.AnnAssign | ast.NamedExpr)
                    and node.value
                    and self.guarded(node.value)
                ):
                    self.aliases |= {node.target.id} if isinstance(node.target, ast.Name) else set()

    def guarded(self, node: ast.expr) -> bool:
        """Whether an expression is one of the classes: a name, an attribute, or either with a subscript."""
        if isinstance(node, ast.Subscript):
            return self.guarded(node.value)
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        return name in self.aliases

    def findings(self) -> Iterator[str]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield from self.calls(node)
            elif isinstance(node, ast.ClassDef) and any(map(self.guarded, node.bases)):
                yield f"line {node.lineno}: derives from a guarded class"
            elif isinstance(node, ast.Name | ast.Attribute):
                name = node.id if isinstance(node, ast.Name) else node.attr
                if name == "SEAL":
                    yield f"line {node.lineno}: touches the seal"
            elif isinstance(node, ast.ImportFrom) and any(
                alias.name in ("SEAL", "*") for alias in node.names
            ):
                yield f"line {node.lineno}: imports the seal"

    def calls(self, node: ast.Call) -> Iterator[str]:
        called = node.func
        name = (
            called.id
            if isinstance(called, ast.Name)
            else called.attr
            if isinstance(called, ast.Attribute)
            else ""
        )
        if self.guarded(called):
            yield f"line {node.lineno}: calls a guarded class"
        if name in ("__new__", "partial", "setattr", "__setattr__") and any(map(self.guarded, node.args)):
            yield f"line {node.lineno}: makes a guarded class by {name}"
        if name == "__new__" and isinstance(called, ast.Attribute) and self.guarded(called.value):
            yield f"line {node.lineno}: makes a guarded class by its __new__"
        if name in ("replace", "__replace__") and FIELDS & {keyword.arg for keyword in node.keywords}:
            yield f"line {node.lineno}: replaces a field of a guarded class"
        strings = {a.value for a in node.args if isinstance(a, ast.Constant)}
        if name in ("getattr", "attrgetter") and strings & (GUARDED | {"SEAL"}):
            yield f"line {node.lineno}: looks a guarded class up by name"


def modules() -> list[Path]:
    found = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [path for path in found if path.relative_to(ROOT).as_posix() not in MAKERS]


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_only_the_ledger_makes_a_released_value_or_a_permit(path: Path) -> None:
    found = violations(path.read_text())
    if path.name == "released.py" and path.parent.name == "privacy":
        found = [line for line in found if "seal" not in line]  # where it is defined and compared
    assert found == []


def test_the_scan_sees_the_ledger_itself() -> None:
    (maker,) = MAKERS
    found = " ".join(violations((ROOT / maker).read_text()))
    assert "calls a guarded class" in found
    assert "imports the seal" in found


@pytest.mark.parametrize(
    "source",
    [
        "Released(value=1, operation_id='', head='')",
        "Released[int](value=1)",
        "ledger.Released(value=1)",
        "fednas.privacy.ledger.Permit()",
        "from fednas.privacy.ledger import Released as R\nR(value=1)",
        "from fednas.privacy import Permit as P\nQ = P\nQ()",
        "S = ledger.Released[Arrays]\nS(value=1)",
        "S: type = ledger.Released\nS(value=1)",
        "object.__new__(Released)",
        "Released.__new__(Released)",
        "from functools import partial\npartial(Released, value=1)()",
        "dataclasses.replace(paid, value=secret)",
        "replace(paid, head='0')",
        "copy.replace(paid, operation_id='0')",
        "class Free(Released): pass",
        "class Free(Released[int]): pass",
        "from fednas.privacy.released import SEAL",
        "from fednas.privacy.released import *",
        "released.SEAL",
        "getattr(module, 'Released')(value=1)",
        "setattr(Released, '__post_init__', f)",
    ],
)
def test_the_scan_sees_each_way_around(source: str) -> None:
    assert violations(source)


@pytest.mark.parametrize(
    "source",
    [
        "from fednas.privacy.ledger import Released\ndef encode(released: Released[Arrays]) -> bytes: ...",
        "type(value) is Released",
        "isinstance(value, Permit)",
        "dataclasses.replace(config, epsilon=3.0)",
        "text.replace('a', 'b')",
        "ledger.release(operation, charges={}, mechanism=step)",
        "value: Released[Arrays] | None = None",
    ],
)
def test_the_scan_lets_readers_alone(source: str) -> None:
    assert violations(source) == []


@pytest.fixture
def paid(tmp_path: Path) -> Released[Arrays]:
    with open_ledger(tmp_path / "ledger") as ledger:
        ledger.open_plan("run", SMALL)
        return ledger.release(operation(1), charges={"search": 1}, mechanism=noise)


COPIES: list[Callable[[object], object]] = [
    copy.copy,
    copy.deepcopy,
    pickle.dumps,
    lambda guarded: guarded.__reduce__(),
    lambda guarded: guarded.__reduce_ex__(2),
]


@pytest.mark.parametrize("how", COPIES)
def test_a_released_value_is_never_copied_or_pickled(
    paid: Released[Arrays], how: Callable[[object], object]
) -> None:
    with pytest.raises(PrivacyError, match="never copied"):
        how(paid)


@pytest.mark.parametrize("how", COPIES)
def test_a_permit_is_never_copied_or_pickled(tmp_path: Path, how: Callable[[object], object]) -> None:
    def smuggle(permit: Permit) -> Arrays:
        how(permit)
        return {}

    with open_ledger(tmp_path / "ledger") as ledger:
        ledger.open_plan("run", SMALL)
        with pytest.raises(PrivacyError, match="never copied"):
            ledger.release(operation(1), charges={"search": 1}, mechanism=smuggle)


def test_constructors_refuse_everybody_else(paid: Released[Arrays]) -> None:
    value = {"secret": np.zeros(1)}
    for seal in (None, object(), True):
        with pytest.raises(PrivacyError, match=r"only PrivacyLedger\.release"):
            Released(
                value=value,
                operation_id="0",
                previous="0",
                head="0",
                entries=1,
                signature="0",
                seal=seal,
            )
        with pytest.raises(PrivacyError, match=r"only PrivacyLedger\.release"):
            Permit(plan=SMALL, charges={"search": 1}, entropy=SecureEntropy(), seal=seal)
    with pytest.raises(PrivacyError, match=r"only PrivacyLedger\.release"):
        dataclasses.replace(paid, value=value)
    with pytest.raises(dataclasses.FrozenInstanceError):
        paid.value = value  # type: ignore[misc]
    with pytest.raises(PrivacyError, match=r"PrivacyLedger\.open"):
        PrivacyLedger(store=None, spend=None, dataset="", key=b"", test_seed=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("base", [Released, Permit])
def test_nothing_derives_from_what_only_the_ledger_makes(base: type) -> None:
    with pytest.raises(PrivacyError, match="cannot derive"):
        type("Free", (base,), {})


def test_the_seal_is_not_among_the_ledgers_public_names() -> None:
    import fednas.privacy
    import fednas.privacy.ledger

    assert "SEAL" not in fednas.privacy.__all__
    assert "SEAL" not in fednas.privacy.ledger.__all__
    assert released_module.SEAL is not None
