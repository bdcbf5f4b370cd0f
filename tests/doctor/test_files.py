"""Files of a kit: what a service needs of them, and that nobody else may read its secrets."""

import shutil
import time
from pathlib import Path

import pytest

from client.kit import SiteKit
from fednas.doctor import files
from fednas.doctor.kit import FILE, ServerKitFile, SiteKitFile, read_kit
from fednas.errors import ConfigurationError
from server.kit import ServerKit
from tests.doctor.kits import OWNER, failed, found, make_site

DAY = 86400.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> ServerKit:
    """A server's kit; nothing of it runs."""
    return ServerKit.prepare(tmp_path_factory.mktemp("server"), ["fl.example.org"], user=OWNER)


@pytest.fixture
def site(tmp_path: Path, server: ServerKit) -> SiteKit:
    """A site's kit; nothing listens at its server's address."""
    return make_site(tmp_path / "site", server.authority, ledger="localhost:9443")


def test_a_kit_says_what_it_is_and_its_paths_come_back_absolute(site: SiteKit, server: ServerKit) -> None:
    ours, theirs = read_kit(site.folder), read_kit(server.folder)
    assert isinstance(ours, SiteKitFile)
    assert isinstance(theirs, ServerKitFile)
    assert (ours.key, ours.site, ours.superlink) == (site.key, site.site, site.superlink)
    assert ours.ledger is not None
    assert ours.ledger.key == site.folder / "ledger.key"
    assert theirs.units == tuple(server.folder / name for name in server.units(OWNER))
    assert str(site.folder) not in (site.folder / FILE).read_text()  # a copy of it is a kit


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('kind = "site"', 'kind = "moon"', "expected kind"),
        ("port = ", "port = 9", "port"),
        ("localhost:1", "localhost", "superlink"),
        ("user =", "owner =", "user"),
        ("user =", "user ", "not valid TOML"),
        ("format = 1", "format = 2", "format"),
    ],
)
def test_a_kit_of_another_form_is_refused_in_one_line(site: SiteKit, old: str, new: str, word: str) -> None:
    path = site.folder / FILE
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigurationError, match=word) as refusal:
        read_kit(site.folder)
    assert "\n" not in str(refusal.value)


def test_a_folder_without_a_kit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="client prepare"):
        read_kit(tmp_path)


def test_an_authority_is_one_and_in_its_dates(server: ServerKit) -> None:
    now = time.time()
    assert files.authority(server.authority, now, "").state == "ok"
    assert files.authority(server.authority, now + 3640 * DAY, "").state == "warn"
    assert files.authority(server.authority, now + 3660 * DAY, "").state == "fail"
    assert files.authority(server.authority, now - DAY, "").state == "fail"
    assert "no authority" in files.authority(server.folder / "server.crt", now, "").seen


def test_a_certificate_is_of_its_key_its_authority_and_its_names(server: ServerKit, tmp_path: Path) -> None:
    path, key = server.folder / "server.crt", server.secrets / "server.key"
    hosts, now = ["fl.example.org", "::1"], time.time()
    assert files.certificate(path, key, server.authority, hosts, now, "").state == "ok"
    assert files.certificate(path, key, server.authority, hosts, now + 380 * DAY, "").state == "warn"
    assert files.certificate(path, key, server.authority, hosts, now + 400 * DAY, "").state == "fail"
    assert files.certificate(path, key, server.authority, ["x.org"], now, "").state == "fail"
    assert (
        files.certificate(path, server.secrets / "ca.key", server.authority, hosts, now, "").state == "fail"
    )
    other = ServerKit.prepare(tmp_path, ["fl.example.org"])
    assert files.certificate(path, key, other.authority, hosts, now, "").state == "fail"


def test_secrets_are_of_the_user_alone(site: SiteKit, server: ServerKit) -> None:
    secrets = [server.secrets, *server.secrets.iterdir()]
    assert files.private(secrets, OWNER).state == "ok"
    assert "no user nobody-of-that-name" in files.private([site.key], "nobody-of-that-name").seen
    if OWNER == "root":  # as `sudo python -m client prepare` leaves it to a service of another user
        found = files.private([site.key], "nobody")
        assert (found.state, found.seen) == ("fail", "node.key belongs to user root")


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("OMP_NUM_THREADS=1", "OMP_NUM_THREADS=8", "OMP_NUM_THREADS"),
        ('Environment="FLWR_TELEMETRY_ENABLED=0"\n', "", "FLWR_TELEMETRY_ENABLED"),
        ("flower-supernode", "flower-supernode-of-old", "no program"),
        ('"--root-certificates"', '"--insecure"', "--root-certificates"),
        ("ExecStart=", "Exec=", "nothing"),
    ],
)
def test_a_unit_that_would_start_something_else_is_found(
    site: SiteKit, tmp_path: Path, old: str, new: str, word: str
) -> None:
    path = site.folder / "fednas-site.service"
    needs = ("--root-certificates",)
    assert files.unit(path, needs, tmp_path).state == "ok"
    path.write_text(path.read_text().replace(old, new))
    found = files.unit(path, needs, tmp_path)
    assert found.state == "fail"
    assert word in found.seen


