"""`fednas plan`: what a study will spend, what it uploads and whether it can learn, before anything runs."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fednas.cli.tables import Json, number_text, print_json, print_line, table
from fednas.errors import ConfigurationError, RunDirectoryError

if TYPE_CHECKING:
    from fednas.config import StudyConfig
    from fednas.feasibility import NetworkSizes, PlannedSite, Prospect, Upload
    from fednas.privacy.budget import PrivacyBudget
    from fednas.privacy.plan import PrivacyPlan
    from fednas.statement.bounds import Bound

_SITE: Final = re.compile(r"(?:(?P<name>[^=@]+)=)?(?P<size>[0-9]+)(?:@(?P<epsilon>[^@]+))?")
_DEFAULT_SPACE: Final = "mlp"
_COLOURS: Final = {
    "learns alone": "green",
    "learns with the others": "green",
    "learns in part": "yellow",
    "too small": "red",
}

Budget = Annotated[float | None, typer.Option(help="Instead of the study's.")]


def plan(
    study: Annotated[
        Path | None,
        typer.Argument(help="A study.toml, or a run directory. Without: a study of all defaults."),
    ] = None,
    epsilon: Budget = None,
    delta: Budget = None,
    sites: Annotated[
        list[str] | None,
        typer.Option(
            help="A site as SIZE, NAME=SIZE or NAME=SIZE@EPSILON (its own cap); repeat for each.",
            metavar="[NAME=]SIZE[@EPSILON]",
        ),
    ] = None,
    tiers: Annotated[
        int | None, typer.Option(min=1, help="Number of device tiers. Default: the run's, or 3.")
    ] = None,
    adaptive: Annotated[
        bool,
        typer.Option("--adaptive", help="For a Rényi filter, at the order that needs the least noise."),
    ] = False,
    order: Annotated[
        int | None, typer.Option(help="For a Rényi filter at this order, 2 to 256: noise may adapt.")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="Without a study: mlp, conv or conv1d. Default: mlp.")
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="Without a study: shape of a record, 20 or 1x28x28. Default: 20.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(help="Without a study: number of classes. Default: 2.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a study will spend, stream by stream, what it uploads, and whether its sites can learn.

    STUDY is a study.toml or a run directory; without it, a study of all defaults.
    """
    from fednas.feasibility import expected_upload, network_sizes, prospect

    began = _agreement(study)
    config = _study(study, space=space, features=features, classes=classes)
    changed = epsilon is not None or delta is not None or adaptive or order is not None
    config = _adjusted(config, epsilon=epsilon, delta=delta)
    num_tiers = tiers or (began["num_tiers"] if began else 3)
    budget = _budget(config, num_tiers, adaptive=adaptive, order=order)
    declared = _sites(sites) if sites else _known_sites(began)
    if began and not changed and not sites and tiers is None:
        plans = _known_plans(began)
        members = [(site, plans[began["sites"][site.name]["plan"]]) for site in declared]
        distinct = list(plans.values())
    else:
        members = [(site, _plan_of(config, num_tiers, budget, site)) for site in declared]
        distinct = list({made.id: made for _, made in members}.values())
        distinct = distinct or [_plan_of(config, num_tiers, budget, None)]
    sizes = network_sizes(config)
    upload = expected_upload(config, num_tiers, sizes)
    outlook = prospect(config, members, sizes) if members else None
    shown = [_described(made, [site.name for site, given in members if given == made]) for made in distinct]
    if as_json:
        print_json(
            {
                "study": config.name,
                "plans": shown,
                "networks": asdict(sizes),
                "upload": asdict(upload),
                "sites": [] if outlook is None else [asdict(site) for site in outlook.sites],
                "fitness_std": None if outlook is None else outlook.fitness_std,
                "warnings": [] if outlook is None else list(outlook.warnings),
            }
        )
        return
    for one in shown:
        _show_plan(one)
    _show_traffic(sizes, upload)
    if outlook is not None:
        _show_sites(outlook)


def _study(
    path: Path | None, *, space: str | None, features: str | None, classes: int | None
) -> "StudyConfig":
    """The study of a file or a run directory, or one of all defaults."""
    from fednas.config import load_study
    from fednas.feasibility import default_study

    if path is not None:
        if (space, features, classes) != (None, None, None):
            raise ConfigurationError(
                "--space, --features and --classes describe a study that has no file; leave them out, or it"
            )
        return load_study(path / "study.toml" if path.is_dir() else path)
    text = "20" if features is None else features
    if not re.fullmatch("[0-9]{1,9}(x[0-9]{1,9})*", text):
        raise ConfigurationError(f"expected --features as 20 or 1x28x28, got {text!r:.40}")
    shape = tuple(int(part) for part in text.split("x"))
    return default_study(space or _DEFAULT_SPACE, shape, 2 if classes is None else classes)


