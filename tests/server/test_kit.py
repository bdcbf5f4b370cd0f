"""The operator's kit: keys that nobody else reads, certificates that verify, units and a proxy that start."""

import shutil
import ssl
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from fednas.errors import ConfigurationError
from fednas.privacy.signing import TaskSigner, is_signed_task
from server.kit import ServerKit


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_secrets_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    kit = ServerKit.prepare(tmp_path / "kit", ["fl.example.org"])
    assert mode(kit.secrets) == 0o700
    files = sorted(path.name for path in kit.secrets.iterdir())
    assert files == ["ca.key", "server.key", "signing.key", "superexec"]
    assert {mode(kit.secrets / name) for name in files} == {0o600}
    assert len((kit.secrets / "superexec").read_bytes()) == 32
    secret = b"PRIVATE KEY"
    assert not [path for path in kit.folder.iterdir() if path.is_file() and secret in path.read_bytes()]


def test_the_text_for_the_sites_is_the_public_half_of_the_signing_key(tmp_path: Path) -> None:
    kit = ServerKit.prepare(tmp_path / "kit", ["fl.example.org"])
    text = kit.public_key.read_text().strip()
    signature = TaskSigner.read(kit.signing_key).sign("ward", "0" * 64, "")
    assert is_signed_task(text, signature, site="ward", digest="0" * 64, mark="")
    kit.signing_key.chmod(0o600)
    kit.signing_key.write_bytes(b"short")
    with pytest.raises(ConfigurationError, match="expected 32 bytes"):
        TaskSigner.read(kit.signing_key)
    with pytest.raises(ConfigurationError, match="cannot read"):
        TaskSigner.read(tmp_path / "nowhere")


def test_a_second_preparation_keeps_every_key_and_renews_the_certificate(tmp_path: Path) -> None:
    kit = ServerKit.prepare(tmp_path, ["fl.example.org"])
    before = {path: path.read_bytes() for path in [kit.authority, *kit.secrets.iterdir()]}
    certificate = (tmp_path / "server.crt").read_bytes()
    ServerKit.prepare(tmp_path, ["fl.example.org", "10.0.0.7"])
    assert {path: path.read_bytes() for path in before} == before
    assert (tmp_path / "server.crt").read_bytes() != certificate


def test_an_authority_without_its_key_is_refused(tmp_path: Path) -> None:
    kit = ServerKit.prepare(tmp_path, ["fl.example.org"])
    (kit.secrets / "ca.key").unlink()
    with pytest.raises(ConfigurationError, match="belong together"):
        ServerKit.prepare(tmp_path, ["fl.example.org"])


def test_the_certificate_names_the_hosts_and_is_for_a_server_only(tmp_path: Path) -> None:
    ServerKit.prepare(tmp_path, ["fl.example.org", "10.0.0.7", "2001:db8::7"])
    found = x509.load_pem_x509_certificate((tmp_path / "server.crt").read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    addresses = [str(a) for a in names.get_values_for_type(x509.IPAddress)]
    assert addresses == ["10.0.0.7", "2001:db8::7", "127.0.0.1", "::1"]
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert found.not_valid_after_utc - datetime.now(UTC) < timedelta(days=398)
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    found.verify_directly_issued_by(authority)
    ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))


@pytest.mark.parametrize("host", ["", "a b", "-x", "x;y", "a" * 300, "x\n", '"'])
def test_a_host_that_is_none_is_refused_before_anything_is_written(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigurationError, match="--host"):
        ServerKit.prepare(tmp_path / "kit", [host])
    assert not (tmp_path / "kit").exists()


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_is_none_is_refused(tmp_path: Path, port: int) -> None:
    with pytest.raises(ConfigurationError, match="--port"):
        ServerKit.prepare(tmp_path / "kit", ["x"], port=port)
    with pytest.raises(ConfigurationError, match="--public-port"):
        ServerKit.prepare(tmp_path / "kit", ["x"], public_port=port)


def test_the_superlink_runs_with_tls_known_nodes_and_apps_apart(tmp_path: Path) -> None:
    kit = ServerKit.prepare(tmp_path, ["x"])
    command = " ".join(kit.superlink)
    assert "--insecure" not in command
    for part in (
        "--enable-supernode-auth",
        "--isolation process",
        "--superexec-auth-secret-file",
        "--host 127",
    ):
        assert part in command


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    ServerKit.prepare(tmp_path / "50% of $it", ["x"], user="root")
    units = sorted((tmp_path / "50% of $it").glob("*.service"))
    assert len(units) == 2
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
