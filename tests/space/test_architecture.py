"""Architectures: canonical, hashable, and refused when malformed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednas.errors import ConfigurationError
from fednas.space import Architecture, Value

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,6}(\.[a-z0-9_]{1,3}){0,2}", fullmatch=True)
VALUES: st.SearchStrategy[Value] = st.one_of(
    st.text(max_size=5),
    st.integers(-(10**6), 10**6),
    st.booleans(),
    st.floats(-1e18, 1e18),
)
CHOICES = st.dictionaries(NAMES, VALUES, max_size=6)


@given(choices=CHOICES, data=st.data())
def test_the_order_of_choices_does_not_matter(choices: dict[str, Value], data: st.DataObject) -> None:
    shuffled = dict(data.draw(st.permutations(list(choices.items()))))
    left, right = Architecture.of("toy", choices), Architecture.of("toy", shuffled)
    assert left == right
    assert hash(left) == hash(right)
    assert left.to_json() == right.to_json()
    assert left.id == right.id


@given(choices=CHOICES)
def test_json_gives_back_the_same_architecture_and_types(choices: dict[str, Value]) -> None:
    architecture = Architecture.of("toy", choices)
    again = Architecture.from_json(architecture.to_json())
    assert again == architecture
    assert [type(value) for _, value in again.choices] == [type(value) for _, value in architecture.choices]
    assert again.as_dict() == choices
    assert all(again[name] == value for name, value in choices.items())


def test_the_canonical_text_and_id_never_change() -> None:
    architecture = Architecture.of("toy", {"b": 2, "a": True, "c.0.d": "x"})
    assert architecture.to_json() == '{"choices":{"a":true,"b":2,"c.0.d":"x"},"space":"toy"}'
    assert architecture.id == "e48da9d1667b"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"choices":{}}',
        '{"choices":{},"space":"toy","more":1}',
        '{"choices":[],"space":"toy"}',
        '{"choices":{},"space":3}',
        '{"choices":{"a":null},"space":"toy"}',
        '{"choices":{"a":[1]},"space":"toy"}',
        '{"choices":{"a":NaN},"space":"toy"}',
        '{"choices":{"a":1e999},"space":"toy"}',
        '{"choices":{"a":1,"a":2},"space":"toy"}',
        '{"choices":{"A b":1},"space":"toy"}',
        '{"choices":{"a":1},"space":"../toy"}',
        "[" * 100_000,
        '{"choices":{"a":' + "9" * 5000 + '},"space":"toy"}',
        '{"choices":{"a":9223372036854775808},"space":"toy"}',
    ],
)
def test_malformed_json_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Architecture.from_json(text)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ConfigurationError, match="finite"):
        Architecture.of("toy", {"a": value})


def test_unsorted_or_repeated_choices_are_refused() -> None:
    for choices in ((("b", 1), ("a", 2)), (("a", 1), ("a", 2))):
        with pytest.raises(ConfigurationError, match="sorted and unique"):
            Architecture(space="toy", choices=choices)


def test_an_inactive_choice_has_no_value() -> None:
    with pytest.raises(KeyError):
        Architecture.of("toy", {"a": 1})["b"]
