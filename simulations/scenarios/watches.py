"""Ten people with a smart watch doing physiotherapy: motion signals, one site a person."""

import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fednas.config import DataSchema
from fednas.devices import DeviceProfile
from simulations import packaged
from simulations.partition import held_out
from simulations.scenario import Scenario, ScenarioData, SiteData, suggested_study

# The published names of the exercises, in the order of the published labels.
CLASSES = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")

CHANNELS = 6
RATE_HZ = 50
WINDOW = 64  # samples, 1.28 s: half a repetition; longer windows are too few to learn from under privacy

# What one unit of a feature is, and the range of the sensors: public, never measured on the recordings.
UNITS = np.array([1.0, 1.0, 1.0, math.pi, math.pi, math.pi])  # g, g, g, rad/s, rad/s, rad/s
BOUNDS = np.array([6.0, 6.0, 6.0, 30.0, 30.0, 30.0])
LARGEST_FEATURE = 4.0  # in units; harder shakes are clipped

# The number picks a split that tests every exercise and leaves every subject every exercise to train on.
ORACLE_KEY = b"fednas/watches/oracle/314"

# Number of the subject: declared windows net of the public test set, tier.
SUBJECTS: Mapping[int, tuple[int, str]] = {
    1: (300, "phone"),
    2: (400, "phone"),
    3: (200, "watch"),
    4: (200, "band"),
    5: (350, "watch"),
    6: (250, "band"),
    7: (350, "phone"),
    8: (350, "watch"),
    9: (250, "watch"),
    10: (350, "band"),
}

DEVICES = {
    "band": DeviceProfile(
        tier="band",
        memory_bytes=24_000,
        training_memory_bytes=1_250_000,
        upload_bytes=10_000,
        max_latency_ms=40.0,
        macs_per_ms=1_000.0,
    ),
    "watch": DeviceProfile(
        tier="watch",
        memory_bytes=48_000,
        training_memory_bytes=4_000_000,
        upload_bytes=32_000,
        max_latency_ms=40.0,
        macs_per_ms=10_000.0,
    ),
    "phone": DeviceProfile(
        tier="phone",
        memory_bytes=1_000_000_000,
        training_memory_bytes=2_000_000_000,
        upload_bytes=50_000_000,
        max_latency_ms=40.0,
        macs_per_ms=5_000_000.0,
    ),
}


def scenario() -> Scenario:
    """Physiotherapy exercises from wrist motion: the natural sites are the ten subjects."""
    return Scenario(
        name="watches",
        description=(
            "140 smart-watch recordings of seven shoulder exercises by ten people, one site a person, six "
            "channels at 50 Hz, cut into windows of 64 samples that do not overlap. One record is one "
            "window: the guarantee covers 1.28 seconds of motion, not a recording and not the person."
        ),
        study=suggested_study(
            "watches",
            "conv1d",
            DataSchema(input_shape=(CHANNELS, WINDOW), class_names=CLASSES),
            clip_norm=0.5,
            learning_rate=0.4,
        ),
        load=load,
        baseline={"stem": "spectrum", "body": "linear"},
    )


def load() -> ScenarioData:
    """Read the recordings of `seglearn`; a fifth of the recordings, whole ones, are the public test set."""
    content = packaged.read(
        "seglearn",
        "data/watch_dataset.npy",
        sha256="eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537",
    )
    # A pickle runs what it holds: safe only because these are, to the bit, the published bytes.
    recordings: dict[str, Any] = np.load(io.BytesIO(content), allow_pickle=True).item()
    own: dict[int, list[tuple[NDArray[np.float32], int, bytes]]] = {subject: [] for subject in SUBJECTS}
    test: list[tuple[NDArray[np.float32], int, bytes]] = []
    for signal, label, subject, side in zip(
        recordings["X"], recordings["y"], recordings["subject"], recordings["side"], strict=True
    ):
        recording = f"subject-{int(subject)}/{CLASSES[int(label)]}/side-{int(side)}"
        chosen = held_out(recording.encode(), key=ORACLE_KEY)
        target = test if chosen else own[int(subject)]
        for number, window in enumerate(windows(signal)):
            target.append((window, int(label), f"{recording}/window-{number}".encode()))
    test_x, test_y, _ = _stack(test)
    sites: list[SiteData] = []
    for subject, (declared_size, tier) in SUBJECTS.items():
        x, y, identifiers = _stack(own[subject])
        sites.append(
            SiteData(
                name=f"subject-{subject}",
                x=x,
                y=y,
                identifiers=identifiers,
                declared_size=declared_size,
                device=DEVICES[tier],
            )
        )
    return ScenarioData(name="watches", sites=tuple(sites), test_x=test_x, test_y=test_y)


def windows(signal: NDArray[np.float64]) -> Iterator[NDArray[np.float32]]:
    """Cut a recording into consecutive windows that share no sample; what is left at the end is dropped.

    Args:
        signal: shape (samples, 6), accelerometer in g, gyroscope in rad/s.

    Yields:
        Windows of shape (6, 64), in public units, clipped to public bounds.
    """
    for start in range(0, len(signal) - WINDOW + 1, WINDOW):
        window = np.clip(signal[start : start + WINDOW], -BOUNDS, BOUNDS) / UNITS
        yield np.clip(window, -LARGEST_FEATURE, LARGEST_FEATURE).T.astype(np.float32)


def _stack(
    records: list[tuple[NDArray[np.float32], int, bytes]],
) -> tuple[NDArray[np.float32], NDArray[np.int64], list[bytes]]:
    x = np.ascontiguousarray(np.stack([window for window, _, _ in records]))
    return x, np.array([label for _, label, _ in records], dtype=np.int64), [name for _, _, name in records]
