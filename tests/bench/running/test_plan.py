"""The plan of an evaluation: one graph over all defenses, what it shares, what a failure costs, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_bench import STEP, Bench
from stand_ins import SerialEngine, essence, plugin, run_bench, shards

from bench.running import cell
from bench.running.progress import Display
from bench.storing import headers

PREPARED = {"of-data": {"attack": plugin("of_data")}, "of-defense": {"attack": plugin("of_defense")}}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "work")


def jobs(bench: Bench, *defenses: str) -> list[str]:
    """The names of the jobs of one evaluation, in the order in which one worker ran them."""
    engine = SerialEngine()
    run_bench(*bench.arguments(*defenses), engine=engine)
    return engine.jobs


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


# -- the graph --------------------------------------------------------------------------------------------------


def test_a_preparation_that_depends_on_the_data_alone_is_one_job(bench: Bench) -> None:
    ran = jobs(bench.configure({**PREPARED, "step": STEP}), "Means", "Noisy")
    prepared = [name for name in ran if name.startswith("prepare")]
    assert sorted(prepared) == [
        "prepare of-data",
        "prepare of-defense for stand_ins.Means",
        "prepare of-defense for stand_ins.Noisy",
    ]
    for name in ran:
        if " × of-data/" in name:
            assert ran.index("prepare of-data") < ran.index(name)
    assert [bench.status(attack, f"stand_ins.{d}") for d in ("Means", "Noisy") for attack in PREPARED] == [
        "complete"
    ] * 4
    assert not [name for name in jobs(bench, "Means", "Noisy") if "prepare" in name or "/" in name]


def test_a_preparation_of_the_data_loads_no_defense(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    of_defense = cell.open_context
    monkeypatch.setattr(cell, "open_context", lambda setting: loaded.append(setting.spec.name) or of_defense(setting))

    class Watching(SerialEngine):
        def outcome(self, job):  # type: ignore[no-untyped-def]
            before = len(loaded)
            ended = super().outcome(job)
            assert (len(loaded) == before) == (
                job.name == "prepare of-data" or "gallery" in job.name or "timing" in job.name
            )
            return ended

    assert run_bench(*bench.configure(PREPARED).arguments("Means"), engine=Watching()).code == 0


def test_every_defense_is_finished_and_time_is_measured_last(bench: Bench) -> None:
    ran = jobs(bench.configure({"step": STEP}), "Means", "Noisy")
    assert ran[-2:] == ["timing of stand_ins.Means", "timing of stand_ins.Noisy"]
    for defense in ("stand_ins.Means", "stand_ins.Noisy"):
        gallery = ran.index(f"gallery of {defense}")
        assert all(ran.index(name) < gallery for name in ran if name.startswith(f"{defense} × "))
        record = bench.store.defense(defense)
        assert record is not None and record.timing is not None and record.gallery


def test_one_worker_goes_through_one_defense_after_the_other(bench: Bench) -> None:
    ran = jobs(bench.configure({"step": STEP, "noise": {"draws": 2}}), "Means", "Noisy")
    owners = [name.partition(" × ")[0] for name in ran if " × " in name]
    assert owners == ["stand_ins.Means"] * 9 + ["stand_ins.Noisy"] * 9


def test_a_failed_preparation_costs_the_shards_that_wait_for_it_and_says_why(bench: Bench) -> None:
    bench.configure({"unprepared": {"attack": plugin("unprepared")}, "step": STEP})
    ended = bench.evaluate("Means", "Noisy")
    assert ended.code == 1
    reason = "failed: ArithmeticError: nothing to be learnt from this"
    lines = [line for line in ended.err.splitlines() if line.startswith("failed:")]
    assert lines == [f"failed: stand_ins.{name} × unprepared: {reason}" for name in ("Means", "Noisy")]
    for name in ("Means", "Noisy"):
        assert bench.status("step", f"stand_ins.{name}") == "complete"
        for record in bench.cell("unprepared", f"stand_ins.{name}"):
            assert record.status == "failed" and record.rows == []
            assert record.error.startswith("waited for prepare unprepared (failed):\nTraceback")
    assert set(bench.evaluate("Means", "Noisy").ran) == set()  # its shards cannot start before it
    assert len(bench.cell("unprepared")) == 3


def test_a_defense_whose_gallery_fails_keeps_its_numbers(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no pictures today")

    monkeypatch.setattr("bench.running.gallery._pictures", broken)
    ended = bench.configure({"step": STEP}).evaluate()
    assert ended.code == 1
    assert ended.err.splitlines()[-1] == "failed: gallery of stand_ins.Means: failed: RuntimeError: no pictures today"
    assert bench.status("step") == "complete"
    monkeypatch.undo()
    assert bench.evaluate().code == 0
    record = bench.store.defense("stand_ins.Means")
    assert record is not None and record.gallery


def test_what_a_preparation_reports_is_shown(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Display.__init__, "__defaults__", (0.0, False))  # a line for every report
    ended = bench.configure(PREPARED).evaluate()
    assert "half of it" in ended.err


def test_a_run_opens_the_shards_that_changed_and_a_dry_run_notes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "_TICK", 0)  # these shards are milliseconds old
    assert bench.configure({"step": STEP}).evaluate("Means").code == 0
    opened, read = [], headers.Headers._read
    monkeypatch.setattr(headers.Headers, "_read", lambda h, file, n: opened.append(file.path) or read(h, file, n))
    stored = files(bench.results)
    assert bench.evaluate("Means", more=("--dry-run",)).out.splitlines()[0].endswith("complete")
    assert opened == [] and files(bench.results) == stored
    changed = bench.store.shard_path("stand_ins.Means", "step", 1)
    changed.write_text(changed.read_text()[:-30])
    assert bench.evaluate("Means").ran == ["step/1"]
    assert set(opened) == {changed}
    assert bench.evaluate("Means").ran == [] and bench.status("step") == "complete"


@pytest.mark.slow
def test_rows_do_not_depend_on_which_worker_ran_what(bench: Bench, tmp_path: Path) -> None:
    attacks = {**PREPARED, "step": STEP, "noise": {"draws": 2}}
    other = Bench(tmp_path / "other").configure(attacks)
    assert bench.configure(attacks).evaluate("Means", "Noisy", "Guarded").code == 0
    assert other.evaluate("Guarded", "Noisy", "Means", workers=2).code == 0
    assert essence(bench.results) == essence(other.results)
    for defense in ("Means", "Noisy", "Guarded"):
        record = other.store.defense(f"stand_ins.{defense}")
        assert record is not None and record.gallery and record.timing is not None


# -- bench evaluate --dry-run -----------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_run_and_writes_nothing(bench: Bench) -> None:
    bench.configure({**PREPARED, "step": STEP})
    ended = bench.evaluate("Means", "Noisy", more=("--dry-run",))
    assert (ended.code, ended.ran, ended.err) == (0, [], "")
    assert not bench.results.exists()
    assert ended.out.splitlines() == [
        "stand_ins.Means × clean       3 of 3 shards to run",
        "stand_ins.Means × of-data     3 of 3 shards to run",
        "stand_ins.Means × of-defense  3 of 3 shards to run",
        "stand_ins.Means × step        3 of 3 shards to run",
        "stand_ins.Noisy × clean       3 of 3 shards to run",
        "stand_ins.Noisy × of-data     3 of 3 shards to run",
        "stand_ins.Noisy × of-defense  3 of 3 shards to run",
        "stand_ins.Noisy × step        3 of 3 shards to run",
        "prepare of-data, shared by 2 cells",
        "prepare of-defense for stand_ins.Means",
        "prepare of-defense for stand_ins.Noisy",
        "31 jobs: 24 shards, 3 preparations, 2 galleries, 2 timings",
        "expected time: unknown, since no earlier run of these attacks is stored here",
    ]


def test_a_dry_run_after_a_run_rests_on_what_was_measured(bench: Bench) -> None:
    bench.configure({"step": STEP, "slow": {"attack": plugin("slow"), "seconds": 0.01}}).evaluate("Means")
    before = files(bench.results)
    for record in shards(bench.results).values():  # as if the attack had taken a minute per shard
        if record.attack == "slow":
            bench.store.write_shard(record.model_copy(update={"seconds": 60.0}), None)
    bench.configure({"step": STEP, "slow": {"attack": plugin("slow"), "seconds": 0.02}})
    before = files(bench.results)
    ended = bench.evaluate("Means", more=("--dry-run", "--workers", "1"))
    assert files(bench.results) == before
    assert ended.out.splitlines() == [
        "stand_ins.Means × clean  complete",
        "stand_ins.Means × step   complete",
        "stand_ins.Means × slow   3 of 3 shards to run, 3:00",
        "4 jobs: 3 shards, 0 preparations, 1 gallery, 0 timings",
        "expected time: 3:00 with 1 worker (shards and preparations: 3 from earlier runs of the same cell, "
        "0 from earlier runs of other defenses)",
    ]


def test_a_dry_run_of_another_defense_rests_on_the_attacks_time_in_passes(bench: Bench) -> None:
    bench.configure({"slow": {"attack": plugin("slow"), "seconds": 0.01}}).evaluate("Means")
    lines = bench.evaluate("Noisy", more=("--dry-run", "--workers", "1")).out.splitlines()
    assert lines[-1].endswith(
        "(shards and preparations: 0 from earlier runs of the same cell, 6 from earlier runs of other defenses)"
    )


def test_a_dry_run_of_a_complete_defense_has_nothing_to_attack(bench: Bench) -> None:
    bench.configure({"step": STEP}).evaluate()
    lines = bench.evaluate(more=("--dry-run",)).out.splitlines()
    assert lines[-1] == "expected time: nothing is left to attack"


def test_a_dry_run_refuses_what_a_run_refuses(bench: Bench) -> None:
    ended = bench.configure({"step": STEP}).evaluate("no-such-defense", more=("--dry-run",))
    assert ended.code == 2
    assert not bench.results.exists()


def test_a_dry_run_names_a_defense_that_would_be_skipped(bench: Bench) -> None:
    ended = bench.configure({"step": STEP}).evaluate("Means", plugin("training_mode"), more=("--dry-run",))
    assert ended.code == 0
    assert "skipped: stand_ins.training_mode: model Sequential: is in training mode" in ended.err
