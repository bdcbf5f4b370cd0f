"""The algebra of search spaces, against enumeration of small random trees."""

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas.errors import ConfigurationError
from fednas.space import Architecture, Choice, Node, Repeat, SearchSpace, Value, choice, create, node, repeat
from fednas.space.layers import Network

Tree = Choice | Repeat | Node


def toy(tree: Tree) -> SearchSpace:
    def refuse(architecture: Architecture, gated: bool) -> Network:
        raise AssertionError("nothing is built here")

    return SearchSpace(name="toy", tree=node(tree), input_shape=(1,), num_classes=2, builder=refuse)


@st.composite
def trees(draw: st.DrawFn, depth: int = 2, name: str = "x") -> Tree:
    kinds = ["choice"] if depth == 0 else ["choice", "nested", "repeat", "node"]
    kind = draw(st.sampled_from(kinds))
    if kind == "choice":
        return choice(name, *range(draw(st.integers(1, 3))))
    if kind == "nested":
        branches = [draw(st.none() | trees(depth - 1, f"{name}{index}")) for index in range(2)]
        options = [value if branch is None else (value, branch) for value, branch in zip("ab", branches)]
        return choice(name, *options)
    if kind == "repeat":
        counts = draw(st.sampled_from([(0, 1), (1, 2), (0, 2), (1,)]))
        return repeat(name, counts, draw(trees(depth - 1, "y")))
    return node(draw(trees(depth - 1, f"{name}l")), draw(trees(depth - 1, f"{name}r")))


def merge(parts: Iterable[dict[str, Value]]) -> dict[str, Value]:
    return {name: value for part in parts for name, value in part.items()}


def enumerate_slowly(tree: Tree, prefix: str = "") -> list[dict[str, Value]]:
    """Every architecture of a tree, by its definition."""
    if isinstance(tree, Node):
        parts = [enumerate_slowly(child, prefix) for child in tree.children]
        return [merge(combination) for combination in itertools.product(*parts)]
    name = prefix + tree.name
    found: list[dict[str, Value]] = []
    if isinstance(tree, Choice):
        for value, branch in zip(tree.options, tree.branches):
            below = [{}] if branch is None else enumerate_slowly(branch, prefix)
            found += [{name: value, **part} for part in below]
        return found
    for count in tree.counts:
        bodies = [enumerate_slowly(tree.body, f"{name}.{index}.") for index in range(count)]
        for combination in itertools.product(*bodies):
            found.append({name: count, **merge(combination)})
    return found


def all_of(space: SearchSpace) -> list[Architecture]:
    return [Architecture.of(space.name, choices) for choices in enumerate_slowly(space.tree)]


@given(tree=trees())
def test_the_size_is_the_number_of_architectures(tree: Tree) -> None:
    space = toy(tree)
    everything = all_of(space)
    assert len(set(everything)) == len(everything) == space.size


@given(tree=trees(), seed=st.integers(0, 2**32 - 1))
def test_samples_mutants_children_and_neighbours_are_contained(tree: Tree, seed: int) -> None:
    space, generator = toy(tree), np.random.default_rng(seed)
    everything = set(all_of(space))
    left, right = space.sample(generator), space.sample(generator)
    found = [left, right, space.smallest(), space.largest(), space.cross(left, right, generator)]
    found += [*space.neighbours(left), *space.cover()]
    assert set(found) <= everything
    assert all(space.contains(architecture) for architecture in everything)


@given(tree=trees(), seed=st.integers(0, 2**32 - 1))
def test_a_mutant_differs_in_one_choice_that_was_active(tree: Tree, seed: int) -> None:
    space, generator = toy(tree), np.random.default_rng(seed)
    parent = space.sample(generator)
    if all(len(space.options()[name]) == 1 for name in parent.as_dict()):
        with pytest.raises(ConfigurationError, match="second option"):
            space.mutate(parent, generator)
        return
    child = space.mutate(parent, generator)
    both = parent.as_dict().keys() & child.as_dict().keys()
    assert len([name for name in both if parent[name] != child[name]]) == 1


@given(tree=trees(), seed=st.integers(0, 2**32 - 1))
def test_a_child_takes_each_choice_from_a_parent_that_has_it(tree: Tree, seed: int) -> None:
    space, generator = toy(tree), np.random.default_rng(seed)
    parents = [space.sample(generator), space.sample(generator)]
    child = space.cross(parents[0], parents[1], generator)
    for name, value in child.choices:
        values = [parent[name] for parent in parents if name in parent.as_dict()]
        assert value in (values or space.options()[name])


@given(tree=trees())
def test_encodings_have_one_length_and_never_collide(tree: Tree) -> None:
    space = toy(tree)
    everything = all_of(space)[:500]
    encodings = [space.encode(architecture) for architecture in everything]
    length = sum(1 + len(options) for options in space.options().values())
    assert all(encoding.dtype == np.float64 and encoding.shape == (length,) for encoding in encodings)
    assert len({encoding.tobytes() for encoding in encodings}) == len(everything)


