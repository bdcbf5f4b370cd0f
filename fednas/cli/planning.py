"""`fednas plan`: what a study will spend, stream by stream, before anything runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fednas.cli.tables import Json, print_json, table

if TYPE_CHECKING:
    from fednas.config import StudyConfig


def plan(
    study: Annotated[Path, typer.Argument(help="A study.toml, or a run directory.")],
    epsilon: Annotated[float | None, typer.Option(help="Instead of the study's.")] = None,
    delta: Annotated[float | None, typer.Option(help="Instead of the study's.")] = None,
    sites: Annotated[
        list[int] | None, typer.Option(help="Declared size of a site; repeat for each. Checks delta.")
    ] = None,
    tiers: Annotated[int, typer.Option(min=1, help="Number of device tiers.")] = 3,
    as_json: Json = False,
) -> None:
    """Show what a study will spend, stream by stream, before anything runs."""
    from fednas.config import PrivacySection, load_study, validated

    path = study / "study.toml" if study.is_dir() else study
    config = load_study(path)
    changes = {k: v for k, v in (("epsilon", epsilon), ("delta", delta)) if v is not None}
    if changes:
        privacy = validated(PrivacySection, config.privacy.model_dump() | changes, "privacy")
        config = config.model_copy(update={"privacy": privacy})
    made = _plan(config, study / "plan.json" if study.is_dir() and not changes else None, tiers)
    for size in sites or []:
        made.budget.check_size(size)
    from fednas.privacy.accounting import epsilon_rdp
    from fednas.privacy.plan import STREAMS

    shares = dict(made.proportions)
    streams = {
        stream: {
            "share": shares[stream],
            "epsilon": made.epsilon(stream),
            "epsilon_proved": epsilon_rdp(made.events(stream), made.budget.delta),
        }
        for stream in STREAMS
        if shares[stream] > 0
    }
    if as_json:
        print_json(
            {"id": made.id, "claim": made.claim, "delta": made.budget.delta, "streams": streams}
            | _terms(made)
        )
        return
    table(
        f"plan {made.id[:12]}: epsilon {made.claim:.4f} at delta {made.budget.delta:g}, "
        "add or remove one record",
        ["release", "streams", "at most", "sampling", "noise multiplier", "clip norm"],
        [
            [a["what"], ", ".join(a["streams"]), a["times"], a["sampling"], a["noise"], a["clip"]]
            for a in _terms(made)["releases"]
        ],
    )
    table(
        "streams are disjoint, so a record's epsilon is the maximum",
        ["stream", "share of records", "epsilon (PLD)", "epsilon (proved, Rényi)"],
        [
            [name, f"{s['share']:.0%}", f"{s['epsilon']:.4f}", f"{s['epsilon_proved']:.4f}"]
            for name, s in streams.items()
        ],
    )


def _plan(config: "StudyConfig", stored: Path | None, tiers: int) -> Any:
    from fednas.privacy.plan import PrivacyPlan
    from fednas.schedule import release_schedule

    if stored is not None and stored.exists():
        return PrivacyPlan.from_json(str(json.loads(stored.read_text())["canonical"]))
    privacy = config.privacy
    return PrivacyPlan.calibrate(
        budget=privacy.budget, proportions=privacy.proportions, schedule=release_schedule(config, tiers)
    )


def _terms(plan: Any) -> dict[str, Any]:
    return {
        "releases": [
            {
                "what": allowance.name,
                "streams": list(allowance.streams),
                "times": str(allowance.amount),
                "sampling": f"{allowance.sampling_probability:g}",
                "noise": f"{allowance.noise_multiplier:g}",
                "clip": f"{allowance.clip_norm:g}",
            }
            for allowance in plan.allowances
        ]
    }
