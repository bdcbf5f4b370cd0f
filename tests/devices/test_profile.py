"""A device profile states limits, survives every format, and explains a refusal in one line."""

import tomllib
from dataclasses import dataclass, replace
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from fednas.devices import DeviceProfile
from fednas.errors import ConfigurationError

PHONE = DeviceProfile(
    tier="phone",
    memory_bytes=1_000_000,
    training_memory_bytes=8_000_000,
    upload_bytes=400_000,
    max_latency_ms=5.0,
    macs_per_ms=1e6,
    overhead_ms=0.5,
)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The fields of a cost that a profile reads."""

    macs: int = 1_000_000
    peak_bytes: int = 500_000
    training_bytes: int = 4_000_000
    upload_bytes: int = 200_000
    parameters: int = 50_000


class Site(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    device: DeviceProfile


PROFILES = st.builds(
    DeviceProfile,
    tier=st.text("abc-2", min_size=1),
    memory_bytes=st.integers(1, 2**50),
    training_memory_bytes=st.integers(1, 2**50),
    upload_bytes=st.integers(1, 2**50),
    max_latency_ms=st.floats(1e-6, 1e9),
    macs_per_ms=st.floats(1e-6, 1e15),
    overhead_ms=st.floats(0.0, 1e6),
)


@given(profile=PROFILES)
def test_a_profile_survives_json_toml_and_a_pydantic_section(profile: DeviceProfile) -> None:
    assert DeviceProfile.from_json(profile.to_json()) == profile
    assert DeviceProfile.from_dict(profile.as_dict()) == profile
    site = Site(device=profile)
    assert Site.model_validate(tomllib.loads(tomli_w.dumps(site.model_dump()))) == site
    assert Site.model_validate_json(site.model_dump_json()) == site
    assert site.model_dump()["device"] == profile.as_dict()


def test_a_section_refuses_an_unknown_or_missing_field() -> None:
    fields = PHONE.as_dict()
    with pytest.raises(ValidationError, match=r"device\.colour"):
        Site.model_validate({"device": fields | {"colour": "red"}})
    del fields["tier"]
    with pytest.raises(ValidationError, match=r"device\.tier"):
        Site.model_validate({"device": fields})


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"tier":"x"}', PHONE.to_json().replace("tier", "rank"), '{"tier":1,"memory_bytes":2}'],
)
def test_json_that_is_no_profile_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(ConfigurationError, match="device: "):
        DeviceProfile.from_json(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tier", " "),
        ("memory_bytes", 0),
        ("memory_bytes", 1.5),
        ("training_memory_bytes", True),
        ("upload_bytes", -1),
        ("max_latency_ms", 0.0),
        ("max_latency_ms", float("inf")),
        ("macs_per_ms", float("nan")),
        ("overhead_ms", -0.1),
        ("overhead_ms", "fast"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        replace(PHONE, **{name: value})


def test_latency_is_work_over_speed_plus_overhead() -> None:
    assert PHONE.latency_ms(Needs(macs=3_000_000)) == 3.5  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("needs", "violation", "words"),
    [
        (Needs(), -0.5, "fits phone"),
        (Needs(peak_bytes=1_000_000), 0.0, "fits phone"),
        (Needs(peak_bytes=1_200_000), 0.2, "needs 1.2 MB of memory, has 1.0 MB"),
        (Needs(peak_bytes=1_000_001), 1e-6, "needs 1000001 B of memory, has 1000000 B"),
        (Needs(training_bytes=16_000_000), 1.0, "needs 16.0 MB of training memory, has 8.0 MB"),
        (Needs(upload_bytes=600_000), 0.5, "needs 600.0 kB of upload, has 400.0 kB"),
        (Needs(macs=9_500_000), 1.0, "needs 10 ms of latency, has 5 ms"),
        (
            Needs(macs=9_500_000, upload_bytes=600_000),
            1.0,
            "needs 600.0 kB of upload, has 400.0 kB; needs 10 ms of latency, has 5 ms",
        ),
    ],
)
def test_the_largest_relative_excess_decides_and_every_excess_is_explained(
    needs: Any, violation: float, words: str
) -> None:
    assert PHONE.violation(needs) == pytest.approx(violation)
    assert PHONE.fits(needs) == (violation <= 0.0)
    assert PHONE.explain(needs) == words
