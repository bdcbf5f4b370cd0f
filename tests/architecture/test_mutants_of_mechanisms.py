"""Whoever adds a mechanism adds its mutants: what reads records under a permit is found in the sources."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import pytest

from fednas.audit.findings import MECHANISMS
from fednas.audit.mutation import Edit, Mutant, load_mutants
from fednas.privacy.allowance import READS
from tests.architecture.test_wire_gate import ROOT, dotted, name_of, sources

GATE = "fednas.privacy.ledger._run"  # makes the permit, and the entropy in it, after the charge
DRAWS = {"noised_sum", "SecureEntropy", "SeededEntropy"}
READERS = {"indices", "read"}
REQUIRED: Mapping[str, frozenset[str]] = {
    "noise": frozenset({"noise"}),
    "clip": frozenset({"clip"}),
    "choice of records": frozenset({"sampling", "data"}),
    "accounting": frozenset({"accounting"}),
}
"""Of each mechanism there are mutants of one group at least out of each of these."""


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """A function that touches records under a permit.

    Args:
        word: what mutants call it; one of `fednas.audit.findings.MECHANISMS`.
        allowances: what it is charged to.
        values: what of it leaves a site, by the names on the wire.
    """

    word: str
    allowances: tuple[str, ...]
    values: tuple[str, ...]


KNOWN: Mapping[str, Mechanism] = {
    "fednas.training.weights.train_weights": Mechanism(
        word="weights", allowances=("search", "final"), values=("update",)
    ),
    "fednas.training.alphas.architecture_gradient": Mechanism(
        word="architecture", allowances=("alphas",), values=("alphas",)
    ),
    "fednas.evaluation.noised_counts": Mechanism(
        word="fitness", allowances=("fitness",), values=("correct",)
    ),
}


def mechanisms_of(tree: ast.Module, module: str) -> set[str]:
    """The outermost functions that draw noise, ask a permit for its entropy, or read records under it."""

    def touches(node: ast.AST) -> bool:
        if isinstance(node, ast.Attribute):
            return node.attr == "entropy"
        if not isinstance(node, ast.Call):
            return False
        called = dotted(node.func).split(".")[-1] or (
            node.func.attr if isinstance(node.func, ast.Attribute) else ""
        )
        reads = called in READERS and any("permit" in ast.unparse(argument) for argument in node.args)
        return reads or called in DRAWS

    def walk(node: ast.AST, within: str) -> Iterator[str]:
        if touches(node):
            yield f"{module}.{within or '<module>'}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not within:
            within = node.name
        for child in ast.iter_child_nodes(node):
            yield from walk(child, within)

    return set(walk(tree, "")) - {GATE}


def dotted_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def found() -> frozenset[str]:
    """All mechanisms in the sources; an audit attacks them, and is none itself."""
    paths = [p for p in sources("fednas", "client", "server") if not name_of(p).startswith("fednas/audit/")]
    return frozenset().union(
        *(mechanisms_of(ast.parse(path.read_text()), dotted_name(name_of(path))) for path in paths)
    )


def values_of(tree: ast.Module) -> set[str]:
    """Names of all arrays that functions put into what leaves: `Arrays`, and what a reply may hold."""
    names: set[str] = set()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        returns = ast.unparse(function.returns) if function.returns else ""
        if returns != "Arrays" and function.name != "check_answer":
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Dict):
                names |= {str(key.value) for key in node.keys if isinstance(key, ast.Constant)}
            elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                names |= {str(node.slice.value) if isinstance(node.slice, ast.Constant) else "?"}
    return names


@cache
def reach(module: str) -> frozenset[str]:
    """A module and all modules of the library that it imports, and that those import."""
    seen: set[str] = set()
    left = [module]
    while left:
        name = left.pop()
        path = ROOT / (name.replace(".", "/") + ".py")
        if not path.exists():
            path = ROOT / name.replace(".", "/") / "__init__.py"
        if name in seen or not path.exists():
            continue
        seen.add(name)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fednas":
                left += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return frozenset(seen | {module})


def gaps(
    mutants: Iterable[Mutant],
    *,
    mechanisms: Iterable[str],
    allowances: Iterable[str] = READS,
    values: Iterable[str] | None = None,
    known: Mapping[str, Mechanism] = KNOWN,
) -> list[str]:
    """What is missing, a line each; nothing for a library whose every mechanism has its mutants."""
    mutants = tuple(mutants)
    missing = [f"{name} is in no entry of KNOWN" for name in sorted(set(mechanisms) - set(known))]
    missing += [f"{name} is no mechanism any more" for name in sorted(set(known) - set(mechanisms))]
    paid = {name for mechanism in known.values() for name in mechanism.allowances}
    missing += [
        f"the allowance {name} pays for no known mechanism" for name in sorted(set(allowances) - paid)
    ]
    left = {name for mechanism in known.values() for name in mechanism.values}
    leaves = left if values is None else set(values)
    missing += [f"{name} leaves a site, and no known mechanism made it" for name in sorted(leaves - left)]
    for name, mechanism in known.items():
        module = name.rpartition(".")[0]
        mine = [m for m in mutants if mechanism.word in m.mechanisms]
        if not any(edit.module == module for m in mine for edit in m.edits):
            missing.append(f"{name} has no mutant of its own module")
        for what, groups in REQUIRED.items():
            # What is charged is decided by who calls a mechanism; all else is in what the mechanism calls.
            edited = {e.module for m in mine if m.group in groups for e in m.edits}
            if not (edited if what == "accounting" else edited & reach(module)):
                missing.append(f"{name} has no mutant of its {what}")
    return missing


def test_every_mechanism_allowance_and_released_value_has_its_mutants() -> None:
    """Add mutants to `fednas/audit/mutants/`, and what they are of to KNOWN and `findings.MECHANISMS`."""
    values = set().union(
        *(
            values_of(ast.parse((ROOT / path).read_text()))
            for path in ("fednas/site/site.py", "fednas/wire.py")
        )
    )
    assert gaps(load_mutants(), mechanisms=found(), values=values) == []
    assert values == {name for mechanism in KNOWN.values() for name in mechanism.values}


def test_the_sources_hold_the_known_mechanisms_and_no_others() -> None:
    assert found() == set(KNOWN)
    assert {name for m in KNOWN.values() for name in m.allowances} == set(READS)
    assert {m.word for m in KNOWN.values()} == set(MECHANISMS)


NEW = "fednas.training.prototypes.class_means"
KINDS = {"noise": "noise", "clip": "clip", "choice of records": "data", "accounting": "accounting"}


def planted(function: str, mechanism: Mechanism, what: str) -> Mutant:
    """A mutant of one kind, which edits the function's own module."""
    edit = Edit(module=function.rpartition(".")[0], before="a", after="b")
    mutant = Mutant(
        name=f"{what} of {function}",
        layer="L1",
        group=KINDS[what],
        mechanisms=MECHANISMS,
        why="to see it missed",
        edits=(edit,),
    )
    object.__setattr__(mutant, "mechanisms", (mechanism.word,))  # maybe one that the library does not know
    return mutant


