"""Statistics against independent references, and the luck that they must not count as strength."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from bench.summary.metrics import wilson, worst_case, worst_choice


@pytest.mark.parametrize("n", [1, 2, 10, 64, 450, 10_000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_wilson_intervals_are_scipys(n: int, share: float) -> None:
    k = round(share * n)
    expected = binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(k / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_interval_of_nothing_is_everything() -> None:
    assert wilson(0.0, 0) == (0.0, 1.0)


def test_a_mean_of_probabilities_has_an_interval_too() -> None:
    low, high = wilson(0.123, 50)
    assert 0 < low < 0.123 < high < 1


def _naive(select: np.ndarray, report: np.ndarray, order: list[int]) -> tuple[list[float], list[int]]:
    values, chosen = [], []
    for i in range(select.shape[1]):
        best = None
        for attack in order:
            if not np.isnan(select[attack, i]) and (best is None or select[attack, i] < select[best, i]):
                best = attack
        assert best is not None
        chosen.append(best)
        values.append(float(report[best, i]))
    return values, chosen


def test_the_worst_case_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    select = rng.integers(0, 4, (5, 200)) / 4  # many ties
    report = rng.random((5, 200))
    missing = rng.random((5, 200)) < 0.3
    missing[4] = False  # the clean input is always there
    select[missing], report[missing] = np.nan, np.nan
    order = [2, 0, 3, 1, 4]
    values, chosen = worst_case(select, report, order)
    expected_values, expected_chosen = _naive(select, report, order)
    assert values.tolist() == expected_values
    assert chosen.tolist() == expected_chosen


def test_among_equals_the_first_in_order_is_named() -> None:
    select = np.array([[0.5, 1.0], [0.5, 0.0], [0.5, 0.0]])
    assert worst_choice(select, [2, 1, 0]).tolist() == [2, 2]
    assert worst_choice(select, [0, 1, 2]).tolist() == [0, 1]


def test_for_a_deterministic_defense_it_is_the_plain_minimum() -> None:
    values = np.random.default_rng(1).integers(0, 2, (6, 100)).astype(float)
    assert np.array_equal(worst_case(values, values, list(range(6)))[0], values.min(0))


def test_luck_is_not_counted_as_strength() -> None:
    """Ten attacks that all do nothing to a defense which is right with probability 0.6.

    Choosing on one stream and scoring on another leaves 0.6; the minimum over the scores does not.
    """
    rng = np.random.default_rng(2)
    p, attacks, examples, draws = 0.6, 10, 4000, 100
    select = rng.binomial(20, p, (attacks, examples)) / 20
    report = rng.binomial(draws, p, (attacks, examples)) / draws
    deviation = (p * (1 - p) / draws / examples) ** 0.5
    honest = worst_case(select, report, list(range(attacks)))[0].mean()
    lucky = report.min(0).mean()
    assert abs(honest - p) < 4 * deviation
    assert lucky < p - 0.05
    assert select.min(0).mean() < p - 0.1  # nor may the choice be scored on its own draws


def test_a_real_difference_is_still_found() -> None:
    rng = np.random.default_rng(3)
    strengths = np.array([0.9, 0.3])[:, None]
    select, report = (rng.binomial(n, strengths, (2, 2000)) / n for n in (20, 100))
    assert worst_case(select, report, [0, 1])[0].mean() == pytest.approx(0.3, abs=0.005)
