"""The blocks that keep shared weights meaningful in every width."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fednas.space.layers import ConvUnit, Gate, Network, Widen, gate, gates, grid_window, norm

torch.set_num_threads(1)


@given(side=st.integers(1, 300), data=st.data())
def test_a_grid_sees_every_position_in_the_given_number_of_cells(side: int, data: st.DataObject) -> None:
    grid = data.draw(st.integers(1, side))
    window, stride = grid_window(side, grid)
    cells = [range(start, start + window) for start in range(0, side - window + 1, stride)]
    assert len(cells) == grid
    assert {position for cell in cells for position in cell} == set(range(side))


@settings(deadline=None)
@given(wide=st.integers(1, 8), narrow=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_a_channel_is_normalised_alike_in_every_width(wide: int, narrow: int, seed: int) -> None:
    wide, narrow = 4 * max(wide, narrow), 4 * min(wide, narrow)
    torch.manual_seed(seed)
    x = torch.randn(2, wide, 5, 5)
    expected = norm("group", wide)(x)[:, :narrow]
    torch.testing.assert_close(norm("group", narrow)(x[:, :narrow]), expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 9, 16])
def test_every_number_of_channels_can_be_normalised(channels: int) -> None:
    assert norm("group", channels)(torch.randn(1, channels, 3)).shape == (1, channels, 3)


@given(source=st.integers(1, 9), target=st.integers(1, 9))
def test_widening_keeps_the_common_channels_and_adds_zeros(source: int, target: int) -> None:
    x = torch.randn(2, source, 3)
    y = Widen(source, target)(x)
    common = min(source, target)
    assert y.shape == (2, target, 3)
    assert bool((y[:, :common] == x[:, :common]).all())
    assert bool((y[:, common:] == 0).all())


@settings(deadline=None)
@given(
    side=st.integers(1, 20),
    kernel=st.sampled_from([1, 3, 5, 7]),
    stride=st.sampled_from([1, 2]),
    dims=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 2, 4]),
)
def test_a_unit_keeps_the_side_up_to_its_stride(
    side: int, kernel: int, stride: int, dims: int, dilation: int
) -> None:
    unit = ConvUnit(dims, 2, 4, kernel, norm_kind="group", act=nn.Tanh(), stride=stride, dilation=dilation)
    assert unit(torch.zeros(1, 2, *[side] * dims)).shape == (1, 4, *[-(-side // stride)] * dims)


def test_a_gate_scales_and_is_found_by_its_choice() -> None:
    trunk = nn.Sequential(nn.Linear(2, 2), gate(True, "depth", "width"))
    network = Network(stem=nn.Identity(), stem_key="identity", trunk=trunk)
    assert gates(network) == {"depth": "1.0.scale", "width": "1.1.scale"}
    single = Gate("depth")
    single.scale.fill_(3.0)
    assert bool((single(torch.ones(2)) == 3.0).all())
    assert not single.state_dict()


def test_nothing_is_gated_unless_asked() -> None:
    x = torch.randn(3)
    assert gate(False, "depth")(x) is x
    assert not list(gate(False, "depth").modules())[1:]


def test_a_stem_with_parameters_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="frozen"):
        Network(stem=nn.Linear(1, 1), stem_key="linear", trunk=nn.Identity())
