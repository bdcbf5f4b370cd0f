"""Kits of one site and its study, healthy unless a test breaks them, and what a doctor finds in them."""

import os
import pwd
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from client.kit import SiteKit
from fednas.config import StudyConfig
from fednas.doctor.examination import examine
from fednas.doctor.findings import Finding
from simulations.flower_command import free_port
from tests.client.test_kit import SITE
from tests.simulations import tiny

OWNER = pwd.getpwuid(os.getuid()).pw_name
STUDY = tiny.study()
RECORDS = 1371  # a number that appears nowhere else


def make_data(path: Path, *, features: int = 4, records: int = RECORDS) -> Path:
    """An archive of made-up records that fit `STUDY`, with 4 features."""
    generator = np.random.default_rng(3)
    x = generator.normal(size=(records, features)).astype(np.float32)
    np.savez(path, x=x, y=np.arange(records, dtype=np.int64) % 3)
    return path


def make_site(
    folder: Path,
    authority: Path,
    *,
    superlink: str = "localhost:1",
    ledger: str | None = None,
    text: str = SITE,
) -> SiteKit:
    """A site with data and a kit in `folder`/kit; its ledger is in `folder` and not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    make_data(folder / "data.npz")
    site = folder / "site.toml"
    site.write_text(text.replace("declared_size = 100", "declared_size = 100\ndelta = 1e-4"))
    return SiteKit.prepare(
        folder / "kit",
        site,
        superlink=superlink,
        authority=authority,
        port=free_port(),
        user=OWNER,
        ledger=ledger,
    )


def found(
    folder: Path, study: StudyConfig | None = STUDY, now: Callable[[], float] = time.time
) -> dict[str, Finding]:
    """What the doctor finds in a kit, by the names of the checks."""
    return {one.name: one for one in examine(folder, study, now)}


def failed(findings: dict[str, Finding]) -> list[str]:
    """The checks that do not hold."""
    return [name for name, one in findings.items() if one.state == "fail"]
