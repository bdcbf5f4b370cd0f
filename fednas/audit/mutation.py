"""Broken versions of the real code, by name, and whether the layer that should see each one does.

A mutant is a few edits of source text. They are applied while a module is imported, in a process of its own
that sees made-up records only: no broken code is ever in the library, and none can be switched on in it.
"""

import importlib
import importlib.util
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final, cast, final

from fednas.audit.findings import LAYERS, MECHANISMS, Check
from fednas.audit.scratch import scratch
from fednas.errors import ConfigurationError

MUTANTS: Final = Path(__file__).resolve().parent / "mutants"
GROUPS: Final = ("clip", "noise", "data", "sampling", "accounting", "ledger")


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A change of a module's source.

    Args:
        module: its full name.
        before: text that occurs in it exactly once.
        after: what it becomes.
    """

    module: str
    before: str
    after: str

    def apply(self, source: str) -> str:
        """Return the changed source.

        Raises:
            ValueError: the text is not there exactly once: the code has moved on, so must the mutant.
        """
        if source.count(self.before) != 1:
            raise ValueError(
                f"{self.module} holds {self.before!r} {source.count(self.before)} times, expected once"
            )
        return source.replace(self.before, self.after)


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A mistake that somebody could make, or has made.

    Args:
        name: what the broken code does, a few words.
        layer: the layer that must find it.
        group: clip, noise, data, sampling, accounting or ledger.
        mechanisms: whose releases it breaks: weights, architecture, fitness.
        why: what it would cost, or who did it.
        edits: of the real code.

    Raises:
        ConfigurationError: a word is unknown, or nothing is edited.
    """

    name: str
    layer: str
    group: str
    mechanisms: tuple[str, ...]
    why: str
    edits: tuple[Edit, ...]

    def __post_init__(self) -> None:
        if self.layer not in LAYERS:
            raise ConfigurationError(f"the mutant {self.name!r} has layer {self.layer!r}; one of {LAYERS}")
        if self.group not in GROUPS:
            raise ConfigurationError(f"the mutant {self.name!r} has group {self.group!r}; one of {GROUPS}")
        if not self.mechanisms or not set(self.mechanisms) <= set(MECHANISMS):
            raise ConfigurationError(
                f"the mutant {self.name!r} breaks {self.mechanisms}; some of {MECHANISMS}"
            )
        if not (self.name and self.why and self.edits):
            raise ConfigurationError(f"the mutant {self.name!r} has no name, no reason or no edit")


def load_mutants(folder: Path = MUTANTS) -> tuple[Mutant, ...]:
    """All mutants, in the order of files and of their lines.

    Args:
        folder: of their files.

    Raises:
        ConfigurationError: a file is none of mutants, or two mutants have one name.
    """
    found: dict[str, Mutant] = {}
    for file in sorted(folder.glob("*.toml")):
        try:
            for entry in tomllib.loads(file.read_text(encoding="utf-8"))["mutant"]:
                values: dict[str, Any] = dict(entry)
                edits = tuple(Edit(**edit) for edit in values.pop("edit"))
                mechanisms = tuple(values.pop("mechanisms"))
                mutant = Mutant(edits=edits, mechanisms=mechanisms, **values)
                if mutant.name in found:
                    raise ConfigurationError(f"there are two mutants {mutant.name!r}; name one otherwise")
                found[mutant.name] = mutant
        except (KeyError, TypeError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(f"{file.name} is no file of mutants: {error}") from error
    return tuple(found.values())


@final
class Rewriter(MetaPathFinder):
    """Finds modules as usual, and changes the source of those that a mutant edits."""

    def __init__(self, edits: Sequence[Edit]) -> None:
        self._edits = tuple(edits)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        edits = [edit for edit in self._edits if edit.module == fullname]
        spec = PathFinder.find_spec(fullname, path, target) if edits else None
        if spec is None or spec.origin is None:
            return None
        return importlib.util.spec_from_file_location(
            fullname, spec.origin, loader=_Loader(fullname, spec.origin, edits)
        )


@final
class _Loader(SourceFileLoader):
    def __init__(self, fullname: str, path: str, edits: Sequence[Edit]) -> None:
        super().__init__(fullname, path)
        self._edits = tuple(edits)

    def get_code(self, fullname: str) -> CodeType:
        source = Path(self.path).read_text(encoding="utf-8")
        for edit in self._edits:
            source = edit.apply(source)
        return compile(source, self.path, "exec", dont_inherit=True)


def infect(edits: Sequence[Edit]) -> None:
    """Let this process import the mutant: what it had imported of the library is forgotten."""
    sys.meta_path.insert(0, Rewriter(edits))
    for name in [name for name in sys.modules if name.split(".")[0] == "fednas"]:
        del sys.modules[name]


def examine(layer: str, folder: Path) -> Iterator[Check]:
    """Run one layer on the reference study in this process, and yield what it checked as it comes.

    The layer gets the reference subject and an empty folder, and nothing else: it has no record to lose.

    Args:
        layer: by name.
        folder: where it works.
    """
    layers = importlib.import_module("fednas.audit.layers")
    subject = importlib.import_module("fednas.audit.subject").reference()
    verdict = importlib.import_module("fednas.audit.verdict")
    for finding in layers.ATTACKS[layer](subject, folder):
        yield from cast(Iterator[Check], verdict.checks(finding))


def accusation(check: Check) -> str:
    """The name and the figures of a check, for people."""
    return f"{check.name} ({check.detail})" if check.detail else check.name


def attack(layer: str) -> str | None:
    """Run one layer on the reference study in this process.

    Returns:
        The name and figures of the first check that did not hold, or None.
    """
    with scratch("fednas-audit-") as folder:
        checks = examine(layer, Path(folder))
        return next((accusation(check) for check in checks if not check.holds), None)


if __name__ == "__main__":
    wanted = sys.argv[1]
    mutant = next((m for m in load_mutants() if m.name == wanted), None)
    if mutant is None and wanted not in LAYERS:
        sys.exit(f"there is no mutant or layer {wanted!r}")
    if mutant is not None:
        infect(mutant.edits)
    print(attack(mutant.layer if mutant is not None else wanted))  # noqa: T201
