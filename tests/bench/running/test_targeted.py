"""A targeted suite from its configuration to its numbers, and judged again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_bench import STEP, Bench
from stand_ins import plugin, run_bench

ATTACKS = {"pgd": {"attack": "pgd", "steps": 20, "eps": 1.0}, "step": STEP}


def targeted(folder: Path, towards: str | None, *defenses: str) -> Bench:
    bench = Bench(folder).configure({**ATTACKS, "near": {"attack": "pgd", "steps": 5}}, towards=towards)
    ended = bench.evaluate(*defenses)
    assert ended.code == 0, ended
    if towards:
        assert f"towards the {towards} class" in ended.out
    return bench


@pytest.fixture(scope="module")
def following(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return targeted(tmp_path_factory.mktemp("next") / "bench", "next", "Means", "Noisy")


def test_an_attack_reaches_the_class_it_is_given(following: Bench) -> None:
    for shard in following.cell("pgd"):
        assert shard.towards == [(row.label + 1) % 10 for row in shard.rows]
        for row, wanted in zip(shard.rows, shard.towards, strict=True):
            assert (row.report_robust == 0) == (row.prediction == wanted)
    rows = [row for shard in following.cell("pgd") for row in shard.rows]
    assert sum(row.report_robust for row in rows) == 0  # with eps 1 any image may be painted


def test_reaching_a_class_is_harder_than_leaving_one(following: Bench, tmp_path: Path) -> None:
    free = targeted(tmp_path / "free", None)
    left = {name: bench.summary.defenses[0].worst_case.value for name, bench in (("free", free), ("next", following))}
    assert left["free"] < left["next"] <= following.summary.defenses[0].standard.value


def test_an_attack_without_a_targeted_form_is_not_applicable(following: Bench) -> None:
    assert following.status("step") == "not-applicable"
    assert "has no targeted form" in following.cell("step")[0].error
    assert all(shard.towards is None for shard in following.cell("clean"))


def test_the_goal_is_in_the_key(following: Bench, tmp_path: Path) -> None:
    (first, *_) = following.cell("pgd")
    assert first.key.suite.towards == "next"
    again = Bench(following.folder)
    again.configure({**ATTACKS, "near": {"attack": "pgd", "steps": 5}}, towards="next")
    assert again.evaluate("Means").ran == []


@pytest.mark.parametrize("towards", ["least-likely", "random", "next"])
def test_verify_judges_towards_the_same_classes(towards: str, tmp_path: Path, following: Bench) -> None:
    bench = following if towards == "next" else targeted(tmp_path / "bench", towards, "Means", "Noisy")
    for path in bench.results.glob("tiny/*/defense.json"):
        record = json.loads(path.read_text())
        record["reference"] = plugin(record["reference"].rpartition(":")[2])
        path.write_text(json.dumps(record))
    ended = run_bench("verify", "--suite", "tiny", "--results", bench.results, "--device", "cpu")
    assert ended.code == 0, ended
    assert ended.out.count(" 0 of 12 rows differ") == 2 * 3


def test_other_classes_than_recorded_are_found(tmp_path: Path) -> None:
    bench = targeted(tmp_path / "bench", "random")
    path = bench.store.shard_path("stand_ins.Means", "pgd", 0)
    record = json.loads(path.read_text())
    record["towards"][0] = (record["towards"][0] + 1) % 10
    path.write_text(json.dumps(record))
    found = bench.results / "tiny" / "stand_ins.Means" / "defense.json"
    stored = json.loads(found.read_text())
    stored["reference"] = plugin("Means")
    found.write_text(json.dumps(stored))
    ended = run_bench("verify", "--suite", "tiny", "--results", bench.results, "--device", "cpu")
    assert ended.code == 1 and "other classes to reach than recorded" in ended.out
