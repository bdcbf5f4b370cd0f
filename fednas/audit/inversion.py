"""Gradient inversion: a record read from one linear layer's update, without privacy and with it.

The gradient of a record's loss by row i of the first layer's weights is b_i x, and by the row's bias b_i: the
quotient is the record x, exactly. All it takes is the update of a site that has one record in a step.

Source: Geiping et al. (2020), arXiv 2003.14053, proposition 3.1, for exact recovery from a linear layer; Zhu
et al. (2019), arXiv 1906.08935, for records found in gradients by optimisation.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fednas.audit.chosen import flat_weights, part_of
from fednas.audit.rehearsal import Rehearsal
from fednas.audit.subject import Subject
from fednas.config import (
    DataSchema,
    PrivacySection,
    ScheduleSection,
    SearchSection,
    StudyConfig,
    TrainingSection,
)
from fednas.privacy.budget import PrivacyBudget
from fednas.schedule import agenda, plan_for
from fednas.space import Architecture
from fednas.wire import TaskKind

SIDE = 12
"""Of the record, a glyph: SIDE * SIDE features."""

# tanh(0) = 0 with a slope of 1: a layer may begin at 0, where float32 keeps all digits of an update.
_PATH = Architecture.of("mlp", {"activation": "tanh", "depth": 1, "layers.0.width": 16})
_LEARNING_RATE = 1e-12  # the weights stay as they are: every step has the same gradient
_WEIGHT, _BIAS = "layers.0.linear.weight", "layers.0.linear.bias"
_SHADES = " ░▒▓█"
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Inversion:
    """One record and what an attacker made of what left about it.

    Args:
        record: shape (12, 12), made up, within 0 to 1.
        exposed: as read from the first update, of one step, of a plan without privacy.
        protected: the best of the attacker's readings of all updates of a plan at `epsilon`; whoever does not
            have the record could not even tell which is the best.
        error: of `exposed`, relative to the record.
        exposed_correlation: of `exposed` with the record, over pixels.
        protected_correlation: of `protected` with the record.
        epsilon: of the protected plan, at `delta`.
        delta: of the protected plan.
        readings: how many the attacker had to choose from.
    """

    record: Floats = field(repr=False)
    exposed: Floats = field(repr=False)
    protected: Floats = field(repr=False)
    error: float
    exposed_correlation: float
    protected_correlation: float
    epsilon: float
    delta: float
    readings: int


def invert(subject: Subject, folder: Path) -> Inversion:
    """Read a site's only record from its updates, once without privacy and once at the subject's epsilon.

    Args:
        subject: its budget, clip norm and seed are used.
        folder: for the files of two rehearsals.

    Raises:
        FednasError: a rehearsal could not be held.
    """
    record, budget = glyph(subject.seed), subject.budget
    bare = _updates(subject, PrivacyBudget.non_private(delta=budget.delta), record, folder / "exposed")
    exposed = _read(*bare[0])
    noised = _updates(subject, budget, record, folder / "protected")
    # The first layer's outputs are 0, so both classes are as likely, and the record is of the first.
    slopes = np.array([-0.5, 0.5]) @ _columns(subject)
    readings = _readings(
        np.sum([w for w, _ in noised], axis=0), np.sum([b for _, b in noised], axis=0), slopes
    )
    best = max(readings, key=lambda reading: abs(correlation(reading, record)))
    return Inversion(
        record=record,
        exposed=exposed,
        protected=best,
        error=float(np.linalg.norm(exposed - record) / np.linalg.norm(record)),
        exposed_correlation=correlation(exposed, record),
        protected_correlation=correlation(best, record),
        epsilon=budget.epsilon,
        delta=budget.delta,
        readings=len(readings),
    )


def glyph(number: int) -> Floats:
    """A drawing of SIDE by SIDE pixels: one of six, moved by up to a pixel, its shade from 0.4 to 1.

    Args:
        number: which.
    """
    place = np.random.default_rng([*b"glyph", number])
    down, right = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2 + place.integers(-1, 2, size=(2, 1, 1))
    radius, far = np.hypot(down, right), np.maximum(abs(down), abs(right))
    drawings = (
        abs(radius - 3.5) < 0.8,  # a ring
        (far < 4.6) & ((abs(down) < 1) | (abs(right) < 1)),  # a plus
        (far < 4.6) & (abs(abs(down) - abs(right)) < 0.9),  # a cross
        abs(far - 4) < 0.8,  # a frame
        (abs(down) < 4.6) & (abs(right) < (down + 5) / 2) & (abs(right) > (down + 1) / 2),  # a roof
        (far < 4.6) & (right < 4.6) & ((right < -3) | (down > 3)),  # the letter L
    )
    shade = 1.0 - 0.6 * np.mgrid[:SIDE, :SIDE][1] / (SIDE - 1)
    return np.where(drawings[number % len(drawings)], shade, 0.0)


def correlation(left: Floats, right: Floats) -> float:
    """Pearson's, over all pixels; 0 if one of them has a single shade."""
    a, b = left.ravel() - left.mean(), right.ravel() - right.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 0.0 else 0.0


