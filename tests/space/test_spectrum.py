"""The frozen spectral stem, against a slow Fourier transform."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas.space.spectrum import Spectrum

torch.set_num_threads(1)


def slow_features(x: np.ndarray, num_frames: int = 3, num_bands: int = 4, floor: float = 0.1) -> np.ndarray:
    """One record of shape (channels, length), by its definition."""
    hop = x.shape[1] // (num_frames + 1)
    window = np.sin(np.pi * (np.arange(2 * hop) + 0.5) / (2 * hop)) ** 2
    window /= window.sum()
    edges = sorted({round((hop + 1) ** (index / num_bands)) for index in range(num_bands + 1)})
    means, loudness = [], []
    for channel in x:
        frames = [channel[index * hop : (index + 2) * hop] for index in range(num_frames)]
        means.append([float(window @ frame) for frame in frames])
        row = []
        for frame, mean in zip(frames, means[-1]):
            power = np.abs(np.fft.fft(window * (frame - mean))) ** 2
            for low, high in itertools.pairwise(edges):
                row.append(np.log(power[low:high].sum() + floor**2))
        loudness.append(row)
    table = np.asarray(loudness)
    table = (table - table.mean()) / np.sqrt(table.var() + 1e-5)
    return np.concatenate([np.asarray(means), table], axis=1)


@settings(deadline=None, max_examples=30)
@given(channels=st.integers(1, 4), length=st.integers(8, 150), seed=st.integers(0, 2**32 - 1))
def test_the_matrix_products_equal_the_fourier_transform(channels: int, length: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((2, channels, length))
    stem = Spectrum((channels, length)).double()
    features = stem(torch.from_numpy(x)).numpy()
    assert features.shape[1:] == stem.output_shape
    for index in range(2):
        np.testing.assert_allclose(features[index], slow_features(x[index]), rtol=1e-4, atol=1e-4)


def test_a_tone_is_loudest_in_its_band() -> None:
    stem = Spectrum((1, 128))
    time = torch.arange(128) / 64  # in frames of 64 samples: frequencies count periods in a frame
    bands = [(1, 2), (2, 6), (6, 14), (14, 33)]
    for band, (low, high) in enumerate(bands):
        tone = torch.sin(2 * torch.pi * (low + high - 1) / 2 * time)[None, None]
        loudness = stem(tone)[0, 0, 3:].reshape(3, 4)
        assert bool((loudness.argmax(dim=1) == band).all()), band


def test_silence_and_constants_give_finite_features() -> None:
    stem = Spectrum((2, 64))
    for x in (torch.zeros(1, 2, 64), torch.full((1, 2, 64), 3.0)):
        features = stem(x)
        assert bool(torch.isfinite(features).all())
        torch.testing.assert_close(features[:, :, :3], x[:, :, :3])


def test_the_stem_is_frozen_and_saves_nothing() -> None:
    stem = Spectrum((2, 64))
    assert not list(stem.parameters())
    assert not stem.state_dict()
    with pytest.raises(AttributeError):
        _ = stem.weight