def complete(known: Mapping[str, Mechanism] = KNOWN) -> list[Mutant]:
    """One mutant of each kind for each mechanism."""
    return [planted(name, mechanism, what) for name, mechanism in known.items() for what in REQUIRED]


@pytest.mark.parametrize(
    "body",
    [
        "def class_means(records, permit: Permit): return permit.entropy.noise(1.0, 3)",
        "def class_means(records, p): return p.entropy.noise(1.0, 3)",
        "def class_means(r, permit):\n def inner(): return r.read(permit, 'means', x)\n return inner",
        "class A:\n  def class_means(self, permit): return self._records.indices(permit, 'means')",
        "a = 1\ndef class_means(records, permits): return records.read(permits[0], 'means', records.all)",
        "def class_means(units, source): return noised_sum(units, entropy=source)",
        "async def class_means(units): return grid.noised_sum(units, entropy=source)",
        "def class_means(units): return units + entropy.SecureEntropy().noise(1.0, 3)",
    ],
)
def test_a_new_mechanism_is_seen_however_it_is_written(body: str) -> None:
    new = mechanisms_of(ast.parse(body), "fednas.training.prototypes")
    assert new == {NEW}
    assert gaps(complete(), mechanisms={*KNOWN, *new}) == [f"{NEW} is in no entry of KNOWN"]


