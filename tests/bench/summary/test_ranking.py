"""Rank statistics of detector scores, against scikit-learn and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from bench.summary.ranking import Scores, threshold_at

GENERATOR = np.random.default_rng(3)
N, P = 200, 90


def scores(*, shift: float, digits: int, weighted: bool = False) -> Scores:
    """Scores rounded so that there are ties; positives made of some of the images, of some more than once."""
    return Scores(
        clean=GENERATOR.normal(size=N).round(digits),
        positive=GENERATOR.normal(shift, size=P).round(digits),
        image=GENERATOR.integers(0, N, P),
        weight=GENERATOR.uniform(0.1, 1, P) if weighted else np.ones(P),
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("shift", "digits"), [(0.0, 8), (1.0, 8), (1.0, 0), (-0.5, 1)])
def test_area_and_curve_are_those_of_scikit_learn(shift: float, digits: int, weighted: bool) -> None:
    found = scores(shift=shift, digits=digits, weighted=weighted)
    labels = np.repeat([0, 1], [N, P])
    values = np.concatenate([found.clean, found.positive])
    weights = np.concatenate([np.ones(N), found.weight])
    assert found.area() == pytest.approx(roc_auc_score(labels, values, sample_weight=weights))
    false, true, _ = roc_curve(labels, values, sample_weight=weights, drop_intermediate=False)
    assert np.allclose(found.curve(), np.stack([false, true], 1))
    for rate in (0.01, 0.05):  # the best point of the curve that keeps to the rate
        assert found.caught_at(rate) == pytest.approx(true[false <= rate].max())


def test_the_interval_knows_that_one_image_appears_many_times() -> None:
    once = scores(shift=1.0, digits=8)
    copies = Scores(once.clean, once.positive.repeat(20), once.image.repeat(20), once.weight.repeat(20))
    assert copies.area() == pytest.approx(once.area())
    assert copies.area_interval(seed=1) == pytest.approx(once.area_interval(seed=1))  # nothing new was seen


def test_the_interval_is_as_wide_as_the_closed_form_says() -> None:
    """Hanley & McNeil 1982: the standard error of the area with independent scores, one positive for each image."""
    n = 400
    found = Scores(GENERATOR.normal(size=n), GENERATOR.normal(1.0, size=n), np.arange(n), np.ones(n))
    area, ends = found.area(), found.area_interval(seed=0)
    assert area is not None and ends is not None
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    error = np.sqrt((area * (1 - area) + (n - 1) * (q1 + q2 - 2 * area**2)) / n**2)
    assert ends[0] < area < ends[1]
    assert ends[1] - ends[0] == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_the_interval_depends_on_the_seed_alone() -> None:
    found = scores(shift=1.0, digits=8)
    assert found.area_interval(seed=5) == found.area_interval(seed=5) != found.area_interval(seed=6)


def test_scores_that_are_apart_and_scores_that_are_equal() -> None:
    apart = Scores(np.arange(10.0), np.array([11.0, 12.0]), np.array([0, 1]), np.ones(2))
    assert (apart.area(), apart.area_interval(seed=0), apart.caught_at(0.0)) == (1.0, (1.0, 1.0), 1.0)
    equal = Scores(np.zeros(10), np.zeros(2), np.array([0, 1]), np.ones(2))
    assert (equal.area(), equal.caught_at(0.05)) == (0.5, 0.0)


def test_without_positives_there_is_no_number() -> None:
    none = Scores(np.arange(3.0), np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0))
    assert (none.area(), none.area_interval(seed=0), none.caught_at(0.05), none.curve()) == (None, None, None, [])


@pytest.mark.parametrize(("n", "rate", "above"), [(340, 0.05, 17), (100, 0.01, 1), (50, 0.01, 0), (3, 1.0, 2)])
def test_at_most_the_rate_of_clean_scores_lies_above_the_threshold(n: int, rate: float, above: int) -> None:
    clean = GENERATOR.permutation(n).astype(float)
    assert (clean > threshold_at(clean, rate)).sum() == above


def test_a_score_of_minus_infinity_is_the_smallest() -> None:
    found = Scores(np.array([-np.inf, 0.0, 1.0]), np.array([-np.inf, 2.0]), np.array([1, 2]), np.ones(2))
    assert found.area() == pytest.approx((1 / 6 + 1) / 2)
