"""Every requirement names tests that exist, and one of them at least runs whenever anything does."""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "tests" / "REQUIREMENTS.md"
ROW = re.compile(r"^\| (P[1-8]\.\d+) \| (.+?) \| (.*) \|$", re.MULTILINE)
NAME = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows(text: str) -> list[tuple[str, str, str]]:
    """The id, the words and the tests of each requirement."""
    return [(match[1], match[2], match[3]) for match in ROW.finditer(text)]


@cache
def defined(path: str) -> dict[str, bool]:
    """The tests of a file, each with whether it is a slow proof that `make test` leaves out."""
    file = ROOT / path
    if not file.exists():
        return {}
    tree = ast.parse(file.read_text())
    return {
        node.name: any("mark.slow" in ast.unparse(decorator) for decorator in node.decorator_list)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def problems(text: str) -> list[str]:
    """What is wrong with a table of requirements."""
    found = []
    ids = [id_ for id_, _, _ in rows(text)]
    found += [f"{id_} is there {count} times" for id_, count in Counter(ids).items() if count > 1]
    listed = re.findall(r"^\| (P\S+) ", text, re.MULTILINE)
    found += [f"{id_} is no row of this form" for id_ in listed if id_ not in ids]
    for section in sorted({id_.split(".")[0] for id_ in ids}):
        numbers = [int(id_.split(".")[1]) for id_ in ids if id_.startswith(f"{section}.")]
        if numbers != list(range(1, len(numbers) + 1)):
            found.append(f"{section} is not numbered from 1 without a gap")
    for id_, words, tests in rows(text):
        named = NAME.findall(tests)
        if not words.strip():
            found.append(f"{id_} says nothing")
        if re.sub(r"[`\s]", "", tests) != "".join(f"{path}::{name}" for path, name in named):
            found.append(f"{id_} names something that is no test")
        missing = [f"{path}::{name}" for path, name in named if name not in defined(path)]
        found += [f"{id_} names {name}, which is not there" for name in missing]
        if not any(defined(path).get(name) is False for path, name in named):
            found.append(f"{id_} has no test that `make test` runs")
    return found


def test_every_requirement_has_tests_that_are_there() -> None:
    text = TABLE.read_text()
    assert problems(text) == []
    assert len(rows(text)) >= 80


GOOD = (
    "| P1.1 | It holds. | "
    "`tests/architecture/test_requirements.py::test_every_requirement_has_tests_that_are_there` |\n"
)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (GOOD + GOOD, "is there 2 times"),
        (GOOD.replace("P1.1", "P1.2"), "not numbered"),
        (GOOD.replace("there`", "here`"), "which is not there"),
        (GOOD.replace("test_requirements.py", "test_nothing.py"), "which is not there"),
        (GOOD.replace("` |", "` by hand |"), "no test"),
        ("| P1.1 | It holds. |  |\n", "has no test"),
        ("| P1.1 | It holds. |\n", "no row of this form"),
        (
            "| P1.1 | It holds. | `tests/privacy/test_cross_check.py::"
            "test_no_accountant_disagrees_on_10000_schedules` |\n",
            "has no test that `make test` runs",
        ),
    ],
)
def test_a_table_with_one_thing_wrong_is_found(table: str, problem: str) -> None:
    assert problems(GOOD) == []
    assert any(problem in found for found in problems(table)), problems(table)
