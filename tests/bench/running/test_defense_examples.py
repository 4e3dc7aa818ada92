"""A defense that a suite runs on its first examples alone: what is run, what is complete, what each number says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_bench import STEP, Bench, cells, points
from stand_ins import Ended, run_bench, write_config
from written_results import PROVENANCE, Results, attack_record, defense_record, probe_record, row, suite_record

from bench.storing.found import FoundRecord, found_key
from bench.storing.records import SuiteRecord
from bench.storing.store import Store
from bench.submissions.suite_key import suite_key
from bench.summary.numbers import DefenseSummary
from bench.summary.results import DefenseResults
from bench.summary.summarise import summarise
from leaderboard import build

ATTACKS = {"step": STEP, "few": {**STEP, "examples": 2}, "more": {**STEP, "examples": 9}}
VARIANT = ("--set", "classifier=madry")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Twelve digits in shards of four, six of them for ``mahalanobis`` and its variants."""
    return Bench(tmp_path / "bench").configure(ATTACKS, examples_of={"mahalanobis": 6})


def spans(bench: Bench, attack: str, defense: str) -> list[tuple[int, int]]:
    return sorted((shard.start, shard.stop) for shard in bench.cell(attack, defense))


def where(bench: Bench) -> tuple[object, ...]:
    return "--results", bench.results, "--suite", "tiny", "--device", "cpu"


def configured(bench: Bench) -> tuple[object, ...]:
    return *where(bench), "--config", bench.folder / "bench.yaml"


def of(bench: Bench, name: str) -> DefenseSummary:
    return next(d for d in bench.summary.defenses if d.record.name == name)


def test_all_cells_of_the_defense_and_its_variants_are_run_on_the_first_alone(bench: Bench) -> None:
    assert bench.evaluate("mahalanobis", "none").code == 0
    assert bench.evaluate("mahalanobis", more=VARIANT).code == 0
    for name in ("mahalanobis", "mahalanobis(classifier=madry)"):
        assert spans(bench, "clean", name) == spans(bench, "step", name) == [(0, 4), (4, 6)]
        assert spans(bench, "few", name) == [(0, 2)]  # of two numbers the smaller one
        assert spans(bench, "more", name) == [(0, 4), (4, 6)]
        found = of(bench, name)
        assert found.complete and found.rank is not None
        assert (found.standard.n, found.worst_case.n) == (6, 6)
        assert {a.record.name: a.robust.n for a in found.attacks if a.robust} == {"step": 6, "few": 2, "more": 6}
    assert spans(bench, "more", "none") == [(0, 4), (4, 8), (8, 9)]
    assert of(bench, "none").worst_case.n == 12


def test_plan_status_and_verify_know_of_it(bench: Bench) -> None:
    planned = bench.evaluate("mahalanobis", "none", more=("--dry-run",)).out
    assert "mahalanobis × step   2 of 2 shards to run (its first 6 examples)" in planned
    assert "mahalanobis × clean  2 of 2 shards to run (its first 6 examples)" in planned
    whole = next(line for line in planned.splitlines() if line.startswith("none × step "))
    assert whole.endswith("3 of 3 shards to run")
    outline = json.loads(bench.evaluate("mahalanobis", more=("--dry-run", "--json")).out)
    assert {cell["attack"]: (cell["examples"], cell["shards"]) for cell in outline["cells"]} == {
        "clean": (6, 2), "step": (6, 2), "few": (2, 1), "more": (6, 2)
    }  # fmt: skip
    assert bench.evaluate("mahalanobis").code == 0
    assert bench.evaluate("mahalanobis").ran == []
    stored = run_bench("status", *configured(bench)).out
    assert "1 complete and current" in stored and "would run nothing" in stored
    verified = run_bench("verify", *where(bench)).out
    assert "mahalanobis × clean: 0 of 6 rows differ" in verified and "mahalanobis × few: 0 of 2 rows differ" in verified


def test_what_is_stored_beyond_stays_current_and_only_the_first_count(bench: Bench) -> None:
    bench.configure(ATTACKS)
    bench.evaluate("mahalanobis")
    bench.configure(ATTACKS, examples_of={"mahalanobis": 6})
    assert bench.evaluate("mahalanobis").ran == []
    stored = run_bench("status", *configured(bench), "--why").out
    assert "1 complete and current" in stored and " 0 stale" in stored and "would run nothing" in stored
    assert of(bench, "mahalanobis").worst_case.n == 6
    assert spans(bench, "step", "mahalanobis") == [(0, 4), (4, 8), (8, 12)]
    assert run_bench("verify", *where(bench)).code == 0
    assert run_bench("compact", "--results", bench.results).code == 0
    assert run_bench("verify", *where(bench)).code == 0
    bench.configure(ATTACKS, examples_of={"mahalanobis": 9})
    assert bench.evaluate("mahalanobis").ran == []
    assert of(bench, "mahalanobis").worst_case.n == 9