def _adjusted(config: "StudyConfig", *, epsilon: float | None, delta: float | None) -> "StudyConfig":
    from fednas.config import PrivacySection, validated

    changes = {name: v for name, v in (("epsilon", epsilon), ("delta", delta)) if v is not None}
    if not changes:
        return config
    privacy = validated(PrivacySection, config.privacy.model_dump() | changes, "privacy")
    return config.model_copy(update={"privacy": privacy})


def _budget(config: "StudyConfig", num_tiers: int, *, adaptive: bool, order: int | None) -> "PrivacyBudget":
    """The study's budget, with the order of a filter where one is asked for."""
    from dataclasses import replace

    from fednas.privacy.calibration import best_order
    from fednas.schedule import release_schedule

    budget = config.privacy.budget
    if order is None and adaptive:
        order = best_order(budget, release_schedule(config, num_tiers))
    return budget if order is None else replace(budget, order=order)


def _sites(texts: Sequence[str]) -> "list[PlannedSite]":
    """Sites as they are written on the command line."""
    from fednas.feasibility import PlannedSite

    found: list[PlannedSite] = []
    for number, text in enumerate(texts, start=1):
        match = _SITE.fullmatch(text.strip())
        try:
            if match is None:
                raise ValueError
            own = match["epsilon"]
            site = PlannedSite(
                name=match["name"] or f"site-{number}",
                declared_size=int(match["size"]),
                epsilon=None if own is None else float(own),
            )
        except ValueError:
            raise ConfigurationError(
                f"expected --sites as SIZE, NAME=SIZE or NAME=SIZE@EPSILON, got {text!r:.60}"
            ) from None
        if any(site.name == other.name for other in found):
            raise ConfigurationError(f"two sites have the name {site.name!r}; give each its own")
        found.append(site)
    return found


def _plan_of(
    config: "StudyConfig", num_tiers: int, budget: "PrivacyBudget", site: "PlannedSite | None"
) -> "PrivacyPlan":
    """The plan that a site would be given: at the lesser of the study's epsilon and its own cap."""
    from dataclasses import replace

    from fednas.schedule import plan_for

    if site is not None:
        budget.check_size(site.declared_size)
        if site.epsilon is not None and not budget.is_private:
            raise ConfigurationError(f"site {site.name} has a cap, so it cannot join a study without privacy")
        if site.epsilon is not None and site.epsilon < budget.epsilon:
            budget = replace(budget, epsilon=site.epsilon)
    return plan_for(config, num_tiers, budget)


