"""Five post offices reading handwritten digits: small images, label skew."""

import gzip
import io

import numpy as np

from fednas.config import DataSchema
from fednas.devices import DeviceProfile
from simulations import packaged
from simulations.partition import dirichlet, held_out
from simulations.scenario import Scenario, ScenarioData, SiteData, suggested_study

CLASSES = tuple(str(digit) for digit in range(10))

ALPHA = 1.0
SEED = 20_240_817  # public: which office holds which image is no secret of this simulation

# Name of the site, records, tier. The partition hands out exactly these many, so they may be declared.
OFFICES = (
    ("harbour", 350, "hall"),
    ("market", 350, "hall"),
    ("station", 300, "counter"),
    ("village", 200, "counter"),
    ("island", 150, "scanner"),
)

DEVICES = {
    "scanner": DeviceProfile(
        tier="scanner",
        memory_bytes=40_000,
        training_memory_bytes=2_000_000,
        upload_bytes=16_000,
        max_latency_ms=20.0,
        macs_per_ms=5_000.0,
    ),
    "counter": DeviceProfile(
        tier="counter",
        memory_bytes=72_000,
        training_memory_bytes=6_000_000,
        upload_bytes=48_000,
        max_latency_ms=20.0,
        macs_per_ms=12_000.0,
    ),
    "hall": DeviceProfile(
        tier="hall",
        memory_bytes=4_000_000_000,
        training_memory_bytes=8_000_000_000,
        upload_bytes=200_000_000,
        max_latency_ms=20.0,
        macs_per_ms=10_000_000.0,
    ),
}


def scenario() -> Scenario:
    """Handwritten digits at post offices that each see some digits more than others."""
    return Scenario(
        name="digits",
        description=(
            "1 797 handwritten digits of 8 x 8 pixels, ten classes, divided among five post offices with "
            "Dirichlet label skew (concentration 1). One record is one digit."
        ),
        study=suggested_study(
            "digits",
            "conv",
            DataSchema(input_shape=(1, 8, 8), class_names=CLASSES),
            clip_norm=0.5,
            learning_rate=0.25,
        ),
        load=load,
        baseline={"stem": "scattering", "body": "linear", "grid": 4},
    )


def load() -> ScenarioData:
    """Read the digits of `scikit-learn`: a fifth is the public test set, a public seed divides the rest."""
    content = packaged.read(
        "sklearn",
        "datasets/data/digits.csv.gz",
        sha256="09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
    )
    table = np.loadtxt(io.BytesIO(gzip.decompress(content)), delimiter=",", dtype=np.float32)
    x, y = (table[:, :64] / 16.0).reshape(-1, 1, 8, 8), table[:, 64].astype(np.int64)
    identifiers = [f"digit-{row}".encode() for row in range(len(y))]
    tested = np.array([held_out(identifier, key=b"fednas/digits/oracle") for identifier in identifiers])
    private = np.flatnonzero(~tested)
    shares = dirichlet(
        y[private],
        [size for _, size, _ in OFFICES],
        alpha=ALPHA,
        generator=np.random.default_rng(SEED),
    )
    sites: list[SiteData] = []
    for (name, size, tier), share in zip(OFFICES, shares, strict=True):
        rows = private[share]
        sites.append(
            SiteData(
                name=name,
                x=x[rows],
                y=y[rows],
                identifiers=[identifiers[row] for row in rows],
                declared_size=size,
                device=DEVICES[tier],
            )
        )
    return ScenarioData(name="digits", sites=tuple(sites), test_x=x[tested], test_y=y[tested])
