"""Chance, and the exact binomial test against it."""

from __future__ import annotations

from math import comb

import pytest

from bench.data.chance import ALPHA, Chance


@pytest.mark.parametrize(("n", "share"), [(20, 0.1), (256, 0.1), (64, 0.5)])
def test_the_test_is_the_exact_tail_of_the_binomial(n: int, share: float) -> None:
    for hits in range(n + 1):
        tail = sum(comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(hits, n + 1))
        assert Chance(share, n).beaten_by(hits) == (tail <= ALPHA)


def test_the_most_frequent_class_counts_where_it_is_more_than_its_share() -> None:
    assert Chance.of([0, 1, 2, 3], 4).share == 0.25
    assert Chance.of([0, 0, 0, 3], 4).share == 0.75
    assert not Chance.of([0] * 90 + [1] * 10, 10).beaten_by(90)


def test_where_nothing_can_be_proved() -> None:
    assert not Chance.of([0] * 100, 10).can_be_beaten
    assert not Chance.of([0, 1], 4).can_be_beaten  # half of them are of one class, and both right is luck in a quarter
    assert Chance.of(list(range(10)), 10).can_be_beaten