def test_a_mechanism_at_the_top_of_a_module_is_seen() -> None:
    body = "noise = permit.entropy.noise(1.0, 3)"
    assert mechanisms_of(ast.parse(body), "fednas.a") == {"fednas.a.<module>"}


@pytest.mark.parametrize(
    "body",
    [
        "def handle(file): return file.read()",
        "def work(task, permit): return train_weights(task, permit)",
        "def features(records, permit): return records.derive(permit, 'stem', stem)",
        "def release(ledger): return ledger.release(o, charges={}, mechanism=lambda permit: work(permit))",
    ],
)
def test_what_only_hands_a_permit_on_is_no_mechanism(body: str) -> None:
    assert mechanisms_of(ast.parse(body), "fednas.a") == set()


def test_a_new_mechanism_is_missed_until_it_has_mutants_of_every_kind() -> None:
    """An entry in KNOWN alone is not enough."""
    means = Mechanism(word="means", allowances=("means",), values=("means",))
    known = {**KNOWN, NEW: means}
    given = complete()
    missing = gaps(given, mechanisms=known, known=known)
    assert missing == [
        f"{NEW} has no mutant of its own module",
        *(f"{NEW} has no mutant of its {what}" for what in REQUIRED),
    ]
    for what in REQUIRED:
        given.append(planted(NEW, means, what))
        missing = [gap for gap in missing if not gap.endswith((f"its {what}", "own module"))]
        assert gaps(given, mechanisms=known, known=known) == missing
    assert missing == []


def test_a_mutant_of_another_mechanism_or_of_a_module_out_of_reach_closes_no_gap() -> None:
    name, weights = next(iter(KNOWN.items()))
    given = [mutant for mutant in complete() if mutant.name != f"clip of {name}"]
    gap = [f"{name} has no mutant of its clip"]
    assert gaps(given, mechanisms=KNOWN) == gap
    assert gaps([*given, planted("fednas.cli.tables.table", weights, "clip")], mechanisms=KNOWN) == gap
    assert (
        gaps([*given, planted(name, KNOWN["fednas.evaluation.noised_counts"], "clip")], mechanisms=KNOWN)
        == gap
    )
    assert gaps([*given, planted("fednas.privacy.grid.noised_sum", weights, "clip")], mechanisms=KNOWN) == []


def test_a_new_allowance_or_a_new_value_is_missed() -> None:
    assert gaps(complete(), mechanisms=KNOWN, allowances=(*READS, "means")) == [
        "the allowance means pays for no known mechanism"
    ]
    body = "def train(records) -> Arrays:\n arrays = {'update': u}\n arrays['loss'] = loss\n return arrays"
    assert gaps(complete(), mechanisms=KNOWN, values=values_of(ast.parse(body))) == [
        "loss leaves a site, and no known mechanism made it"
    ]
    assert gaps(complete(), mechanisms=list(KNOWN)[1:]) == [f"{next(iter(KNOWN))} is no mechanism any more"]


@pytest.mark.parametrize("what", REQUIRED)
@pytest.mark.parametrize("name", KNOWN)
def test_mutants_that_are_taken_away_one_by_one_are_missed_with_the_last(name: str, what: str) -> None:
    gap = f"{name} has no mutant of its {what}"
    for left in (complete(), list(load_mutants())):
        mine = [m for m in left if KNOWN[name].word in m.mechanisms and m.group in REQUIRED[what]]
        if what != "accounting":
            mine = [m for m in mine if any(e.module in reach(name.rpartition(".")[0]) for e in m.edits)]
        assert mine
        for mutant in mine:
            assert gap not in gaps(left, mechanisms=KNOWN)
            left.remove(mutant)
        assert gap in gaps(left, mechanisms=KNOWN)
