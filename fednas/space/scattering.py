"""A frozen scattering transform: image features without a parameter, so without an epsilon.

Two orders of complex Morlet wavelets, complex modulus and Gaussian averaging (Bruna & Mallat (2013),
arXiv 1203.1513; wavelet constants of Sifre & Mallat (2013)), normalised within each record (Tramèr & Boneh
(2021), arXiv 2011.11660). Fourier transforms are real matrix products here, so every exporter takes them.
"""

import math
from functools import lru_cache
from typing import Final, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fednas.errors import ConfigurationError

NUM_ANGLES: Final = 8
_GROUP_CHANNELS: Final = 3  # channels that share one mean and variance within a record
_TINY: Final = 1e-12  # keeps the modulus differentiable at zero
_PERIODS: Final = range(-2, 3)  # copies summed to make a filter periodic

Bank = tuple[tuple[str, np.ndarray], ...]


def gabor(shape: tuple[int, int], *, sigma: float, theta: float, xi: float, slant: float) -> np.ndarray:
    """Sample a periodic Gaussian, modulated by a plane wave, on a grid.

    Args:
        shape: rows and columns of the grid, in pixels.
        sigma: standard deviation of the envelope along the wave, in pixels.
        theta: direction of the wave, in radians.
        xi: frequency of the wave, in radians a pixel; 0 gives the envelope.
        slant: ratio of the envelope's width along the wave to the one across it.

    Returns:
        A complex array of the given shape, centred on [0, 0], whose envelope integrates to 1.
    """
    height, width = shape
    rows = np.arange(height)[:, None, None, None] + height * np.array(_PERIODS)[None, None, :, None]
    columns = np.arange(width)[None, :, None, None] + width * np.array(_PERIODS)[None, None, None, :]
    along = rows * math.cos(theta) + columns * math.sin(theta)
    across = columns * math.cos(theta) - rows * math.sin(theta)
    envelope = np.exp(-(along**2 + (slant * across) ** 2) / (2 * sigma**2))
    waves = (envelope * np.exp(1j * xi * along)).sum(axis=(2, 3))
    return np.asarray(waves * slant / (2 * math.pi * sigma**2))


def morlet(shape: tuple[int, int], *, scale: int, angle: int) -> np.ndarray:
    """Sample the Morlet wavelet of a scale and an angle: a Gabor wave with its mean removed.

    Args:
        shape: rows and columns of the grid, in pixels.
        scale: j; the wavelet is dilated 2**j times.
        angle: which of the `NUM_ANGLES` directions of a half turn.

    Returns:
        A complex array of the given shape that sums to 0.
    """
    sigma, slant, theta = 0.8 * 2**scale, 4.0 / NUM_ANGLES, angle * math.pi / NUM_ANGLES
    wave = gabor(shape, sigma=sigma, theta=theta, xi=0.75 * math.pi / 2**scale, slant=slant)
    envelope = gabor(shape, sigma=sigma, theta=theta, xi=0.0, slant=slant)
    return np.asarray(wave - envelope * (wave.sum() / envelope.sum()))


