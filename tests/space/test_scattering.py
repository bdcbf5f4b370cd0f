"""The scattering stem equals its published definition, written slowly with numpy's FFT."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas.errors import ConfigurationError
from fednas.space.scattering import NUM_ANGLES, Scattering, gabor, morlet, padding

SIDES = st.integers(4, 37)


def _images(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


def _definition(image: np.ndarray, *, subsample: bool) -> np.ndarray:
    """Compute every path of one (H, W) image: |x * psi|, ||x * psi| * psi|, averaged by phi."""
    num_scales = 2 if min(image.shape) >= 16 else 1
    step = 2**num_scales
    x = np.pad(image.astype(np.float64), [padding(side, num_scales) for side in image.shape], mode="reflect")

    def convolve(signal: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        return np.fft.ifft2(np.fft.fft2(signal) * np.fft.fft2(kernel))

    def average(signal: np.ndarray, stride: int) -> np.ndarray:
        phi = gabor(x.shape, sigma=0.8 * 2 ** (num_scales - 1), theta=0.0, xi=0.0, slant=1.0).real
        phi = phi[::stride, ::stride] / phi[::stride, ::stride].sum()
        averaged = convolve(signal[::stride, ::stride], phi).real
        return averaged[step // stride :: step // stride, step // stride :: step // stride]

    strides = [2**scale if subsample else 1 for scale in range(num_scales)]
    psi = [[morlet(x.shape, scale=j, angle=a) for a in range(NUM_ANGLES)] for j in range(num_scales)]
    first = [[np.abs(convolve(x, wave)) for wave in scale] for scale in psi]
    paths = [average(x, 1)]
    paths += [average(u, strides[j]) for j in range(num_scales) for u in first[j]]
    if num_scales == 2:
        paths += [average(np.abs(convolve(u, wave)), strides[1]) for wave in psi[1] for u in first[0]]
    return np.stack(paths)


@settings(max_examples=15, deadline=None)
@given(height=SIDES, width=SIDES, seed=st.integers(0, 99))
def test_coefficients_equal_the_definition_computed_with_ffts(height: int, width: int, seed: int) -> None:
    images = _images((2, 2, height, width), seed)
    fast = Scattering((2, height, width)).coefficients(images)
    for record in range(2):
        for channel in range(2):
            slow = _definition(images[record, channel].numpy(), subsample=True)
            np.testing.assert_allclose(fast[record, channel].numpy(), slow, atol=5e-6)


def test_keeping_every_second_pixel_hardly_changes_the_coefficients() -> None:
    image = _images((1, 1, 28, 28))
    fast = Scattering((1, 28, 28)).coefficients(image)[0, 0].numpy()
    exact = _definition(image[0, 0].numpy(), subsample=False)
    assert np.abs(fast - exact).max() < 0.03 * np.abs(exact[1:]).max()


@pytest.mark.parametrize(
    ("input_shape", "output_shape", "key"),
    [
        ((1, 28, 28), (81, 7, 7), "scattering-j2"),
        ((3, 32, 32), (243, 8, 8), "scattering-j2"),
        ((1, 8, 8), (9, 4, 4), "scattering-j1"),
        ((1, 15, 28), (9, 8, 14), "scattering-j1"),
    ],
)
def test_shape_and_key_follow_from_the_image(
    input_shape: tuple[int, int, int], output_shape: tuple[int, int, int], key: str
) -> None:
    stem = Scattering(input_shape)
    assert stem.output_shape == output_shape
    assert stem.key == key
    features = stem(_images((2, *input_shape)))
    assert features.shape == (2, *output_shape)
    assert features.dtype == torch.float32
    assert not list(stem.parameters())
    assert not stem.state_dict()


def test_each_record_is_transformed_by_its_own_values_alone() -> None:
    stem = Scattering((1, 28, 28))
    images = _images((5, 1, 28, 28))
    together = stem(images)
    for index in range(5):
        torch.testing.assert_close(stem(images[index : index + 1])[0], together[index], atol=1e-5, rtol=1e-5)
    others_changed = torch.cat([images[:1], 100.0 * images[1:]])
    torch.testing.assert_close(stem(others_changed)[0], together[0], atol=1e-5, rtol=1e-5)


def test_groups_of_three_channels_are_centred_within_a_record() -> None:
    features = Scattering((1, 28, 28))(_images((3, 1, 28, 28))).reshape(3, 27, -1)
    torch.testing.assert_close(features.mean(dim=2), torch.zeros(3, 27), atol=1e-5, rtol=0)
    assert features.var(dim=2, correction=0).max() < 1.0 + 1e-4


def test_a_wavelet_ignores_a_constant_and_prefers_its_own_direction() -> None:
    assert abs(morlet((32, 32), scale=1, angle=3).sum()) < 1e-12
    rows = np.cos(0.75 * np.pi * np.arange(28))
    stripes = torch.from_numpy(np.tile(rows[:, None], (1, 28)).astype(np.float32))[None, None]
    responses = Scattering((1, 28, 28)).coefficients(stripes)[0, 0, 1 : 1 + NUM_ANGLES].mean(dim=(1, 2))
    assert int(responses.argmax()) == 0  # the wave runs along the rows
    constant = Scattering((1, 28, 28)).coefficients(torch.ones(1, 1, 28, 28))[0, 0]
    torch.testing.assert_close(constant[0], torch.ones(7, 7))
    assert constant[1:].abs().max() < 1e-4


def test_a_blank_image_gives_finite_features_and_gradients() -> None:
    image = torch.zeros(1, 1, 8, 8, requires_grad=True)
    features = Scattering((1, 8, 8))(image)
    features.square().sum().backward()
    assert image.grad is not None
    assert torch.isfinite(features).all()
    assert torch.isfinite(image.grad).all()


@pytest.mark.parametrize("shape", [(1, 3, 8), (0, 8, 8), (8, 8), (1, 8, 8, 8)])
def test_what_is_not_an_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match="at least 4 pixels"):
        Scattering(shape)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 17, 20)])
def test_exported_programs_give_the_same_features(shape: tuple[int, int, int], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    stem, images = Scattering(shape).eval(), _images((2, *shape))
    program = torch.export.export(stem, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    more = _images((5, *shape), seed=1)
    torch.testing.assert_close(program.module()(more), stem(more), atol=1e-5, rtol=1e-5)
    path = tmp_path / "stem.onnx"
    torch.onnx.export(program, (images,), str(path), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path))
    (result,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    np.testing.assert_allclose(result, stem(more).numpy(), atol=1e-4)
