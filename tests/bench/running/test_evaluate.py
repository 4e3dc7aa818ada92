"""`bench evaluate` from the command line to the files: what is run, stored, resumed, refused and shown."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_bench import FAILING, OUTSIDE, STEP, Bench, cells, points
from stand_ins import HERE, Ended, SerialEngine, essence, plugin, run_bench

from bench.data.load import load_data
from bench.engines.graph import Job, Outcome
from bench.running import evaluate
from bench.running.cell import run_shard
from bench.storing.joined import JOINED
from bench.storing.lock import writing


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "work")


# -- one run, looked at from all sides --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Ended]:
    """Four defenses under attacks that work, cheat, fail, do not apply and are not counted."""
    bench = Bench(tmp_path_factory.mktemp("everything"))
    attacks = {
        "step": STEP,
        "half": {**STEP, "fraction": 0.5},
        "noise": {"draws": 3},
        "outside": OUTSIDE,
        "misshapen": {"attack": plugin("misshapen")},
        "failing": FAILING,
        "absent": {"attack": plugin("absent")},
        "large": {**STEP, "eps": 1.0},
    }
    bench.configure(attacks)
    return bench, bench.evaluate("Means", "Noisy", "Undeclared", "Guarded")


def test_a_failing_attack_costs_its_cells_and_nothing_else(everything: tuple[Bench, Ended]) -> None:
    bench, ended = everything
    assert ended.code == 1
    lines = [line for line in ended.err.splitlines() if line.startswith("failed:")]
    assert len(lines) == 4  # one per defense
    assert "failed: stand_ins.Means × failing: failed: ArithmeticError: no adversarial example today" in lines
    for record in bench.cell("failing"):
        assert record.status == "failed" and record.rows == []
        assert "in failing" in record.error and record.error.startswith("Traceback")
        assert str(HERE.parent) not in record.error and str(bench.folder) not in record.error
    for attack in ("clean", "step", "half", "noise", "outside", "large"):
        assert [record.status for record in bench.cell(attack)] == ["ok"] * 3


def test_failed_and_missing_cells_are_shown(everything: tuple[Bench, Ended]) -> None:
    bench, ended = everything
    assert bench.status("failing") == "failed"
    assert bench.status("absent") == "not-applicable"
    assert not any(defense.complete for defense in bench.summary.defenses)
    for text in (ended.out, run_bench("report", "--results", bench.results).out):
        line = next(line for line in text.splitlines() if line.startswith("failing"))
        assert "(failed)" in line
        assert "(not-applicable)" in next(line for line in text.splitlines() if line.startswith("absent"))


def test_rows_cover_every_example_once_in_order(everything: tuple[Bench, Ended]) -> None:
    bench, _ = everything
    examples = load_data("digits").test.take(12)
    for attack in ("clean", "step"):
        rows = [row for record in bench.cell(attack) for row in record.rows]
        assert [row.id for row in rows] == examples.ids
        assert [row.label for row in rows] == examples.y.tolist()


def test_points_outside_the_ball_are_refused_and_scored_as_the_clean_input(everything: tuple[Bench, Ended]) -> None:
    bench, _ = everything
    clean = {row.id: row for record in bench.cell("clean") for row in record.rows}
    rows = [row for record in bench.cell("outside") for row in record.rows]
    assert all(row.reason.startswith("outside the ball: linf 0.4") for row in rows)
    assert all(row.prediction == clean[row.id].prediction and row.linf == 0 for row in rows)
    assert [row.reason for record in bench.cell("misshapen") for row in record.rows] == [
        "shape (4, 1, 4, 8) instead of (4, 1, 8, 8)"
    ] * 12
    summary = next(d for d in bench.summary.defenses if d.record.name == "stand_ins.Means")
    refused = next(flag for flag in summary.flags if flag.id == "violations")
    assert "outside (12)" in refused.text and "misshapen (12)" in refused.text


def test_the_sanity_check_with_a_larger_radius_is_judged_by_that_radius(everything: tuple[Bench, Ended]) -> None:
    bench, _ = everything
    rows = [row for record in bench.cell("large") for row in record.rows]
    assert {row.reason for row in rows} == {"ok"}
    assert max(row.linf for row in rows) > 0.5
    entry = next(a for a in bench.summary.record.attacks if a.name == "large")
    assert (entry.counted, entry.eps) == (False, 1.0)
    assert bench.summary.record.eps == 0.2


def test_every_parameter_is_recorded(everything: tuple[Bench, Ended]) -> None:
    bench, _ = everything
    params = {a.name: a.params for a in bench.summary.record.attacks}
    assert params["step"] == {"fraction": 1.0}
    assert params["half"] == {"fraction": 0.5}
    assert params["noise"] == {"draws": 3, "corners": False}


def test_a_deterministic_defense_is_drawn_once_a_randomised_one_as_the_suite_says(
    everything: tuple[Bench, Ended],
) -> None:
    bench, _ = everything
    for name, draws in (("Means", (1, 1)), ("Noisy", (5, 10)), ("Undeclared", (5, 10))):
        (record, *_) = bench.cell("step", f"stand_ins.{name}")
        assert (record.draws_select, record.draws_report) == draws
        assert {row.report_correct for row in record.rows} <= set(range(draws[1] + 1))
    probe = bench.store.defense("stand_ins.Undeclared").probe  # type: ignore[union-attr]
    assert (probe.randomized, probe.declared_randomized) == (True, False)


def test_a_detector_is_judged_at_the_threshold_of_the_probe(everything: tuple[Bench, Ended]) -> None:
    bench, _ = everything
    threshold = bench.store.defense("stand_ins.Guarded").probe.threshold  # type: ignore[union-attr]
    assert threshold is not None
    for attack in ("clean", "step", "half"):
        for record in bench.cell(attack, "stand_ins.Guarded"):
            for row in record.rows:
                assert row.detector_score is not None
                assert row.report_rejected == int(row.detector_score > threshold)
    detection = next(d for d in bench.summary.defenses if d.record.name == "stand_ins.Guarded").detection
    assert detection is not None and detection.threshold == threshold


def test_passes_are_counted_per_example(everything: tuple[Bench, Ended]) -> None:
    bench, _ = everything
    assert {(row.forward, row.backward) for record in bench.cell("clean") for row in record.rows} == {(0, 0)}
    assert {row.forward for record in bench.cell("noise") for row in record.rows} <= {1, 2, 3}
    assert {row.backward for record in bench.cell("noise") for row in record.rows} == {0}


def test_stored_images_are_those_that_were_judged(everything: tuple[Bench, Ended]) -> None:
    bench, _ = everything
    x = load_data("digits").test.take(12).x
    for record in bench.cell("step"):
        x_adv = points(bench.store, record)
        away = (x_adv - x[4 * record.shard :][:4]).abs().flatten(1).amax(1)
        assert away.tolist() == pytest.approx([row.linf for row in record.rows], abs=1e-5)


def test_the_gallery_shows_no_refused_input(everything: tuple[Bench, Ended]) -> None:
    bench, _ = everything
    record = bench.store.defense("stand_ins.Means")
    assert record is not None and 0 < len(record.gallery) <= 8
    assert {entry.attack for entry in record.gallery} <= {"step", "half", "noise"}


def test_the_same_command_again_runs_only_what_failed(everything: tuple[Bench, Ended]) -> None:
    bench, _ = everything
    before = essence(bench.results)
    again = bench.evaluate("Means", "Noisy", "Undeclared", "Guarded")
    assert cells(again) == ["failing"]
    assert again.code == 1
    assert essence(bench.results) == before


def test_the_order_of_defenses_and_attacks_does_not_matter(everything: tuple[Bench, Ended], bench: Bench) -> None:
    other, _ = everything
    attacks = {"noise": {"draws": 3}, "half": {**STEP, "fraction": 0.5}, "step": STEP}
    bench.configure(attacks).evaluate("Guarded", "Noisy")
    expected = essence(other.results)
    found = essence(bench.results)
    assert len(found) == 2 * 4 * 3
    assert {name: record["rows"] for name, record in found.items()} == {name: expected[name]["rows"] for name in found}


# -- what is run again ------------------------------------------------------------------------------------------


def test_a_subset_of_attacks_and_then_all(bench: Bench) -> None:
    bench.configure({"step": STEP, "noise": {"draws": 2}})
    first = bench.evaluate(more=("--attack", "noise"))
    assert (first.code, cells(first)) == (0, ["clean", "noise"])
    assert bench.status("step") == "missing"
    assert not bench.summary.defenses[0].complete
    second = bench.evaluate()
    assert (second.code, cells(second)) == (0, ["step"])
    assert bench.summary.defenses[0].complete
    assert bench.evaluate().ran == []


def test_another_radius_makes_every_shard_stale(bench: Bench) -> None:
    bench.configure({"step": STEP}).evaluate()
    before = bench.summary.defenses[0].worst_case
    bench.configure({"step": STEP}, threat_model={"norm": "linf", "eps": 0.01})
    ended = bench.evaluate(more=("--attack", "step"))
    assert cells(ended) == ["clean", "step"] and len(ended.ran) == 6
    assert bench.summary.defenses[0].worst_case.value > before.value
    assert max(row.linf for record in bench.cell("step") for row in record.rows) <= 0.01 + 1e-6


def test_another_parameter_makes_its_own_cell_stale(bench: Bench) -> None:
    bench.configure({"step": STEP, "noise": {"draws": 2}}).evaluate()
    bench.configure({"step": {**STEP, "fraction": 0.1}, "noise": {"draws": 2}})
    subset = bench.evaluate(more=("--attack", "noise"))
    assert subset.ran == []
    assert bench.status("step") == "missing"  # what is stored is of the other budget
    ended = bench.evaluate()
    assert cells(ended) == ["step"]
    assert max(row.linf for record in bench.cell("step") for row in record.rows) == pytest.approx(0.02)


def test_another_seed_and_other_draws_make_every_shard_stale(bench: Bench) -> None:
    bench.configure({"noise": {"draws": 2}}).evaluate("Noisy")
    for fields in ({"seed": 4}, {"seed": 4, "draws": {"select": 5, "report": 11}}):
        bench.configure({"noise": {"draws": 2}}, **fields)
        assert len(bench.evaluate("Noisy").ran) == 6


def test_a_stale_attack_is_not_shown_in_the_gallery(bench: Bench) -> None:
    bench.configure({"step": STEP, "noise": {"draws": 2}}).evaluate()
    bench.configure({"step": {**STEP, "fraction": 0.9}, "noise": {"draws": 2}})
    bench.evaluate(more=("--attack", "noise"))
    record = bench.store.defense("stand_ins.Means")
    assert record is not None
    assert {entry.attack for entry in record.gallery} == {"noise"}


def test_a_change_of_the_defenses_code_runs_it_again(bench: Bench) -> None:
    bench.configure({"step": STEP})
    for file in (HERE, HERE.with_name("written_results.py")):
        shutil.copy(file, bench.folder / file.name)
    mine = (bench.folder / HERE.name).rename(bench.folder / "mine.py")
    assert len(bench.evaluate(f"{mine}:Means").ran) == 6
    source = mine.read_text()
    mine.write_text(source.replace('    """The nearest class mean', '    # A comment.\n    """A nearest class mean'))
    assert bench.evaluate(f"{mine}:Means").ran == []
    mine.write_text(source.replace("nn.Sequential(nn.Flatten(), layer)", "nn.Sequential(nn.Flatten(1), layer)"))
    assert len(bench.evaluate(f"{mine}:Means").ran) == 6


