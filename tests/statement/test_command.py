"""`fednas ledger statement` finds a run's audit by itself, and writes one page for all of its sites."""

import json
from pathlib import Path

import pytest

from fednas.audit.report import write
from fednas.audit.stranger import verify_everything
from fednas.audit.subject import reference
from fednas.config import SiteConfig, save_site, save_study
from tests.audit.reports import audit_of
from tests.cli.calls import answer, call
from tests.simulations.tiny import device
from tests.statement.made import made

NAMES = ("clinic", "ward")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory as far as statements are concerned: a study, two sites with ledgers, no records."""
    folder = tmp_path / "run"
    for name in NAMES:
        (folder / "sites" / name).mkdir(parents=True)
        made(folder / "sites" / name / "ledger.sqlite", dataset=f"hospitals/{name}")
        config = SiteConfig(
            name=name,
            dataset=f"hospitals/{name}",
            data=Path("data.npz"),
            declared_size=440,
            epsilon=3.0,
            ledger=Path("ledger.sqlite"),
            device=device("large"),
        )
        save_site(config, folder / "sites" / name / "site.toml")
    save_study(reference().study, folder / "study.toml")
    return folder


def test_an_audit_in_the_run_directory_joins_every_statement(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = answer(monkeypatch, capfd, "ledger", "statement", str(run))
    assert [row["audit"] for row in rows] == [None, None]
    write(run / "audit.json", audit_of(run))
    rows = answer(monkeypatch, capfd, "ledger", "statement", str(run))
    assert len({row["audit"] for row in rows} - {None}) == 1
    for row in rows:
        stated = json.loads(Path(row["statement"]).read_text())["audit"]
        assert stated["sha256"] == row["audit"]
        assert stated["ledger"]["contained"]
    assert [row for row in verify_everything([run]) if row.ok is False] == []
    one = run / "sites" / "clinic" / "ledger.sqlite"
    (bare,) = answer(monkeypatch, capfd, "ledger", "statement", str(one))
    assert (bare["audit"], bare["overview"]) == (None, None)


def test_another_audit_can_be_named_and_a_broken_one_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write(run / "audit.json", audit_of(run))
    write(tmp_path / "other.json", audit_of(leak=6.0))
    rows = answer(
        monkeypatch, capfd, "ledger", "statement", str(run), "--audit", str(tmp_path / "other.json")
    )
    assert all(row["accused"] for row in rows)
    assert call(monkeypatch, "ledger", "statement", str(run), "--audit", str(tmp_path / "other.json")) == 0
    assert "ACCUSED" in capfd.readouterr().out
    (run / "audit.json").write_text("{}")
    assert call(monkeypatch, "ledger", "statement", str(run)) == 2
    assert "malformed audit" in capfd.readouterr().err
    assert call(monkeypatch, "ledger", "statement", str(run), "--audit", str(tmp_path / "none.json")) == 2
    assert "cannot read" in capfd.readouterr().err


def test_one_page_of_a_run_is_beside_its_study_or_where_it_is_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = answer(monkeypatch, capfd, "ledger", "statement", str(run))
    page = (run / "privacy.html").read_text(encoding="utf-8")
    assert {row["overview"] for row in rows} == {str(run / "privacy.html")}
    for row in rows:
        link = Path(row["page"]).relative_to(run).as_posix()
        assert f'href="{link}"' in page
        assert (run / link).is_file()
    out = tmp_path / "out"
    ledgers = [str(run / "sites" / name / "ledger.sqlite") for name in NAMES]
    rows = answer(monkeypatch, capfd, "ledger", "statement", *ledgers, "--out", str(out))
    assert {row["overview"] for row in rows} == {str(out / "privacy.html")}
    page = (out / "privacy.html").read_text(encoding="utf-8")
    assert 'href="hospitals-clinic/statement.html"' in page
    assert (out / "hospitals-clinic" / "statement.html").is_file()
    assert [row for row in verify_everything([out, *map(Path, ledgers)]) if row.ok is False] == []
