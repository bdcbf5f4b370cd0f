"""A site's kit: a key that never leaves the device, and a unit that starts it."""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.kit import SiteKit
from fednas.errors import ConfigurationError
from server.kit import ServerKit

SITE = """
name = "clinic"
dataset = "hospitals/clinic"
data = "data.npz"
declared_size = 100
epsilon = 3.0
ledger = "ledger.sqlite"
server_key = "0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f"

[device]
tier = "edge"
memory_bytes = 4000000
training_memory_bytes = 50000000
upload_bytes = 1000000
max_latency_ms = 10.0
macs_per_ms = 100000.0
overhead_ms = 0.1
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A `site.toml` whose data is not there yet."""
    path = tmp_path / "site.toml"
    path.write_text(SITE)
    return path


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """The certificate that an operator hands over."""
    return ServerKit.prepare(tmp_path / "server", ["fl.example.org"]).authority


def prepare(folder: Path, site: Path, authority: Path, **changes: object) -> SiteKit:
    values: dict[str, object] = {"superlink": "fl.example.org:443"} | changes
    return SiteKit.prepare(folder, site, authority=authority, **values)  # type: ignore[arg-type]


def test_the_private_key_is_its_owners_alone_and_belongs_to_the_public_one(
    tmp_path: Path, site: Path, authority: Path
) -> None:
    kit = prepare(tmp_path / "kit", site, authority)
    assert stat.S_IMODE(kit.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(kit.folder.stat().st_mode) == 0o700
    key = serialization.load_ssh_private_key(kit.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    assert kit.public_key.read_bytes() == public + b" clinic\n"


def test_the_certificate_may_be_in_the_kit_already(tmp_path: Path, site: Path, authority: Path) -> None:
    kit = prepare(tmp_path / "kit", site, authority)
    assert prepare(tmp_path / "kit", site, kit.authority) == kit
    assert kit.authority.read_bytes() == authority.read_bytes()


def test_a_second_preparation_keeps_the_key(tmp_path: Path, site: Path, authority: Path) -> None:
    kit = prepare(tmp_path / "kit", site, authority)
    before = kit.key.read_bytes()
    prepare(tmp_path / "kit", site, authority, superlink="other.example.org:8443")
    assert kit.key.read_bytes() == before
    assert "other.example.org:8443" in (kit.folder / "fednas-site.service").read_text()


@pytest.mark.parametrize("address", ["", "host", "host:", "host:0", "host:99999", "a b:1", "x:1;y", "h:1\n"])
def test_an_address_that_is_none_is_refused_before_anything_is_written(
    tmp_path: Path, site: Path, authority: Path, address: str
) -> None:
    with pytest.raises(ConfigurationError, match="--superlink"):
        prepare(tmp_path / "kit", site, authority, superlink=address)
    assert not (tmp_path / "kit").exists()


@pytest.mark.parametrize("address", ["clinic", "clinic:0", "a b:1", "under_score:1"])
def test_an_address_of_a_ledger_service_that_no_certificate_holds_is_refused(
    tmp_path: Path, site: Path, authority: Path, address: str
) -> None:
    with pytest.raises(ConfigurationError, match="--ledger"):
        prepare(tmp_path / "kit", site, authority, ledger=address)
    assert not (tmp_path / "kit").exists()


def test_what_is_no_certificate_is_refused(tmp_path: Path, site: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"ca\.crt"):
        prepare(tmp_path / "kit", site, tmp_path / "missing")
    with pytest.raises(ConfigurationError, match="no certificate"):
        prepare(tmp_path / "kit", site, site)


def test_a_device_that_would_obey_anybody_is_not_prepared(
    tmp_path: Path, site: Path, authority: Path
) -> None:
    site.write_text("\n".join(line for line in SITE.splitlines() if "server_key" not in line))
    with pytest.raises(ConfigurationError, match=r"no server_key.*server\.pub"):
        prepare(tmp_path / "kit", site, authority)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path, site: Path, authority: Path) -> None:
    kit = prepare(tmp_path / "50% of $it 's", site, authority, user="root", ledger="clinic.example.org:9443")
    units = sorted(kit.folder.glob("*.service"))
    assert [path.name for path in units] == ["fednas-ledger.service", "fednas-site.service"]
    done = subprocess.run(
        ["systemd-analyze", "verify", *units],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