def test_parameters_of_a_defense_are_another_defense(bench: Bench) -> None:
    bench.configure({"step": STEP}).evaluate()
    ended = bench.evaluate(more=("--set", "scale=20"))
    assert len(ended.ran) == 6
    assert {d.record.name for d in bench.summary.defenses} == {"stand_ins.Means", "stand_ins.Means(scale=20)"}


def test_a_defense_named_twice_is_evaluated_once(bench: Bench) -> None:
    assert len(bench.configure({"step": STEP}).evaluate("Means", "Means").ran) == 6


def test_what_another_run_stores_after_the_plan_is_not_run_twice(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.configure({"step": STEP})
    first: list[Ended] = []

    @contextlib.contextmanager
    def waited_for(folder: Path, command: str) -> Iterator[None]:
        if not first:
            first.append(Ended(0, "", "", []))
            first[0] = bench.evaluate()
        with writing(folder, command):
            yield

    monkeypatch.setattr(evaluate, "writing", waited_for)
    second = bench.evaluate()
    assert len(first[0].ran) == 6 and second.code == 0
    assert second.ran == []
    (defense,) = bench.summary.defenses
    assert defense.record.timing is not None and defense.record.afterwards is not None


def test_a_damaged_shard_is_made_again(bench: Bench) -> None:
    bench.configure({"step": STEP}).evaluate()
    before = essence(bench.results)
    bench.store.shard_path("stand_ins.Means", "step", 1).write_text('{"schema_version": 1, "key"')
    assert bench.evaluate().ran == ["step/1"]
    assert essence(bench.results) == before


# -- attacks that misbehave -------------------------------------------------------------------------------------


@pytest.mark.parametrize("compacted", [False, True], ids=["plain", "compacted"])
@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("json", lambda data: data[:-9]),
        ("json", lambda data: data[: len(data) // 2]),
        ("json", lambda data: data[: len(data) // 2] + b"\0" + data[len(data) // 2 + 1 :]),
        ("json", lambda data: b""),
        ("safetensors", lambda data: data[:-4]),
        ("safetensors", lambda data: data[:5]),
        ("safetensors", None),
    ],
)
def test_a_shard_whose_files_are_cut_off_is_run_again_and_no_other(
    bench: Bench, compacted: bool, part: str, damage: Callable[[bytes], bytes] | None
) -> None:
    bench.configure({"step": STEP})
    assert bench.evaluate().code == 0
    before = bench.summary
    if compacted:
        assert run_bench("compact", "--results", str(bench.results)).code == 0
    files = sorted((bench.results / "tiny" / "stand_ins.Means" / "step").glob(f"*.{part}*"))
    last = files[-1]
    # Those of a cell that were put together are lost together.
    numbers = range(3) if last.name == JOINED else [int(last.name.partition(".")[0])]
    if damage is None:
        last.unlink()
    else:
        last.write_bytes(damage(last.read_bytes()))
    again = bench.evaluate()
    assert (again.code, sorted(again.ran)) == (0, [f"step/{number}" for number in numbers])
    assert [d.worst_case for d in bench.summary.defenses] == [d.worst_case for d in before.defenses]
    assert not bench.summary.unreadable and bench.evaluate().ran == []


def test_an_attack_that_breaks_the_defense_breaks_no_result(bench: Bench) -> None:
    bench.configure({"vandal": {"attack": plugin("vandal")}, "step": STEP}).evaluate()
    for record in bench.cell("vandal"):
        assert record.notes == ["the attack changed parameters or buffers of the defense"]
    clean = [row.prediction for record in bench.cell("clean") for row in record.rows]
    assert [row.prediction for record in bench.cell("vandal") for row in record.rows] == clean
    found = bench.summary.defenses[0]
    assert found.worst_attack == "step"
    with_vandal = essence(bench.results)
    other = Bench(bench.folder / "other").configure({"step": STEP})
    other.evaluate()
    for name, record in essence(other.results).items():
        assert with_vandal[name]["rows"] == record["rows"]


def test_only_refused_inputs_still_make_a_gallery(bench: Bench) -> None:
    ended = bench.configure({"misshapen": {"attack": plugin("misshapen")}, "outside": OUTSIDE}).evaluate()
    assert ended.code == 0
    assert bench.summary.defenses[0].worst_case.value == bench.summary.defenses[0].standard.value


def test_an_attack_that_lacks_the_norm_is_not_applicable(bench: Bench) -> None:
    bench.configure({"step": STEP, "noise": {"draws": 2}}, threat_model={"norm": "l1", "eps": 2.0})
    ended = bench.evaluate()
    assert ended.code == 0
    (record, *_) = bench.cell("step")
    assert (record.status, record.error) == ("not-applicable", "one-step has no l1 version (linf)")
    assert bench.evaluate().ran == []


def test_less_knowledge_is_enforced(bench: Bench) -> None:
    ended = bench.configure({"step": {**STEP, "knowledge": "score"}}).evaluate()
    assert ended.code == 1
    assert "KnowledgeError: a score attack asked for gradient knowledge of its target" in ended.err


def test_an_attack_that_cannot_be_imported_is_named_and_the_result_is_incomplete(bench: Bench) -> None:
    bench.folder.mkdir()
    broken = bench.folder / "broken_attack.py"
    broken.write_text("raise RuntimeError('out of order')\n")
    ended = bench.configure({"step": STEP, "broken": {"attack": f"{broken}:attack"}}).evaluate()
    assert "out of order" in ended.err
    assert bench.status("step") == "complete"
    assert bench.status("broken") == "missing"
    assert not bench.summary.defenses[0].complete


class Impatient(SerialEngine):
    """Gives up on every shard of ``slow``, as an engine does whose worker is past the timeout."""

    def outcome(self, job: Job) -> Outcome:
        assert job.timeout == (12 if job.function is run_shard else None)
        if "slow/" in job.name:
            return Outcome(job, "timeout", None, "stopped after 12 s", 12.0)
        return super().outcome(job)


def test_a_shard_past_its_timeout_is_stored_as_such(bench: Bench) -> None:
    bench.configure({"slow": {"attack": plugin("slow")}, "noise": {"draws": 2}}, shard_timeout_s=12)
    ended = run_bench(*bench.arguments(), engine=Impatient())
    assert ended.code == 1
    assert ended.err.splitlines()[-1] == "failed: stand_ins.Means × slow: timeout: stopped after 12 s"
    assert [record.status for record in bench.cell("slow")] == ["timeout"] * 3
    assert (bench.status("slow"), bench.status("noise")) == ("failed", "complete")
    assert cells(run_bench(*bench.arguments())) == ["slow"]


# -- studies ----------------------------------------------------------------------------------------------------


def test_all_of_a_study_is_its_variants(bench: Bench) -> None:
    study = {
        "defense": plugin("Means"),
        "title": "Scales",
        "axis": "scale",
        "variants": [
            {"label": "default", "published": {"clean": 90.0, "step": 10.0}},
            {"label": "small", "set": {"scale": 0.5}},
        ],
    }
    bench.configure({"step": STEP}, study=study)
    arguments = [part for part in bench.arguments() if part not in ("--defense", plugin("Means"))]
    assert run_bench(*arguments, "--all").code == 0
    names = ["stand_ins.Means", "stand_ins.Means(scale=0.5)"]
    assert sorted(defense.record.name for defense in bench.summary.defenses) == names
    assert all(defense.complete for defense in bench.summary.defenses)
    stored = bench.summary.record.study
    assert stored is not None
    assert [(variant.label, variant.defense) for variant in stored.variants] == list(
        zip(["default", "small"], names, strict=True)
    )
    assert stored.variants[0].published == {"clean": 90.0, "step": 10.0}


def test_a_study_that_quotes_an_attack_it_does_not_run_is_refused(bench: Bench) -> None:
    variants = [{"label": "only", "published": {"stpe": 1.0}}]
    study = {"defense": plugin("Means"), "title": "t", "axis": "a", "variants": variants}
    ended = bench.configure({"step": STEP}, study=study).evaluate()
    assert ended.code == 2
    assert "suites.tiny.study: the suite has no attack 'stpe'" in ended.err


def test_where_memory_runs_out_the_batch_is_halved_the_record_says_so_and_the_rows_stay(tmp_path: Path) -> None:
    room = tmp_path / "room"
    roomy = {"attack": plugin("roomy"), "room": str(room)}
    whole, tight = (Bench(tmp_path / name).configure({"noise": roomy}) for name in ("whole", "tight"))
    assert whole.evaluate("Means").code == 0
    room.write_text("1")
    assert tight.evaluate("Means").code == 0
    for ample, halved in zip(whole.cell("noise"), tight.cell("noise"), strict=True):
        assert (ample.batch_size, ample.notes) == (512, [])
        assert (halved.status, halved.batch_size, halved.notes) == ("ok", 1, ["out of memory: batch halved to 1"])
        assert halved.rows == ample.rows
        assert halved.x_adv_sha256 == ample.x_adv_sha256 != ""


def test_where_one_row_has_no_room_the_shard_is_out_of_memory_and_run_again(tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.write_text("0")
    bench = Bench(tmp_path / "work").configure({"noise": {"attack": plugin("roomy"), "room": str(room)}})
    ended = bench.evaluate("Means")
    assert ended.code == 1 and "out of memory" in ended.err.lower()
    assert bench.status("noise") == "failed" or bench.status("noise") == "out-of-memory"
    assert cells(bench.evaluate("Means")) == ["noise"]