def test_more_examples_run_what_is_missing(bench: Bench) -> None:
    bench.evaluate("mahalanobis")
    before = {path: path.read_bytes() for path in bench.results.glob("tiny/mahalanobis/*/[0-9]*")}
    bench.configure(ATTACKS)
    again = bench.evaluate("mahalanobis")
    assert cells(again) == ["clean", "more", "step"]
    assert {path: path.read_bytes() for path in before} == before
    assert of(bench, "mahalanobis").worst_case.n == 12


def test_keys_do_not_depend_on_it(bench: Bench) -> None:
    bench.evaluate("mahalanobis")
    with_number = {(s.attack, s.start): s.key for name in ("clean", "step") for s in bench.cell(name, "mahalanobis")}
    bench.configure(ATTACKS).evaluate("mahalanobis")
    whole = {(s.attack, s.start): s.key for name in ("clean", "step") for s in bench.cell(name, "mahalanobis")}
    assert len(whole) > len(with_number) == 4
    assert {place: whole[place] for place in with_number} == with_number


def test_compact_keeps_the_worst_of_the_first(bench: Bench) -> None:
    bench.configure({"step": STEP}).evaluate("mahalanobis")
    bench.configure({"step": STEP}, examples_of={"mahalanobis": 6}).evaluate("mahalanobis")
    ended = run_bench("compact", "--results", bench.results)
    assert ended.code == 0 and "not complete" not in ended.out, ended
    kept = [shard for number in range(3) if (shard := bench.store.shard("mahalanobis", "step", number))]
    positions = sorted(shard.start + i for shard in kept for i in shard.stored)
    assert positions and max(positions) < 6
    assert sum(len(points(bench.store, shard)) for shard in kept if shard.stored) == len(positions)


def stored_suite(bench: Bench, name: str) -> SuiteRecord:
    found = Store(bench.results, name).suite()
    assert found is not None
    return found


def test_fewer_examples_of_a_run_win(bench: Bench) -> None:
    assert bench.evaluate("mahalanobis", more=("--examples", "3")).code == 0
    suite = stored_suite(bench, "tiny@3-examples")
    assert (len(suite.ids), suite.examples_of) == (3, {})
    assert bench.evaluate("mahalanobis", more=("--examples", "8")).code == 0
    suite = stored_suite(bench, "tiny@8-examples")
    assert (len(suite.ids), suite.examples_of) == (8, {"mahalanobis": 6})
    assert summarise(bench.results, "tiny@8-examples").defenses[0].worst_case.n == 6


def test_stored_suites_without_the_field_are_read(bench: Bench) -> None:
    bench.evaluate("mahalanobis")
    path = bench.results / "tiny" / "suite.json"
    raw = json.loads(path.read_text())
    assert raw.pop("examples_of") == {"mahalanobis": 6}
    path.write_text(json.dumps(raw))
    found = of(bench, "mahalanobis")
    assert not found.complete and found.worst_case.n == 6  # on all twelve, by what is written there


@pytest.mark.parametrize(("number", "fragment"), [
    (0, "suites.tiny.examples_of.mahalanobis: 0 must be greater than or equal to 1"),
    (13, "suites.tiny.examples_of.mahalanobis: 13 must be at most the suite's own, 12"),
])  # fmt: skip
def test_a_number_that_makes_no_sense_is_refused(bench: Bench, number: int, fragment: str) -> None:
    ended = bench.configure(ATTACKS, examples_of={"mahalanobis": number}).evaluate("mahalanobis")
    assert ended.code == 2 and fragment in ended.err
    assert not bench.results.exists()


def test_a_name_that_no_defense_has_and_more_examples_than_there_are_are_refused(bench: Bench) -> None:
    def complaint(**fields: Any) -> Ended:
        ended = bench.configure({"step": STEP}, **fields).evaluate("none")
        assert ended.code == 2 and not bench.results.exists()
        return ended

    expected = "suite tiny: examples_of.oddss: defense 'oddss' does not exist (did you mean 'odds'?)"
    assert expected in complaint(examples_of={"oddss": 6}).err
    expected = "suite tiny: examples_of.none: 1000 is more than the 450 test examples of digits"
    assert expected in complaint(examples=None, examples_of={"none": 1000}).err


