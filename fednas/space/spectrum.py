"""A frozen spectral transform: features of signals without a parameter, so without an epsilon."""

import itertools
import math
from typing import Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_NUM_FRAMES: Final = 3
_NUM_BANDS: Final = 4
_FLOOR: Final = 0.1  # of a unit-scale signal: an amplitude below it counts as silence


@final
class Spectrum(nn.Module):
    """Means and log amplitudes of frequency bands in overlapping frames: frozen, one record at a time.

    Frames are weighted by a Hann window; the Fourier transform is a real matrix product; bands grow
    geometrically. Loudness is normalised within each record over all its channels, frames and bands: a fixed
    scale without any statistic of the data.

    Args:
        input_shape: (channels, length) of one record.
    """

    key = f"spectrum-{_NUM_FRAMES}x{_NUM_BANDS}"

    def __init__(self, input_shape: tuple[int, int]) -> None:
        super().__init__()
        channels, length = input_shape
        self.stride = length // (_NUM_FRAMES + 1)
        self.window = 2 * self.stride
        time = torch.arange(self.window, dtype=torch.float64)
        hann = 0.5 - 0.5 * torch.cos(2 * math.pi * (time + 0.5) / self.window)
        hann = hann / hann.sum()
        frequencies = torch.arange(1, self.window // 2 + 1, dtype=torch.float64)
        angles = 2 * math.pi * time[:, None] * frequencies[None, :] / self.window
        bands = _bands(len(frequencies))
        self.output_shape = (channels, _NUM_FRAMES * (1 + len(bands)))
        self.register_buffer("hann", hann.float(), persistent=False)
        self.register_buffer("cosines", (hann[:, None] * angles.cos()).float(), persistent=False)
        self.register_buffer("sines", (hann[:, None] * angles.sin()).float(), persistent=False)
        self.register_buffer("bands", bands.T.float().contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map signals (batch, channels, length) to features (batch, channels, frames x (1 + bands))."""
        starts = [index * self.stride for index in range(_NUM_FRAMES)]
        frames = torch.stack([x[..., start : start + self.window] for start in starts], dim=2)
        means = frames @ self.get_buffer("hann")
        centred = frames - means.unsqueeze(-1)
        real, imaginary = centred @ self.get_buffer("cosines"), centred @ self.get_buffer("sines")
        power = (real * real + imaginary * imaginary) @ self.get_buffer("bands")
        loudness = torch.log(power + _FLOOR**2).flatten(2)
        loudness = F.group_norm(loudness, 1)
        return torch.cat([means, loudness], dim=2)


def _bands(num_frequencies: int) -> Tensor:
    """Sum neighbouring frequencies into a few bands whose widths grow geometrically."""
    edges = [round((num_frequencies + 1) ** (index / _NUM_BANDS)) for index in range(_NUM_BANDS + 1)]
    edges = sorted(set(edges))
    rows = torch.zeros(len(edges) - 1, num_frequencies, dtype=torch.float64)
    for row, (low, high) in enumerate(itertools.pairwise(edges)):
        rows[row, low - 1 : high - 1] = 1.0
    return rows
