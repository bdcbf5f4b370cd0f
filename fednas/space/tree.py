"""The tree of choices behind a search space, as a value, and the walks over it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from fednas.errors import ConfigurationError
from fednas.space.architecture import Value

Pick = Callable[[str, tuple[Value, ...]], Value]


@final
@dataclass(frozen=True, kw_only=True)
class Choice:
    """One decision; an option's branch is active only while that option is chosen. Build it with `choice`."""

    name: str
    options: tuple[Value, ...]
    branches: tuple["Node | None", ...]
    nested: bool


@final
@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A body that occurs a chosen number of times. Build it with `repeat`."""

    name: str
    counts: tuple[int, ...]
    body: "Node"


@final
@dataclass(frozen=True, kw_only=True)
class Node:
    """Several independent parts. Build it with `node`."""

    children: tuple["Choice | Repeat | Node", ...]


Tree = Choice | Repeat | Node


def choice(name: str, *options: Value | tuple[Value, Tree], nested: bool = False) -> Choice:
    """Declare a decision.

    Args:
        name: The choice's name, unique on every path through the tree. The same name may occur in different
            branches of one choice, which are never active together, if its options are the same there.
        options: Values, cheapest first; `(value, tree)` attaches a sub-tree active only with that value.
        nested: True promises that smaller options use prefixes or crops of the last option's weights and no
            others, so that `cover` need not list them.

    Returns:
        The choice.

    Raises:
        ConfigurationError: No options, or two that compare equal.
    """
    pairs = [option if isinstance(option, tuple) else (option, None) for option in options]
    values = tuple(value for value, _ in pairs)
    if not values or len(set(values)) != len(values):
        raise ConfigurationError(f"choice {name} needs at least one option and no two equal, got {values}")
    if nested and any(branch is not None for _, branch in pairs):
        raise ConfigurationError(f"choice {name} is nested, so its options must not carry sub-trees")
    branches = tuple(None if branch is None else node(branch) for _, branch in pairs)
    return Choice(name=name, options=values, branches=branches, nested=nested)


def repeat(name: str, counts: Sequence[int], body: Tree) -> Repeat:
    """Declare a part that occurs `name` times; its choices are called `name.0.`, `name.1.` and so on.

    Args:
        name: The name of the count, itself a choice.
        counts: The possible numbers of repetitions, 0 or more, ascending.
        body: The repeated part.

    Returns:
        The repetition.

    Raises:
        ConfigurationError: The counts are empty, negative or not ascending.
    """
    values = tuple(counts)
    if not values or values[0] < 0 or list(values) != sorted(set(values)):
        raise ConfigurationError(f"repeat {name} needs ascending counts of 0 or more, got {values}")
    return Repeat(name=name, counts=values, body=node(body))


def node(*children: Tree) -> Node:
    """Put independent parts side by side."""
    return Node(children=children)


def _ask(name: str, options: tuple[Value, ...], pick: Pick) -> int:
    value = pick(name, options)
    for index, option in enumerate(options):
        if type(option) is type(value) and option == value:
            return index
    raise ConfigurationError(f"{name} must be one of {options}, got {value!r}")


def walk(tree: Tree, prefix: str, pick: Pick, chosen: dict[str, Value]) -> None:
    """Choose in the order of the tree, asking `pick`, and write what was chosen into `chosen`."""
    if isinstance(tree, Node):
        for child in tree.children:
            walk(child, prefix, pick, chosen)
        return
    name = prefix + tree.name
    if isinstance(tree, Choice):
        index = _ask(name, tree.options, pick)
        chosen[name] = tree.options[index]
        branch = tree.branches[index]
        if branch is not None:
            walk(branch, prefix, pick, chosen)
        return
    chosen[name] = times = tree.counts[_ask(name, tree.counts, pick)]
    for index in range(times):
        walk(tree.body, f"{name}.{index}.", pick, chosen)


def collect(tree: Tree, prefix: str) -> dict[str, tuple[Value, ...]]:
    """Find all choices below, full name to options, in the order of the tree; refuse a name used twice."""
    found: dict[str, tuple[Value, ...]] = {}

    def add(part: Mapping[str, tuple[Value, ...]]) -> None:
        for name, options in part.items():
            if name in found:
                raise ConfigurationError(f"the choice {name} occurs twice; give one of them another name")
            found[name] = options

    if isinstance(tree, Node):
        for child in tree.children:
            add(collect(child, prefix))
    elif isinstance(tree, Repeat):
        found[prefix + tree.name] = tree.counts
        for index in range(tree.counts[-1]):
            add(collect(tree.body, f"{prefix}{tree.name}.{index}."))
    else:
        found[prefix + tree.name] = tree.options
        add(_alternatives(tree, prefix))
    return found


def _alternatives(tree: Choice, prefix: str) -> dict[str, tuple[Value, ...]]:
    found: dict[str, tuple[Value, ...]] = {}
    for branch in tree.branches:
        for name, options in collect(branch, prefix).items() if branch is not None else ():
            if found.setdefault(name, options) != options:
                raise ConfigurationError(
                    f"the choice {name} has other options in another branch of {tree.name}"
                )
    return found


def count(tree: Tree) -> int:
    """Count the architectures below, exactly."""
    if isinstance(tree, Node):
        return math.prod(count(child) for child in tree.children)
    if isinstance(tree, Repeat):
        return sum(count(tree.body) ** times for times in tree.counts)
    return sum(1 if branch is None else count(branch) for branch in tree.branches)


def occurrences(tree: Tree, prefix: str, forced: Mapping[str, Value]) -> Iterator[dict[str, Value]]:
    """List each option of each choice with the options that lead to it, for `SearchSpace.cover`."""
    if isinstance(tree, Node):
        for child in tree.children:
            yield from occurrences(child, prefix, forced)
        return
    name = prefix + tree.name
    if isinstance(tree, Repeat):
        for times in tree.counts:
            yield {**forced, name: times}
        for index in range(tree.counts[-1]):
            yield from occurrences(tree.body, f"{name}.{index}.", {**forced, name: tree.counts[-1]})
        return
    for value, branch in zip(tree.options, tree.branches, strict=True):
        if not tree.nested:
            yield {**forced, name: value}
        if branch is not None:
            yield from occurrences(branch, prefix, {**forced, name: value})