def render(inversion: Inversion) -> str:
    """The record and both reconstructions side by side, in block characters, for a terminal."""
    pictures = (inversion.record, inversion.exposed, inversion.protected)
    titles = ("the record", "without privacy", f"at epsilon {inversion.epsilon:g}")
    figures = (
        "",
        f"correlation {inversion.exposed_correlation:.6f}",
        f"correlation {inversion.protected_correlation:+.2f}",
    )
    width = 2 * SIDE
    rows = [[title.ljust(width) for title in titles], [" " * width] * 3]
    rows += [[_shaded(picture[line]) for picture in map(_stretched, pictures)] for line in range(SIDE)]
    rows += [[" " * width] * 3, [figure.ljust(width) for figure in figures]]
    return "\n".join("   ".join(row).rstrip() for row in rows)


def _stretched(picture: Floats) -> Floats:
    """From its darkest pixel to its brightest, as a viewer shows it."""
    low, high = float(picture.min()), float(picture.max())
    return (picture - low) / (high - low) if high > low else np.zeros_like(picture)


def _shaded(pixels: Floats) -> str:
    places = np.minimum((pixels * len(_SHADES)).astype(int), len(_SHADES) - 1)
    return "".join(2 * _SHADES[place] for place in places)


def _read(weights: Floats, biases: Floats) -> Floats:
    """The record by the row whose bias says most: shape (SIDE, SIDE)."""
    row = int(np.argmax(abs(biases)))
    return np.asarray(weights[row] / biases[row]).reshape(SIDE, SIDE)


def _readings(weights: Floats, biases: Floats, slopes: Floats) -> list[Floats]:
    """By each row; and by all of them together, each as loud as the server knows it to be without noise."""
    rows = [*(weights / biases[:, None]), slopes @ weights / (slopes @ slopes)]
    return [row.reshape(SIDE, SIDE) for row in rows]


def _updates(
    subject: Subject, budget: PrivacyBudget, record: Floats, folder: Path
) -> list[tuple[Floats, Floats]]:
    """What leaves a site with one record: the first layer's share of each step, weights and biases."""
    study = _study(subject)
    weights = flat_weights(study, _PATH, {"outputs.1.weight": _columns(subject)})
    found = []
    plan = plan_for(study, 1, budget)
    with Rehearsal(folder, study=study, plan=plan, declared_size=1) as site:
        site.fill({"weights": (record[None].astype(np.float32), np.zeros(1, np.int64))})
        for step in agenda(study):
            if step.kind in ("search", "final"):
                kind: TaskKind = "train" if step.kind == "search" else "final"
                update = site.ask(site.task(kind, step.round, [_PATH], [weights])).arrays["update"]
                # The final reads all streams, and so is divided by all of the declared size.
                share = study.privacy.weights if kind == "train" else 1.0
                parts = (part_of(study, _PATH, update, name) for name in (_WEIGHT, _BIAS))
                layer, bias = (-share / _LEARNING_RATE * part for part in parts)
                found.append((layer, bias))
    return found


def _columns(subject: Subject) -> Floats:
    """The second layer, as any server might begin: shape (2, 16)."""
    return np.random.default_rng([*b"server", subject.seed]).normal(size=(2, 16))


def _study(subject: Subject) -> StudyConfig:
    """A study of glyphs of two classes; every record takes part in every step."""
    return StudyConfig(
        name="inversion",
        data=DataSchema(input_shape=(SIDE, SIDE), class_names=("glyph", "other")),
        search=SearchSection(space="mlp", strategy="random"),
        privacy=PrivacySection(
            epsilon=subject.budget.epsilon,
            delta=subject.budget.delta,
            weights=0.9,
            architecture=0.0,
            fitness=0.1,
        ),
        schedule=ScheduleSection(
            search_rounds=4, final_rounds=1, generations=1, candidates=1, spare_rounds=0
        ),
        training=TrainingSection(
            sampling_probability=1.0,
            steps_per_round=1,
            clip_norm=subject.study.training.clip_norm,
            learning_rate=_LEARNING_RATE,
            micro_batch=subject.study.training.micro_batch,
        ),
    )
