"""What a machine can do, and what its kernel tells: disks that forget, memory, versions."""

from importlib import metadata
from pathlib import Path

import pytest

from fednas.doctor import machine
from fednas.operations import free_memory_bytes

MOUNTS = """\
/dev/vda / ext4 rw 0 0
tmpfs /run tmpfs rw 0 0
server:/x /srv/two\\040words nfs4 rw 0 0
overlay /srv/box overlay rw 0 0
tmpfs /srv/box/deep tmpfs rw 0 0
/dev/vdb /srv/box/deep ext4 rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/home/x", "ext4"),
        ("/run/fednas", "tmpfs"),
        ("/running", "ext4"),
        ("/srv/two words/runs", "nfs4"),
        ("/srv/box/y", "overlay"),
        ("/srv/box/deep/y", "ext4"),
    ],
)
def test_a_folder_is_on_the_nearest_and_newest_mount(tmp_path: Path, folder: str, kind: str) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    assert machine.filesystem(Path(folder), tmp_path / "mounts") == kind


@pytest.mark.parametrize(
    ("kind", "state"), [("tmpfs", "fail"), ("ramfs", "fail"), ("nfs4", "warn"), ("overlay", "warn")]
)
def test_a_disk_that_forgets_or_cannot_lock_is_found(tmp_path: Path, kind: str, state: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"x / {kind} rw 0 0\n")
    before = sorted(tmp_path.iterdir())
    assert machine.disk_sync(tmp_path, mounts).state == state
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("seconds", "state"), [(1e-6, "warn"), (1e-3, "ok"), (1.0, "warn")])
def test_a_sync_that_is_too_fast_or_too_slow_is_found(
    tmp_path: Path, seconds: float, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mounts").write_text("x / ext4 rw 0 0\n")
    monkeypatch.setattr(machine, "_sync_times", lambda folder: [seconds])
    assert machine.disk_sync(tmp_path, tmp_path / "mounts").state == state


def test_a_folder_that_is_not_there_is_an_error_that_the_list_shows(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        machine.disk_sync(tmp_path / "nowhere")


def test_memory_is_held_against_the_declared_training() -> None:
    free = free_memory_bytes()
    assert machine.memory(10**15).state == "fail"
    assert machine.memory(1).state == ("ok" if free > machine.IDLE_BYTES else "warn")


def test_versions_are_held_against_what_the_package_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.versions().state == "ok"
    assert machine.versions("no-such-package").state == "skip"
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.9.0" if name == "opacus" else real(name))
    found = machine.versions()
    assert found.state == "fail"
    assert found.seen.startswith("opacus 0.9.0 (wanted <2,>=1.6")


def test_versions_of_extras_that_a_device_skips_are_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def without(name: str) -> str:
        if name in ("ray", "pytest", "pyarrow", "opacus"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", without)
    assert machine.versions().seen == "opacus is missing"


def test_the_time_service_is_asked_and_nothing_is_set() -> None:
    assert machine.synchronised().state in ("ok", "warn", "skip")