def test_terminal_and_files_say_on_how_many_examples(bench: Bench) -> None:
    out = bench.evaluate("mahalanobis", "none").out
    assert out.count("mahalanobis (first 6 examples)") == 2 and "none (first" not in out
    reported = json.loads(run_bench("report", "--results", bench.results, "--format", "json").out)
    n = {(r["defense"], r["what"]): r["n"] for r in reported["results"]}
    assert n["mahalanobis", "standard_accuracy"] == n["mahalanobis", "step"] == 6
    assert n["none", "worst_case_robust_accuracy"] == 12
    assert reported["suites"][0]["examples_of"] == {"mahalanobis": 6}


def test_certificates_are_of_the_same_examples(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "bench").configure({"step": STEP}, examples_of={"none": 1})
    words = ("--config", bench.folder / "bench.yaml", "--results", bench.results, "--suite", "tiny")
    ended = run_bench("certify", "--defense", "none", *words, "--eps", 0.001, "--time-limit", 1)
    assert ended.code == 0 and "of 1 examples" in ended.out, ended
    ended = run_bench("certify", "--defense", "none", *words, "--smoothing", 0.25, "--draws", 100)
    assert ended.code == 0, ended
    rows = [json.loads(path.read_text())["rows"] for path in bench.results.rglob("@certified/*.json")]
    assert [len(found) for found in rows] == [1, 1]


#: Of :func:`written_results.suite_record` with one attack, for rows and for points, before defenses had numbers.
KEY = "93bc9a55c6f9459c18ad6a8e7b24bd50fd422942e69da6afc1c40fd447f20be9"
KEY_OF_POINTS = "f1b434ea58ef63435eb0062b9edbd522f0571444e4234c7510b4ce74b57cba5b"

# -- submissions ------------------------------------------------------------------------------------------------


def submit(folder: Path, out: Path, **fields: Any) -> Ended:
    config = write_config(folder / "bench.yaml", {"step": STEP}, **fields)
    words = ["--suite", "tiny", "--config", config, "--results", folder / "runs", "--device", "cpu", "--quiet"]
    return run_bench("submit", "--defense", "mahalanobis", "--by", "A. Stranger", "--out", out, *words, *VARIANT)


def accept(bundle: Path, results: Path, config: Path) -> Ended:
    return run_bench("accept", bundle, "--results", results, "--config", config, "--device", "cpu", "--quiet")


def test_a_variant_is_submitted_and_accepted_on_as_many_examples(tmp_path: Path) -> None:
    tmp_path.joinpath("own").mkdir()
    numbers = {"mahalanobis": 6}
    made = submit(tmp_path / "own", tmp_path / "bundle", examples_of=numbers)
    assert made.code == 0, made
    assert json.loads((tmp_path / "bundle" / "claim.json").read_text())["examples"] == 6
    # Another defense's number is nothing to this one's rows.
    same = write_config(tmp_path / "same.yaml", {"step": STEP}, examples_of={**numbers, "none": 3})
    ended = accept(tmp_path / "bundle", tmp_path / "results", same)
    assert ended.code == 0, ended
    (found,) = summarise(tmp_path / "results", "tiny").defenses
    assert found.complete and found.worst_case.n == 6
    for name, other in (("all", {}), ("less", {"mahalanobis": 5})):
        config = write_config(tmp_path / f"{name}.yaml", {"step": STEP}, examples_of=other)
        ended = accept(tmp_path / "bundle", tmp_path / name, config)
        assert ended.code == 2 and "made for another suite than 'tiny' is here: examples_of" in ended.err


def test_the_key_of_a_suite_is_that_of_before_where_no_number_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.storing.records.AWARENESS", 4)  # as it was then
    plain, costly = (suite_record([attack_record("pgd")], examples_of=of) for of in ({}, {"ours": 2}))
    assert suite_key(plain, "none") == suite_key(costly, "none") == suite_key(plain, "ours") == KEY
    assert suite_key(costly, "ours") not in (KEY, suite_key(suite_record([attack_record("pgd")]), None))
    assert suite_key(costly, None) == suite_key(plain, None) == KEY_OF_POINTS


# -- numbers, by hand -------------------------------------------------------------------------------------------


def written(root: Path, **fields: Any) -> SuiteRecord:
    """``ours`` on two of four examples, beside ``plain`` on all, with rows that are stored of all."""
    suite = suite_record([attack_record("pgd")], examples_of={"ours": 2}, **fields)
    results = Results(root, suite)
    results.write_defense(defense_record("ours", reference="ours"), {"clean": [1, 1, 0, 0], "pgd": [1, 0, 0, 0]})
    results.write_defense(defense_record("plain"), {"clean": [1, 1, 1, 1], "pgd": [1, 0, 0, 0]})
    return suite


