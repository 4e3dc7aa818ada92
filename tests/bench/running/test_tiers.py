"""What an attack is shown of a detector: nothing, a copy's, or all; and what that does to keys and cells."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_bench import STEP, Bench, points
from stand_ins import plugin, run_bench
from written_results import attack_record, defense_record, probe_record, suite_record

from bench.storing.keys import AWARENESS, differences

ATTACKS = {
    tier: {"attack": plugin("curious"), "tier": tier} for tier in ("oblivious", "transfer", "adaptive")
} | {"step": STEP, "transfer-step": {**STEP, "tier": "transfer"}}  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("tiers")
    bench = Bench(folder / "bench").configure(ATTACKS)
    config = ("--suite", "tiny", "--config", str(bench.folder / "bench.yaml"))
    weights = ("--checkpoints", str(folder / "weights"))
    trained = run_bench("train", *config, "--defense", plugin("Trained"), *weights)
    assert trained.code == 0, trained
    ended = bench.evaluate("Trained", more=weights)
    assert ended.code == 0, ended
    return bench


def notes(bench: Bench, attack: str) -> set[str]:
    found = {note for shard in bench.cell(attack, "stand_ins.Trained") for note in shard.notes}
    return {note for note in found if note.startswith("rejects")}


def test_an_oblivious_attack_is_shown_no_detector_and_an_adaptive_one_is(evaluated: Bench) -> None:
    (oblivious,), (adaptive,) = notes(evaluated, "oblivious"), notes(evaluated, "adaptive")
    assert oblivious.startswith("rejects False") and adaptive.startswith("rejects True")
    assert oblivious.partition("weights")[2] == adaptive.partition("weights")[2]


def test_a_transfer_attack_is_shown_another_network_with_its_detector(evaluated: Bench) -> None:
    (copy,), (own,) = notes(evaluated, "transfer"), notes(evaluated, "adaptive")
    assert copy.startswith("rejects True") and copy != own
    found = {tier: points(evaluated.store, evaluated.cell(tier, "stand_ins.Trained")[0]) for tier in ATTACKS}
    assert not found["transfer"].equal(found["adaptive"])
    # One step of one network: what it is told changes nothing, but where the judge moves it to the grey levels.
    moved = torch.tensor([row.rounded for row in evaluated.cell("adaptive", "stand_ins.Trained")[0].rows])
    assert found["oblivious"][~moved].equal(found["adaptive"][~moved])


def test_points_that_no_detector_was_in_mind_for_are_not_moved_to_the_grey_levels(evaluated: Bench) -> None:
    """Most of them are caught, and survived either way: on the levels they may be right instead."""
    moved = {tier: [row.rounded for row in evaluated.cell(tier, "stand_ins.Trained")[0].rows] for tier in ATTACKS}
    assert {tier for tier in ATTACKS if any(moved[tier])} == set(ATTACKS) - {"oblivious"}
    for tier in ATTACKS:
        (key,) = {shard.key.judging.as_returned for shard in evaluated.cell(tier, "stand_ins.Trained")}
        assert key is (tier == "oblivious")


def test_one_copy_serves_all_attacks_of_the_tier(evaluated: Bench) -> None:
    assert len(list((evaluated.results / "tiny" / ".prepared").glob("*"))) == 1
    for tier in ("transfer", "transfer-step"):
        assert all(shard.prepare_seconds > 0 for shard in evaluated.cell(tier, "stand_ins.Trained"))


def test_the_defense_is_not_asked_by_an_attack_on_a_copy(evaluated: Bench) -> None:
    passes = {tier: [row.forward for row in evaluated.cell(tier, "stand_ins.Trained")[0].rows] for tier in ATTACKS}
    assert set(passes["transfer"]) == {0} and set(passes["oblivious"]) == set(passes["adaptive"]) == {1}


def test_the_judge_rejects_in_every_tier(evaluated: Bench) -> None:
    for tier in ("oblivious", "transfer", "adaptive"):
        rows = [row for shard in evaluated.cell(tier, "stand_ins.Trained") for row in shard.rows]
        assert all(row.detector_score is not None for row in rows)
        assert any(row.report_rejected for row in rows)


def test_nothing_is_left_to_be_run_a_second_time(evaluated: Bench) -> None:
    weights = ("--checkpoints", str(evaluated.folder.parent / "weights"))
    assert evaluated.evaluate("Trained", more=weights).ran == []


def test_without_a_detector_the_other_tiers_do_not_apply(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "bench").configure(ATTACKS)
    ended = bench.evaluate("Means")
    assert ended.code == 0, ended
    assert {job.partition("/")[0] for job in ended.ran} == {"clean", "adaptive", "step"}
    assert [bench.status(tier) for tier in ATTACKS] == [
        "not-applicable", "not-applicable", "complete", "complete", "not-applicable",
    ]  # fmt: skip
    (defense,) = bench.summary.defenses
    assert defense.complete and not bench.cell("oblivious")
    status = run_bench(
        "status", "--suite", "tiny", "--config", bench.folder / "bench.yaml", "--results", bench.results
    )
    assert status.code == 0 and "1 complete and current" in status.out


def test_without_a_recipe_there_is_no_copy(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "bench").configure({"transfer": ATTACKS["transfer"]})
    ended = bench.evaluate("Guarded")
    assert ended.code == 0, ended
    assert bench.status("transfer", "stand_ins.Guarded") == "not-applicable"
    assert "has no training recipe" in bench.cell("transfer", "stand_ins.Guarded")[0].error


def test_a_copy_needs_an_attack_without_a_preparation(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "bench").configure({"of-data": {"attack": plugin("of_data"), "tier": "transfer"}})
    ended = bench.evaluate("Guarded")
    assert ended.code == 2 and "attacks.of-data.tier: transfer needs an attack without a preparation" in ended.err


def test_an_unknown_tier_is_refused(tmp_path: Path) -> None:
    ended = Bench(tmp_path / "bench").configure({"step": {**STEP, "tier": "blind"}}).evaluate()
    assert ended.code == 2 and "attacks.step.tier" in ended.err and "'oblivious', 'transfer' or 'adaptive'" in ended.err


def test_the_tier_is_in_the_key_where_there_is_a_detector() -> None:
    suite = suite_record([attack_record("pgd")])
    plain, guarded = (
        defense_record("d", probe_record(has_detector=detector, threshold=0.5)) for detector in (False, True)
    )

    def key(defense, tier):
        return suite.cell_key(defense, attack_record("pgd", tier=tier), torch="2.15", device="cpu")(0, 2)

    assert "tier" not in {name for name, value in key(plain, "adaptive").attack if value is not None}
    assert key(guarded, "adaptive").attack.awareness == AWARENESS
    assert differences(key(plain, "adaptive"), key(guarded, "adaptive")) == [
        "what the attack is shown of the detector: was none, is adaptive",
        f"the version of how attacks deal with a detector: was none, is {AWARENESS}",
    ]
    assert key(guarded, "oblivious").attack.awareness is None


@pytest.mark.parametrize(
    ("attack", "as_returned"),
    [
        ({}, False),
        ({"tier": "oblivious"}, True),
        ({"tier": "transfer"}, False),
        ({"seeks": "rejection"}, True),
    ],
)
def test_the_key_says_where_points_are_judged_as_they_are(attack: dict[str, str], as_returned: bool) -> None:
    entry = attack_record("pgd", **attack)
    for detector, protocol, expected in ((True, 2, as_returned), (False, 2, False), (True, 1, False)):
        suite = suite_record([entry], protocol=protocol)
        defense = defense_record("d", probe_record(has_detector=detector, threshold=0.5))
        found = suite.cell_key(defense, entry, torch="2.15", device="cpu")(0, 2)
        assert found.judging.as_returned is expected
