"""At which level of isolation a number was made, and what it is worth there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from written_results import PROVENANCE, Results, attack_record, defense_record, probe_record, row, suite_record

from bench.contracts.isolation import Level
from bench.storing.found import FoundRecord, found_key, write_found
from bench.storing.records import AskedAgain
from bench.storing.store import to_json, write_atomically
from bench.storing.submitted import AcceptanceRecord, submission_folder
from bench.summary.flags import _is_luck
from bench.summary.numbers import DefenseSummary
from bench.summary.report import overview
from bench.summary.summarise import summarise

SUITE = suite_record([attack_record("pgd"), attack_record("fgsm")])
MINE, OURS = "mine.py:Mine", "none"


def write(tmp_path: Path, levels: list[Level], reference: str = MINE, **more: Any) -> Results:
    """A defense whose six shards were made at these levels, in turn."""
    probe = probe_record(randomized=more.pop("randomized", False))
    results = Results(tmp_path, SUITE)
    record = defense_record("d", probe, reference=reference)
    results.write_defense(record, {})
    shards = [(attack, number) for attack in ("clean", "pgd", "fgsm") for number in (0, 1)]
    for i, (attack, number) in enumerate(shards):
        rows = [row(SUITE.ids[2 * number + k], 1) for k in range(2)]
        asked = more.get("asked_again", {}).get(attack)
        fields = {"isolation": levels[i % len(levels)], "asked_again": asked if number == 0 else None}
        fields["told_attack"] = more.get("told_attack", {}).get(attack)
        results.write_shard(record, attack, number, rows=rows, **fields)
    return results


def read(results: Results) -> DefenseSummary:
    (found,) = summarise(results.root, "made").defenses
    return found


def flags(results: Results) -> list[str]:
    return [flag.id for flag in read(results).flags]


@pytest.mark.parametrize(
    ("levels", "reference", "shown", "raised"),
    [
        (["none"], OURS, "none", []),
        (["none"], MINE, "none", ["not-isolated"]),
        (["none"], "timm:resnet18", "none", []),  # built by code of this project and of a library
        (["process"], MINE, "process", ["weakly-isolated"]),
        (["process"], OURS, "process", []),
        (["landlock"], MINE, "landlock", []),
        (["bubblewrap"], MINE, "bubblewrap", []),
        (["bubblewrap", "landlock"], MINE, "landlock", []),
        (["bubblewrap", "landlock", "none"], MINE, "none", ["not-isolated"]),
    ],
)
def test_the_weakest_level_is_shown_and_says_whether_a_stranger_could_cheat(
    tmp_path: Path, levels: list[Level], reference: str, shown: str, raised: list[str]
) -> None:
    results = write(tmp_path, levels, reference)
    assert read(results).isolation == shown
    assert flags(results) == raised
    (line,) = overview(summarise(tmp_path, "made"))
    assert line["isolation"] == shown


def test_shards_are_counted_by_level_the_weakest_first(tmp_path: Path) -> None:
    found = read(write(tmp_path, ["bubblewrap", "landlock", "none"]))
    assert list(found.levels.items()) == [("none", 2), ("landlock", 2), ("bubblewrap", 2)]


def test_a_shard_without_rows_says_nothing_of_its_level(tmp_path: Path) -> None:
    results = write(tmp_path, ["landlock"])
    record = defense_record("d", reference=MINE)
    results.write_shard(record, "fgsm", 1, status="failed", error="out of luck", isolation="none")
    assert read(results).levels == {"landlock": 5}


def test_what_was_submitted_counts_at_the_level_at_which_it_was_judged(tmp_path: Path) -> None:
    results = write(tmp_path, ["landlock"])
    record, ids = defense_record("d", reference=MINE), [SUITE.ids[0]]
    key = found_key(SUITE, record, ids, 5, torch="2.15", device="cpu")
    fields = {"number": 0, "by": "A", "accepted": "2026-01-01T00:00:00+00:00", "batch_size": 4}
    made = FoundRecord(key=key, **fields, isolation="none", provenance=PROVENANCE, rows=[row(ids[0], 0)])
    write_found(results.store, made, torch.zeros(1, 1, 2, 2))
    assert read(results).levels == {"none": 1, "landlock": 6}
    assert "not-isolated" in flags(results)


def test_a_submission_is_no_better_than_the_level_at_which_it_was_accepted(tmp_path: Path) -> None:
    results = write(tmp_path, ["bubblewrap"])  # so says its submitter
    accepted = AcceptanceRecord(
        by="A", submitted="2026-01-01", accepted="2026-01-02", reference="code/mine.py:Mine", standard=1.0,
        worst_case=1.0, judged=12, again={}, isolation="none", provenance=PROVENANCE,
    )  # fmt: skip
    path = submission_folder(results.store, "d") / "acceptance.json"
    write_atomically(path, to_json(accepted).encode())
    assert flags(results) == ["not-isolated"]
    write_atomically(path, to_json(accepted.model_copy(update={"isolation": "landlock"})).encode())
    assert flags(results) == []


# -- asked again ------------------------------------------------------------------------------------------------


def again(differing: int, rows: int = 32) -> AskedAgain:
    return AskedAgain(rows=rows, differing=differing)


def test_rows_that_came_out_otherwise_in_another_process_are_flagged(tmp_path: Path) -> None:
    asked = {"clean": again(0), "pgd": again(3), "fgsm": again(0)}
    results = write(tmp_path / "a", ["landlock"], asked_again=asked)
    (flag,) = read(results).flags
    assert (flag.id, flag.kind) == ("inconsistent", "warning")
    assert "3 of 96 rows come out otherwise (pgd 3)" in flag.text
    assert read(results).asked_again == again(3, rows=96)
    same = write(tmp_path / "b", ["landlock"], asked_again=dict.fromkeys(asked, again(0)))
    assert flags(same) == [] and read(same).asked_again == again(0, rows=96)
    assert read(write(tmp_path / "c", ["none"], OURS)).asked_again is None


def test_attacks_that_were_told_something_else_are_flagged(tmp_path: Path) -> None:
    (flag,) = read(write(tmp_path / "a", ["none"], OURS, told_attack={"pgd": again(0), "fgsm": again(5)})).flags
    assert (flag.id, flag.kind) == ("inconsistent", "warning")
    assert "Of 128 rows that attacks asked about, 10 are answered otherwise" in flag.text
    assert flags(write(tmp_path / "b", ["none"], OURS, told_attack={"pgd": again(0)})) == []


def test_of_a_randomised_defense_a_shard_may_differ_by_chance(tmp_path: Path) -> None:
    # Of three shards one differs in 0.3 % of honest evaluations: that is below 1 %, and in 60 shards it is not.
    asked = {"clean": again(0), "pgd": again(1), "fgsm": again(0)}
    few = write(tmp_path, ["landlock"], asked_again=asked, randomized=True)
    assert "inconsistent" in flags(few)
    assert not _is_luck(1, 3) and _is_luck(1, 60) and not _is_luck(3, 60)