def test_the_unit_that_systemd_has_is_the_one_that_counts(site: SiteKit, tmp_path: Path) -> None:
    path = site.folder / "fednas-site.service"
    installed = tmp_path / "systemd"
    installed.mkdir()
    (installed / path.name).write_text(path.read_text().replace("OMP_NUM_THREADS=1", "OMP_NUM_THREADS=4"))
    assert files.unit(path, (), installed).state == "fail"


def test_without_a_network_the_rest_is_still_tested(site: SiteKit) -> None:
    """Nothing listens there: one check fails, those that need it say so, the machine's are made."""
    findings = found(site.folder)
    assert failed(findings) == ["connection"]
    assert findings["health"].seen == "needs connection"
    assert findings["data"].state == "ok"
    assert findings["budget"].state == "ok"
    assert findings["ledger certificate"].state == "warn"
    assert findings["ledger strangers"].state == "skip"


def test_a_site_toml_that_is_none_is_one_fault(site: SiteKit) -> None:
    site.site.write_text(site.site.read_text().replace("epsilon = 3.0", "epsilon = -3.0"))
    findings = found(site.folder)
    assert failed(findings) == ["connection", "site.toml"]
    assert "epsilon" in findings["site.toml"].seen
    assert findings["budget"].seen == "needs ledger"


def test_what_a_user_may_not_read_is_skipped_with_the_way_to_read_it(
    site: SiteKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes

    def guarded(path: Path) -> bytes:
        if path.name == "node.key":  # as an ordinary user finds it: root, who may run this, may read all
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    finding = found(site.folder)["node key"]
    assert finding.state == "skip"
    assert f"sudo -u {OWNER}" in finding.remedy


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("ca.crt", "authority"),
        ("node.key", "node key"),
        ("node.pub", "node key"),
        ("fednas-site.service", "unit"),
        ("fednas-ledger.service", "ledger unit"),
    ],
)
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b'ExecStart="x', b"-----BEGIN CERTIFICATE-----\nAA"]
)
def test_a_file_of_anything_is_a_finding_and_no_traceback(
    site: SiteKit, name: str, check: str, content: bytes
) -> None:
    (site.folder / name).write_bytes(content)
    findings = found(site.folder, None)
    assert [one for one in failed(findings) if one != "connection"] == [check]
    assert "\n" not in findings[check].seen


def test_files_that_are_missing_are_findings(site: SiteKit, server: ServerKit, tmp_path: Path) -> None:
    for path in (site.key, site.public_key, site.authority, site.folder / "fednas-site.service", site.site):
        path.unlink()
    assert failed(found(site.folder, None)) == ["authority", "secrets", "node key", "unit", "site.toml"]
    copy = Path(shutil.copytree(server.folder, tmp_path / "copy"))
    for path in (*copy.glob("*.crt"), *copy.glob("*.service"), copy / "nginx.conf", copy / "server.pub"):
        path.unlink()
    shutil.rmtree(copy / "secrets")
    shutil.rmtree(copy / "runs")
    assert "authority" in failed(found(copy, None))


def test_another_signing_key_than_the_sites_know_is_found(server: ServerKit, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(server.folder, tmp_path / "kit"))
    assert found(copy, None)["signing key"].state == "ok"
    (copy / "secrets" / "signing.key").write_bytes(bytes(range(32)))
    assert found(copy, None)["signing key"].state == "fail"


def test_damaged_marks_of_a_run_are_found(server: ServerKit, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(server.folder, tmp_path / "kit"))
    run = copy / "runs" / "r1"
    run.mkdir()
    assert found(copy, None)["marks"].state == "skip"
    (run / "marks.json").write_text('{"format": 1, "datasets": {}}')
    assert found(copy, None)["marks"].state == "ok"
    (run / "marks.json").write_text('{"format": 1, "data')
    assert found(copy, None)["marks"].seen == "r1/marks.json is damaged"
