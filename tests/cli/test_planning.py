"""`fednas plan`: the run's own plans or another budget, both relations, upload, and who can learn."""

import json
from pathlib import Path

import pytest

from fednas.privacy.accounting import epsilon_pld, epsilon_rdp
from fednas.privacy.plan import STREAMS, PrivacyPlan
from tests.cli.calls import answer, call
from tests.simulations import tiny


def test_a_run_directory_shows_the_run_s_own_plans_and_sites(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = answer(monkeypatch, capfd, "plan", str(run))
    agreed = json.loads((run / "plan.json").read_text())["plans"]
    assert [plan["id"] for plan in shown["plans"]] == [plan["id"] for plan in agreed]
    assert {o["site"]["name"]: o["site"]["declared_size"] for o in shown["sites"]} == tiny.SIZES
    plan = PrivacyPlan.from_json(agreed[0]["canonical"])
    for stream, spent in shown["plans"][0]["streams"].items():
        assert spent["epsilon"] == pytest.approx(epsilon_pld(plan.events(stream), 1e-4))
        assert len(spent["bounds"]) == 6
        for bound in spent["bounds"]:
            terms = {"relation": bound["relation"]}
            assert bound["pld"] == pytest.approx(epsilon_pld(plan.events(stream), bound["delta"], **terms))
            assert bound["proved"] == pytest.approx(epsilon_rdp(plan.events(stream), bound["delta"], **terms))
    monkeypatch.setenv("COLUMNS", "200")
    assert call(monkeypatch, "plan", str(run)) == 0
    printed = capfd.readouterr().out
    for word in ("noise", "replace one", "upload", "outlook"):
        assert word in printed


def test_a_corrupt_plan_of_a_run_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (run / "plan.json").write_text("[]")
    assert call(monkeypatch, "plan", str(run)) == 2
    assert capfd.readouterr().err.startswith("error: ")
    assert call(monkeypatch, "plan", str(run / "study.toml")) == 0


def test_another_epsilon_gives_another_plan(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ("plan", str(run / "study.toml"), "--epsilon", "1", "--sites", "60")
    (smaller,) = answer(monkeypatch, capfd, *arguments)["plans"]
    assert smaller["claim"] <= 1.0
    assert smaller["claim"] == max(stream["epsilon"] for stream in smaller["streams"].values())


def test_each_site_is_planned_at_the_lesser_of_the_study_s_epsilon_and_its_own(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sites = ("--sites", "4400", "--sites", "ward=900@1", "--sites", "rich=900@50")
    shown = answer(monkeypatch, capfd, "plan", *sites)
    by_name = {o["site"]["name"]: o for o in shown["sites"]}
    assert set(by_name) == {"site-1", "ward", "rich"}
    assert by_name["ward"]["epsilon"] <= 1.0 < by_name["rich"]["epsilon"] <= 3.0
    assert by_name["ward"]["noise_multiplier"] > by_name["rich"]["noise_multiplier"]
    assert [plan["sites"] for plan in shown["plans"]] == [["site-1", "rich"], ["ward"]]
    assert sum(o["weight"] for o in shown["sites"]) == pytest.approx(1.0)


def test_sites_that_are_too_small_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    small = answer(monkeypatch, capfd, "plan", "--epsilon", "1", "--sites", "90", "--sites", "60")
    assert {o["verdict"] for o in small["sites"]} == {"too small"}
    assert any("too small" in warning for warning in small["warnings"])
    large = answer(monkeypatch, capfd, "plan", "--sites", "100000")
    assert [o["verdict"] for o in large["sites"]] == ["learns alone"]
    assert large["warnings"] == []
    assert call(monkeypatch, "plan", "--epsilon", "1", "--sites", "90") == 0
    assert "warning:" in capfd.readouterr().out


def test_without_a_study_the_defaults_of_a_space_are_planned(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    table = answer(monkeypatch, capfd, "plan")
    image = answer(monkeypatch, capfd, "plan", "--space", "conv", "--features", "1x8x8", "--classes", "10")
    assert table["plans"] == image["plans"]  # noise follows from the schedule, not from the network
    assert table["networks"] != image["networks"]
    assert table["sites"] == []


def test_a_filter_shows_its_order_and_costs_more_noise(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (fixed,) = answer(monkeypatch, capfd, "plan")["plans"]
    (chosen,) = answer(monkeypatch, capfd, "plan", "--adaptive")["plans"]
    (given,) = answer(monkeypatch, capfd, "plan", "--order", str(chosen["order"]))["plans"]
    assert given == chosen
    assert fixed["order"] is None
    search = {plan["id"]: plan["releases"][0]["noise_multiplier"] for plan in (fixed, chosen)}
    assert search[fixed["id"]] < search[chosen["id"]] < 1.3 * search[fixed["id"]]
    for stream in STREAMS:
        first = chosen["streams"][stream]["bounds"][0]
        assert first["pld"] is None
        assert first["proved"] == pytest.approx(chosen["streams"][stream]["epsilon"])
        assert first["proved"] <= 3.0 + 1e-9
    assert call(monkeypatch, "plan", "--adaptive") == 0
    assert f"order {chosen['order']}" in capfd.readouterr().out.replace("\n", " ")