def _agreement(path: Path | None) -> dict[str, Any] | None:
    """What the server of a run directory agreed on; None where no run has begun."""
    if path is None or not (path / "plan.json").is_file():
        return None
    try:
        value = json.loads((path / "plan.json").read_text(encoding="utf-8"))
        for name, kind in (("num_tiers", int), ("plans", list), ("sites", dict)):
            if not isinstance(value[name], kind):
                raise TypeError(name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(f"{path}/plan.json is corrupt; give the run's study.toml instead") from error
    return dict(value)


def _known_plans(began: Mapping[str, Any]) -> "dict[str, PrivacyPlan]":
    from fednas.privacy.plan import PrivacyPlan

    return {entry["id"]: PrivacyPlan.from_json(entry["canonical"]) for entry in began["plans"]}


def _known_sites(began: Mapping[str, Any] | None) -> "list[PlannedSite]":
    from fednas.feasibility import PlannedSite

    if began is None:
        return []
    facts = {name: entry["facts"] for name, entry in sorted(began["sites"].items())}
    return [
        PlannedSite(name=name, declared_size=fact["declared_size"], epsilon=_finite(fact["epsilon_cap"]))
        for name, fact in facts.items()
    ]


def _finite(cap: float) -> float | None:
    return cap if cap < float("inf") else None


def _described(made: "PrivacyPlan", sites: Sequence[str]) -> dict[str, Any]:
    """A plan as plain values: its releases, and what each stream spends under both relations."""
    from fednas.privacy.plan import STREAMS

    shares = dict(made.proportions)
    return {
        "id": made.id,
        "sites": list(sites),
        "claim": made.claim,
        "delta": made.budget.delta,
        "order": made.budget.order,
        "bounds": [asdict(bound) for bound in _whole(made)],
        "releases": [
            {
                "what": allowance.name,
                "streams": list(allowance.streams),
                "times": allowance.amount,
                "sampling_probability": allowance.sampling_probability,
                "noise_multiplier": allowance.noise_multiplier,
                "clip_norm": allowance.clip_norm,
            }
            for allowance in made.allowances
        ],
        "streams": {
            stream: {
                "share": shares[stream],
                "epsilon": made.epsilon(stream),
                "bounds": [asdict(bound) for bound in _bounds(made, stream)],
            }
            for stream in STREAMS
            if shares[stream] > 0
        },
    }


def _bounds(made: "PrivacyPlan", stream: str) -> "tuple[Bound, ...]":
    from fednas.privacy.accounting import renyi_divergence
    from fednas.statement.bounds import event_bounds, filter_bounds

    order, events = made.budget.order, made.events(stream)
    if order is None:
        return event_bounds(events, made.budget.delta)
    return filter_bounds(renyi_divergence(events, order), order, made.budget.delta)


def _whole(made: "PrivacyPlan") -> "tuple[Bound, ...]":
    """Bounds of any record of a site, which may be replaced by one of another stream."""
    from fednas.privacy.accounting import renyi_divergence
    from fednas.privacy.plan import STREAMS
    from fednas.statement.bounds import filter_bounds, site_bounds

    order = made.budget.order
    if order is None:
        return site_bounds([(a.event, a.streams) for a in made.allowances], made.budget.delta)
    worst = max(renyi_divergence(made.events(stream), order) for stream in STREAMS)
    return filter_bounds(worst, order, made.budget.delta)


def _show_plan(shown: Mapping[str, Any]) -> None:
    from rich.markup import escape

    for_sites = f" for {escape(', '.join(shown['sites']))}" if shown["sites"] else ""
    mode = "" if shown["order"] is None else f", a filter at order {shown['order']}"
    table(
        f"plan {shown['id'][:12]}{for_sites}: epsilon {number_text(shown['claim'])} at delta "
        f"{shown['delta']:g}, add or remove one record{mode}",
        ["release", "streams", "at most", "sampling", "noise multiplier", "clip norm"],
        [
            [
                r["what"],
                ", ".join(r["streams"]),
                str(r["times"]),
                f"{r['sampling_probability']:g}",
                f"{r['noise_multiplier']:g}",
                f"{r['clip_norm']:g}",
            ]
            for r in shown["releases"]
        ],
    )
    rows = []
    parts = [(name, f"{s['share']:.0%}", s["bounds"]) for name, s in shown["streams"].items()]
    for name, share, bounds in [*parts, ("any record", "", shown["bounds"])]:
        cells: dict[float, list[str]] = {}
        for bound in bounds:
            cells.setdefault(bound["delta"], []).extend(
                [number_text(bound["pld"]), number_text(bound["proved"])]
            )
        for position, (delta, values) in enumerate(cells.items()):
            first = position == 0
            rows.append([name if first else "", share if first else "", f"{delta:g}", *values])
    table(
        "streams are disjoint, so a record's epsilon is the maximum",
        ["stream", "share", "delta", "add/remove: PLD", "proved", "replace one: PLD", "proved"],
        rows,
    )


def _show_traffic(sizes: "NetworkSizes", upload: "Upload") -> None:
    low, high = upload.update
    print_line(f"networks of {sizes.smallest:,} to {sizes.largest:,} parameters, typically {sizes.typical:,}")
    print_line(
        f"upload of a site: {_bytes(low)} to {_bytes(high)} a training round, "
        f"{_bytes(upload.total[0])} to {_bytes(upload.total[1])} in {upload.num_messages} replies"
    )


def _show_sites(outlook: "Prospect") -> None:
    from rich.markup import escape

    table(
        "noise over signal in a typical network's update: in a round, over the whole study, with all sites",
        [
            "site",
            "records",
            "epsilon",
            "noise",
            "a round",
            "alone",
            "together",
            "weight",
            "fitness",
            "outlook",
        ],
        [
            [
                escape(o.site.name),
                f"{o.site.declared_size:,}",
                number_text(o.epsilon),
                f"{o.noise_multiplier:g}",
                f"{o.round_share:.2f}",
                f"{o.alone:.3f}",
                f"{o.together:.3f}",
                f"{100 * o.weight:.2g} %",
                "–" if o.fitness_std is None else f"±{o.fitness_std:.2f}",
                f"[{_COLOURS[o.verdict]}]{o.verdict}[/]",
            ]
            for o in outlook.sites
        ],
    )
    for warning in outlook.warnings:
        print_line(f"[yellow]warning:[/] {warning}")
    concerned: dict[str, list[str]] = {}
    for o in outlook.sites:
        concerned.setdefault(o.warning, []).append(o.site.name)
    for warning, names in concerned.items():
        if warning:
            print_line(f"[yellow]warning:[/] {escape(', '.join(names))}: {warning}")


def _bytes(amount: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= size:
            return f"{amount / size:.3g} {unit}"
    return f"{amount} B"