def test_every_number_is_of_the_first_examples(tmp_path: Path) -> None:
    written(tmp_path, radii=[0.1])
    ours, plain = summarise(tmp_path, "made").defenses
    assert (ours.record.name, ours.rank, plain.rank) == ("ours", 1, 2)
    assert (ours.standard.value, ours.standard.n) == (1.0, 2)
    assert (ours.worst_case.value, ours.worst_case.n, plain.worst_case.n) == (0.5, 2, 4)
    assert ours.complete and ours.worst_attack == "pgd"
    (attack,) = ours.attacks
    assert attack.robust is not None and (attack.robust.n, attack.worst_for) == (2, 2)
    assert {point.robust.n for point in ours.curve} == {2}
    assert "incomplete" not in {flag.id for flag in ours.flags}
    assert ours.survival == {"pgd": [1.0, 0.0]}


def test_the_site_says_so_wherever_it_says_n(tmp_path: Path) -> None:
    written(tmp_path)
    build(tmp_path, tmp_path / "site")
    index = (tmp_path / "site/index.html").read_text()
    assert index.count("first 2 of 4 examples</span>") == 1 and index.count('<span class="sub">first 2</span>') == 1
    assert "ours on the first ones alone" in index
    assert "(2 examples)" in index  # of its cell
    page = (tmp_path / "site/made/defenses/ours.html").read_text()
    assert "the first 2 of 4 examples" in page and "2 of 4 examples" in page.partition("<tbody>")[2]
    assert "of 4 examples" not in (tmp_path / "site/made/defenses/plain.html").read_text()
    assert "of 6 defense and example pairs" in (tmp_path / "site/made/attacks/pgd.html").read_text()
    rows = json.loads((tmp_path / "site/made/leaderboard.json").read_text())
    assert {r["defense"]: r["worst_case_robust_accuracy_n"] for r in rows} == {"ours": 2, "plain": 4}


def test_a_study_is_captioned_by_the_examples_of_its_variants(tmp_path: Path) -> None:
    variants = [{"label": "as it is", "defense": "ours"}]
    written(tmp_path, study={"defense": "ours", "title": "A study", "axis": "steps", "variants": variants})
    build(tmp_path, tmp_path / "site")
    assert "2 examples of digits, 95 % intervals" in (tmp_path / "site/index.html").read_text()


def test_submitted_inputs_beyond_the_first_do_not_count(tmp_path: Path) -> None:
    suite = written(tmp_path)
    results = Results(tmp_path, suite)
    ours = defense_record("ours", reference="ours")
    ids = ["e0", "e3"]
    found = FoundRecord(
        key=found_key(suite, ours, ids, 0, torch="2.15", device="cpu"), number=0, by="B", note="", batch_size=2,
        accepted="2026-01-01T00:00:00+00:00", provenance=PROVENANCE, rows=[row("e0", 0), row("e3", 0)],
    )  # fmt: skip
    cell = DefenseResults(results.store, suite, ours).found_cell([found])
    assert list(cell.rows) == [0]


def test_what_a_detector_implies_is_compared_on_its_own_examples(tmp_path: Path) -> None:
    """At eps/2 the classifier is taken to have 75 % of the first two images and 62.5 % of all four."""
    suite = suite_record([attack_record("pgd")], examples_of={"odds": 2})
    results = Results(tmp_path, suite)
    results.write_defense(defense_record("plain"), {"clean": [1] * 4, "pgd": [1, 0, 0, 0]})
    guarded = defense_record("guarded", probe_record(threshold=0.5), reference="odds")
    right = [row(f"e{i}", 1, detector_score=0.1) for i in range(4)]
    results.write_defense(guarded, {"clean": right, "pgd": right})
    found = next(d for d in summarise(tmp_path, "made").defenses if d.record.name == "guarded")
    assert found.detection is not None and found.detection.best_at_half is not None
    assert np.isclose(found.detection.best_at_half.accuracy, 0.75)
    assert found.detection.implied.n == found.detection.false_positive_rate.n == 2
    results.store.write_suite(suite.model_copy(update={"examples_of": {}}))
    found = next(d for d in summarise(tmp_path, "made").defenses if d.record.name == "guarded")
    assert found.detection is not None and found.detection.best_at_half is not None
    assert np.isclose(found.detection.best_at_half.accuracy, 0.625)