def padding(length: int, num_scales: int) -> tuple[int, int]:
    """Return how many reflected pixels are put before and after an axis of `length` pixels.

    Args:
        length: pixels along the axis.
        num_scales: J; the output has one sample every 2**J pixels.

    Returns:
        Pixels before and after; the padded length is 2**J times (output length + 1).
    """
    step = 2**num_scales
    before = step // 2
    return before, step * (-(-length // step) + 1) - length - before


def _average(length: int, num_scales: int, scale: int) -> np.ndarray:
    """Return the (output, padded / 2**scale) matrix of the Gaussian average at every 2**J-th inner pixel."""
    before, after = padding(length, num_scales)
    total, step, sigma = before + length + after, 2**num_scales, 0.8 * 2 ** (num_scales - 1)
    outputs = np.arange(step, total, step)  # the sample at 0 lies in the padding
    distance = outputs[:, None] - np.arange(0, total, 2**scale)[None, :]
    copies = distance[:, :, None] + total * np.array(_PERIODS)
    weights = np.exp(-(copies**2) / (2 * sigma**2)).sum(axis=2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _reflection(length: int, num_scales: int) -> np.ndarray:
    """Return the (padded, length) matrix that reflects an axis at its two ends."""
    return np.pad(np.eye(length), (padding(length, num_scales), (0, 0)), mode="reflect")


def _complex(matrix: np.ndarray) -> np.ndarray:
    return np.stack([matrix.real, matrix.imag])


@lru_cache(maxsize=32)
def _bank(height: int, width: int, num_scales: int) -> Bank:
    """Compute every constant of the transform once per image size; matrices act on a trailing axis."""
    bank: dict[str, np.ndarray] = {}
    sizes: list[int] = []
    for axis, length in (("rows", height), ("columns", width)):
        reflection = _reflection(length, num_scales)
        total = len(reflection)
        sizes.append(total)
        fourier = np.fft.fft(np.eye(total))
        bank[f"enter_{axis}"] = _complex((fourier @ reflection).T)
        bank[f"forward_{axis}"] = _complex(fourier)
        bank[f"mean_{axis}"] = (_average(length, num_scales, 0) @ reflection).T
        for scale in range(num_scales):
            # summing the aliases of a spectrum and dividing by 2**scale keeps every 2**scale-th pixel
            inverse = np.fft.ifft(np.eye(total // 2**scale)) / 2**scale
            bank[f"inverse_{axis}_{scale}"] = _complex(inverse)
            bank[f"average_{axis}_{scale}"] = _average(length, num_scales, scale).T
    for scale in range(num_scales):
        waves = [morlet((sizes[0], sizes[1]), scale=scale, angle=angle) for angle in range(NUM_ANGLES)]
        bank[f"wavelets_{scale}"] = np.stack([np.fft.fft2(wave).real.T for wave in waves])
    return tuple((name, array.astype(np.float32)) for name, array in bank.items())


def _product(re: Tensor, im: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    return re @ matrix[0] - im @ matrix[1], re @ matrix[1] + im @ matrix[0]


def _spectrum(x: Tensor, columns: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Transform real (..., H, W) into a complex spectrum, transposed: (..., W', H')."""
    return _product((x @ columns[0]).transpose(-1, -2), (x @ columns[1]).transpose(-1, -2), rows)


def _fold(spectrum: Tensor, factor: int) -> Tensor:
    """Sum the aliases of a spectrum: what keeping every `factor`-th pixel does to it."""
    if factor == 1:
        return spectrum
    *lead, columns, rows = spectrum.shape
    parts = spectrum.reshape(*lead, factor, columns // factor, factor, rows // factor)
    return parts.sum(dim=(-4, -2))


@final
class Scattering(nn.Module):
    """The scattering transform of an image, frozen and normalised within each record.

    It has no parameters, sees one record at a time and learns nothing from data: features may be computed
    once per site and cached, and cost no privacy.

    Args:
        input_shape: channels, height and width of an image; both sides at least 4 pixels.

    Raises:
        ConfigurationError: the shape is not that of an image, or too small.

    Source:
        Bruna & Mallat (2013), arXiv 1203.1513; normalisation: Tramèr & Boneh (2021), arXiv 2011.11660.
    """

    output_shape: tuple[int, int, int]
    key: str

    def __init__(self, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        if len(input_shape) != 3 or input_shape[0] < 1 or min(input_shape[1:]) < 4:
            raise ConfigurationError(
                f"expected (channels, height, width) with sides of at least 4 pixels, got {input_shape}"
            )
        channels, height, width = input_shape
        self._num_scales = 2 if min(height, width) >= 16 else 1
        for name, array in _bank(height, width, self._num_scales):
            self.register_buffer(name, torch.tensor(array), persistent=False)
        num_paths = 1 + NUM_ANGLES * self._num_scales + NUM_ANGLES**2 * (self._num_scales - 1)
        step = 2**self._num_scales
        self.output_shape = (channels * num_paths, -(-height // step), -(-width // step))
        self.key = f"scattering-j{self._num_scales}"

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised scattering coefficients of each record.

        Args:
            x: (batch, channels, height, width), float32.

        Returns:
            (batch, `output_shape`): the mean, then first-order paths by scale and angle, then second-order
            paths by second and first angle, for each input channel; every group of 3 channels
            has mean 0 and variance at most 1 within a record.
        """
        features = self.coefficients(x).flatten(1, 2)
        return F.group_norm(features, num_groups=features.shape[1] // _GROUP_CHANNELS)

    def coefficients(self, x: Tensor) -> Tensor:
        """Return the coefficients before normalisation: (batch, channels, paths, h, w)."""
        mean = self._separable(x, "mean_columns", "mean_rows").unsqueeze(2)
        re, im = _spectrum(x, self.get_buffer("enter_columns"), self.get_buffer("enter_rows"))
        paths = [mean]
        finest: Tensor | None = None
        for scale in range(self._num_scales):
            waves = self.get_buffer(f"wavelets_{scale}")
            modulus = self._modulus(re.unsqueeze(2) * waves, im.unsqueeze(2) * waves, scale)
            paths.append(self._smooth(modulus, scale))
            finest = modulus if finest is None else finest
        if self._num_scales == 2 and finest is not None:
            re, im = _spectrum(finest, self.get_buffer("forward_columns"), self.get_buffer("forward_rows"))
            for wave in self.get_buffer("wavelets_1").unbind():  # an angle at a time needs less memory
                paths.append(self._smooth(self._modulus(re * wave, im * wave, 1), 1))
        return torch.cat(paths, dim=2)

    def _modulus(self, re: Tensor, im: Tensor, scale: int) -> Tensor:
        re, im = _fold(re, 2**scale), _fold(im, 2**scale)
        re, im = _product(re, im, self.get_buffer(f"inverse_rows_{scale}"))
        columns = self.get_buffer(f"inverse_columns_{scale}")
        re, im = _product(re.transpose(-1, -2), im.transpose(-1, -2), columns)
        return torch.sqrt(re * re + im * im + _TINY)

    def _smooth(self, modulus: Tensor, scale: int) -> Tensor:
        return self._separable(modulus, f"average_columns_{scale}", f"average_rows_{scale}")

    def _separable(self, x: Tensor, columns: str, rows: str) -> Tensor:
        across = (x @ self.get_buffer(columns)).transpose(-1, -2)
        return (across @ self.get_buffer(rows)).transpose(-1, -2)