@given(tree=trees(), seed=st.integers(0, 2**32 - 1))
def test_neighbours_are_the_other_options_of_each_active_choice(tree: Tree, seed: int) -> None:
    space = toy(tree)
    architecture = space.sample(np.random.default_rng(seed))
    neighbours = space.neighbours(architecture)
    expected = sum(len(space.options()[name]) - 1 for name in architecture.as_dict())
    assert len(neighbours) == len(set(neighbours)) == expected
    assert architecture not in neighbours


@given(tree=trees())
def test_the_cover_shows_every_option_of_every_choice(tree: Tree) -> None:
    space = toy(tree)
    shown = {pair for architecture in space.cover() for pair in architecture.choices}
    assert shown == {pair for architecture in all_of(space) for pair in architecture.choices}


def test_sampling_is_uniform_at_a_choice_and_the_test_can_fail() -> None:
    space = toy(choice("x", "a", ("b", choice("y", 1, 2, 3, 4))))
    generator = np.random.default_rng(0)
    count = 4000
    chosen = sum(space.sample(generator)["x"] == "a" for _ in range(count))
    deviation = (count * 0.25) ** 0.5
    assert abs(chosen - count / 2) < 4 * deviation
    assert not abs(chosen - count / 5) < 4 * deviation  # uniform over architectures would give a fifth


def test_a_repetition_prefixes_the_names_of_its_body() -> None:
    space = toy(repeat("stages", (1, 2), repeat("blocks", (1, 2), choice("kernel", 3, 5))))
    assert space.largest().as_dict() == {
        "stages": 2,
        **{f"stages.{i}.blocks": 2 for i in range(2)},
        **{f"stages.{i}.blocks.{j}.kernel": 5 for i in range(2) for j in range(2)},
    }
    assert list(space.options())[:3] == ["stages", "stages.0.blocks", "stages.0.blocks.0.kernel"]


def test_what_is_not_exactly_an_architecture_of_the_space_is_not_contained() -> None:
    space = toy(choice("x", 1, (2, choice("y", False, True))))
    assert space.contains(Architecture.of("toy", {"x": 2, "y": False}))
    for choices in ({"x": 2}, {"x": 1, "y": True}, {"x": 3}, {"x": True}, {"x": 1.0}, {"x": 2, "y": 0}, {}):
        assert not space.contains(Architecture.of("toy", choices))
    assert not space.contains(Architecture.of("other", {"x": 1}))


def test_what_is_not_contained_is_neither_built_nor_encoded_nor_changed() -> None:
    space, generator = toy(choice("x", 1, 2)), np.random.default_rng(0)
    foreign, own = Architecture.of("toy", {"x": 3}), space.smallest()
    for call in (
        lambda: space.build(foreign),
        lambda: space.encode(foreign),
        lambda: space.neighbours(foreign),
        lambda: space.mutate(foreign, generator),
        lambda: space.cross(own, foreign, generator),
    ):
        with pytest.raises(ConfigurationError, match="not in the space"):
            call()


def test_complete_refuses_a_value_that_was_not_offered() -> None:
    with pytest.raises(ConfigurationError, match="must be one of"):
        toy(choice("x", 1, 2)).complete(lambda name, options: 3)


def test_ambiguous_trees_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="occurs twice"):
        toy(node(choice("x", 1), choice("x", 2)))
    with pytest.raises(ConfigurationError, match="occurs twice"):
        toy(node(choice("x", 1), choice("y", ("a", choice("x", 1)))))
    with pytest.raises(ConfigurationError, match="other options"):
        toy(choice("y", ("a", choice("x", 1)), ("b", choice("x", 2))))
    with pytest.raises(ConfigurationError, match="no two equal"):
        choice("x", 1, True)
    with pytest.raises(ConfigurationError, match="at least one"):
        choice("x")
    with pytest.raises(ConfigurationError, match="ascending"):
        repeat("x", (2, 1), choice("y", 1))
    with pytest.raises(ConfigurationError, match="sub-trees"):
        choice("x", (1, choice("y", 1)), nested=True)


def test_the_same_name_may_live_in_branches_that_exclude_each_other() -> None:
    space = toy(choice("y", ("a", choice("x", 1, 2)), ("b", choice("x", 1, 2))))
    assert space.options() == {"y": ("a", "b"), "x": (1, 2)}
    assert space.size == 4


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_same_generator_draws_the_same_architectures(seed: int) -> None:
    space = create("mlp", (5,), 2)
    draws = [
        [space.sample(generator) for _ in range(3)] for generator in map(np.random.default_rng, (seed, seed))
    ]
    assert draws[0] == draws[1]


def test_unknown_spaces_and_shapes_that_do_not_suit_are_refused() -> None:
    for name, shape, num_classes in (
        ("cnn", (5,), 2),
        ("mlp", (5,), 1),
        ("mlp", (), 2),
        ("mlp", (0,), 2),
        ("conv", (1, 7, 8), 2),
        ("conv", (64,), 2),
        ("conv1d", (3, 7), 2),
        ("conv1d", (1, 8, 8), 2),
    ):
        with pytest.raises(ConfigurationError):
            create(name, shape, num_classes)
