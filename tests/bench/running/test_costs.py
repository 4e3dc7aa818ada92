"""Expected seconds, from results whose times are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from written_results import PROVENANCE, attack_record, defense_record, row, shard_record, suite_record, timing_record

from bench.running.costs import UNKNOWN, Costs, seconds_of
from bench.storing.records import SuiteRecord
from bench.storing.store import Store

SUITE = suite_record([attack_record("pgd"), attack_record("noise"), attack_record("transfer")], n=8)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two examples per shard: pgd takes 3 s per shard of the quick defense, 30 s and 34 s of the slow one."""
    store = Store(tmp_path, SUITE.name)
    for name, inference in (("quick", 1.0), ("slow", 10.0)):
        store.write_defense(defense_record(name, timing=timing_record(inference)))
    took(store, "quick", "pgd", [3.0, 3.0])
    took(store, "slow", "pgd", [30.0, 34.0])
    took(store, "slow", "transfer", [1.0], prepare_seconds=40.0)
    return store


def took(
    store: Store, defense: str, attack: str, seconds: list[float], suite: SuiteRecord = SUITE, **fields: Any
) -> None:
    for number, value in enumerate(seconds):
        ids = suite.ids[number * suite.shard_size :][: suite.shard_size]
        given = {"seconds": value, "rows": [row(example, 1) for example in ids], **fields}
        shard = shard_record(suite, defense_record(defense), attack, number, **given)
        store.write_shard(shard, None)


def test_a_cell_takes_per_example_what_it_took(store: Store) -> None:
    expected = Costs(store).shard("slow", "pgd", 3, None)
    assert (expected.seconds, expected.basis) == (pytest.approx(3 * 16), "the same cell")


def test_a_stale_shard_counts_and_a_failed_one_does_not(store: Store, tmp_path: Path) -> None:
    took(store, "quick", "noise", [8.0], suite_record(SUITE.attacks, n=8, seed=77))
    took(store, "slow", "noise", [0.5], status="failed", rows=[])
    costs = Costs(store)
    assert costs.shard("quick", "noise", 2, None).seconds == 8
    assert costs.shard("slow", "noise", 2, None).basis == "other defenses"


def test_another_defense_is_expected_to_take_as_many_passes(store: Store) -> None:
    """1.5 s per example at 1 s per 1000 passes, 16 s at 10 s: the median is 1.55 s per second of 1000 passes."""
    expected = Costs(store).shard("new", "pgd", 2, 4.0)
    assert (expected.seconds, expected.basis) == (pytest.approx(2 * 4 * 1.55), "other defenses")


def test_without_an_inference_time_another_defense_takes_what_the_others_took(store: Store) -> None:
    assert Costs(store).shard("new", "pgd", 2, None).seconds == pytest.approx(2 * (1.5 + 16) / 2)


def test_what_nobody_has_run_is_unknown(store: Store, tmp_path: Path) -> None:
    assert Costs(store).shard("quick", "noise", 2, 1.0) == UNKNOWN
    assert Costs(store).preparation("quick", "pgd") == UNKNOWN
    assert Costs(Store(tmp_path / "empty", "made")).shard("quick", "pgd", 2, 1.0) == UNKNOWN


def test_a_preparation_takes_what_it_took_here_or_elsewhere(store: Store) -> None:
    costs = Costs(store)
    assert (costs.preparation("slow", "transfer").seconds, costs.preparation("slow", "transfer").basis) == (
        40,
        "the same cell",
    )
    assert costs.preparation("new", "transfer").seconds == 40
    assert costs.preparation("new", "transfer").basis == "other defenses"


def test_judging_is_part_of_what_a_shard_takes(store: Store) -> None:
    """The clock counts whole seconds, so it counts only where it shows more than the attack alone."""
    busy = PROVENANCE.model_copy(update={"ended": "2026-01-01T00:01:10+00:00"})
    long, short = (
        shard_record(SUITE, defense_record("quick"), "clean", 0, seconds=seconds, provenance=busy)
        for seconds in (2.0, 90.0)
    )
    assert (seconds_of(long), seconds_of(short)) == (70.0, 90.0)


def test_a_file_that_cannot_be_read_says_nothing(store: Store) -> None:
    for number in (0, 1):
        store.shard_path("slow", "pgd", number).write_text("{")
    store.defense_folder("slow").joinpath("defense.json").write_text("{")
    assert Costs(store).shard("slow", "pgd", 2, None).basis == "other defenses"
    assert Costs(store).shard("new", "pgd", 2, 1.0).seconds == pytest.approx(3.0)
