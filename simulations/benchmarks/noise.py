"""What a noise coordinate costs: a rounded Box-Muller transform, ours, and OpenDP's exact sampler.

`python -m simulations.benchmarks.noise [--size N]` prints a table. Box-Muller is what was drawn here before,
on the same keystream: a continuous Gaussian, rounded. Ours and OpenDP's are the discrete Gaussian. Times are
the least of several runs, of this process's processor time; OpenDP draws fewer and is scaled up.
"""

import argparse
import importlib.metadata
import importlib.util
import math
import platform
import secrets
import time
from collections.abc import Callable

import cryptography
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from fednas.privacy.discrete_gaussian import proposal
from fednas.privacy.entropy import SecureEntropy

SIGMAS = (0.3, 1.0, 5.0, 25.0, 1e3, 1e6, 1e7, 1e12)
REPEATS = 7
Draw = Callable[[float, int], NDArray[np.int64]]


def box_muller(sigma: float, size: int) -> NDArray[np.int64]:
    """A continuous Gaussian from the same cipher, in float64, rounded."""
    encryptor = Cipher(algorithms.AES(secrets.token_bytes(32)), modes.CTR(bytes(16))).encryptor()
    pairs = (size + 1) // 2
    words = np.frombuffer(encryptor.update(bytes(16 * pairs)), dtype="<u8") >> np.uint64(11)
    first, second = (words.astype(np.float64) * 2.0**-53).reshape(2, pairs)
    radius, angle = np.sqrt(-2.0 * np.log(first + 2.0**-53)), 2.0 * math.pi * second
    normals = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]
    return np.rint(sigma * normals).astype(np.int64)


def ours(sigma: float, size: int) -> NDArray[np.int64]:
    """As a release draws: a fresh key, then the noise."""
    return SecureEntropy().noise(sigma, size)


def opendp(sigma: float, size: int) -> NDArray[np.int64]:
    """OpenDP's discrete Gaussian mechanism on zeros."""
    import opendp.prelude as dp

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="i64")
    return np.array(dp.m.make_gaussian(*space, sigma)([0] * size), dtype=np.int64)


def nanoseconds(draw: Draw, sigma: float, size: int, repeats: int) -> float:
    """The least processor time of a coordinate."""
    draw(sigma, min(size, 100))
    times = []
    for _ in range(repeats):
        start = time.process_time()
        draw(sigma, size)
        times.append(time.process_time() - start)
    return 1e9 * min(times) / size


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.noise", description=__doc__)
    parser.add_argument("--size", type=int, default=1_000_000, help="coordinates of a draw")
    size = parser.parse_args().size
    twin = importlib.util.find_spec("opendp") is not None
    console = Console()
    machine = f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}"
    versions = f"cryptography {cryptography.__version__}"
    if twin:
        versions += f", OpenDP {importlib.metadata.version('opendp')}"
    console.print(f"{size:,} coordinates, {machine}, {versions}", highlight=False)
    table = Table(
        "sigma", "blocks", "Box-Muller ns", "ours ns", "OpenDP ns", "ours s/1e6", "ours x Box-Muller"
    )
    table.add_column("OpenDP x ours")
    for sigma in SIGMAS:
        proposal.cache_clear()
        before, now = (nanoseconds(draw, sigma, size, REPEATS) for draw in (box_muller, ours))
        exact = nanoseconds(opendp, sigma, max(100, size // 50), 2) if twin else math.nan
        table.add_row(
            f"{sigma:g}",
            str(len(proposal(sigma).weights)),
            f"{before:.1f}",
            f"{now:.1f}",
            f"{exact:.0f}",
            f"{now * 1e-3:.4f}",
            f"{now / before:.2f}",
            f"{exact / now:.0f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
