"""A record is read from one update to the last digit without privacy, and not at all at a small epsilon."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from fednas.audit.inversion import SIDE, Inversion, correlation, glyph, invert, render
from fednas.audit.subject import Subject, reference

GLYPHS = range(12)


def at(epsilon: float, number: int) -> Subject:
    subject = reference(seed=number)
    privacy = subject.study.privacy.model_copy(update={"epsilon": epsilon})
    return replace(subject, study=subject.study.model_copy(update={"privacy": privacy}))


def inversions(epsilon: float, folder: Path) -> list[Inversion]:
    return [invert(at(epsilon, number), folder / str(number)) for number in GLYPHS]


def test_one_update_holds_the_record_and_with_noise_no_reading_of_many_does(
    tmp_path: Path,
) -> None:
    found = inversions(3.0, tmp_path)
    assert max(inversion.error for inversion in found) < 1e-4
    assert min(inversion.exposed_correlation for inversion in found) > 0.9999
    # Seventeen readings, each with a correlation of about 0.08 by chance: the best one's is about 0.18.
    assert np.mean([abs(inversion.protected_correlation) for inversion in found]) < 0.3
    assert {inversion.epsilon for inversion in found} == {3.0}
    assert {inversion.readings for inversion in found} == {17}


def test_the_same_attacker_does_read_the_record_where_the_noise_is_too_small(tmp_path: Path) -> None:
    found = inversions(300.0, tmp_path)
    assert min(inversion.protected_correlation for inversion in found) > 0.7


def test_glyphs_differ_and_none_touches_only_a_few_pixels() -> None:
    drawings = [glyph(number) for number in GLYPHS]
    assert len({drawing.tobytes() for drawing in drawings}) >= 6
    for drawing in drawings:
        assert drawing.shape == (SIDE, SIDE)
        assert drawing.min() == 0.0
        assert drawing.max() <= 1.0
        assert 15 <= np.count_nonzero(drawing) <= SIDE * SIDE / 2


def test_a_correlation_looks_at_shape_alone() -> None:
    drawing = glyph(0)
    assert np.isclose(correlation(3.0 * drawing + 7.0, drawing), 1.0)
    assert np.isclose(correlation(-drawing, drawing), -1.0)
    assert correlation(np.ones_like(drawing), drawing) == 0.0


def test_the_picture_is_three_squares_side_by_side_that_fit_a_terminal(tmp_path: Path) -> None:
    inversion = invert(at(3.0, 0), tmp_path)
    lines = render(inversion).splitlines()
    assert len(lines) == SIDE + 4
    assert max(map(len, lines)) <= 80
    assert "at epsilon 3" in lines[0]
    assert "correlation 1.000000" in lines[-1]
    left, middle = slice(0, 2 * SIDE), slice(2 * SIDE + 3, 4 * SIDE + 3)
    for line in lines[2:-2]:
        assert line[left].rstrip() == line[middle].rstrip(), "what was read looks like the record"
    drawn = [[pixel > 0.0 for pixel in row] for row in inversion.record]
    shown = [[line[left].ljust(2 * SIDE)[2 * place] != " " for place in range(SIDE)] for line in lines[2:-2]]
    assert shown == drawn
