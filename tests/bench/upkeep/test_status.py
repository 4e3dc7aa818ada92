"""What is stored, current, stale and why, and what a run would do."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from small_bench import FAILING, STEP, Bench
from stand_ins import run_bench

import bench.upkeep.status as module


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path / "bench").configure({"step": STEP, "noise": {"draws": 2}})
    assert made.evaluate("Means").code == 0
    return made


def lines(bench: Bench, *more: str) -> list[str]:
    where = ["--suite", "tiny", "--config", str(bench.folder / "bench.yaml"), "--results", str(bench.results)]
    ended = run_bench("status", *where, "--device", "cpu", *more)
    assert ended.code == 0, ended
    return ended.out.splitlines()


def test_after_a_run_nothing_is_left_to_do(bench: Bench) -> None:
    first, *rest = lines(bench)
    assert first == "tiny: 1 defense stored on 12 examples, 1 complete and current; 9 shards current, 0 stale"
    assert "  bench evaluate on these defenses would run nothing" in rest
    assert bench.evaluate("Means").ran == []


def test_another_budget_is_named_with_what_it_was_and_a_run_does_what_was_said(bench: Bench) -> None:
    bench.configure({"step": {**STEP, "fraction": 0.25}, "noise": {"draws": 2}})
    found = lines(bench, "--why")
    assert "  stand_ins.Means: 3 shards stale" in found
    (reason,) = [line for line in found if "fraction" in line]
    assert reason == "    the attack's parameters: fraction was 1.0, is 0.25: step (3)"
    (run,) = [line for line in found if "would run" in line]
    assert run.startswith("  bench evaluate on these defenses would run 3 shards: about 0:0")
    assert len(bench.evaluate("Means").ran) == 3
    assert not [line for line in lines(bench, "--why") if "stale" in line and not line.endswith("0 stale")]


def test_an_attack_that_was_not_run_and_one_that_is_gone(bench: Bench) -> None:
    bench.configure({"step": STEP, "failing": FAILING})
    found = lines(bench)
    assert "  stand_ins.Means: not run: failing" in found
    assert "  stand_ins.Means: stored, but not in the suite: noise" in found
    assert "  bench evaluate on these defenses would run 3 shards; no earlier run tells how long that takes" in found


def test_a_failed_shard_is_stale_for_its_own_reason(bench: Bench) -> None:
    bench.configure({"step": STEP, "failing": FAILING})
    bench.evaluate("Means")
    assert [line for line in lines(bench, "--why") if line.startswith("    failed: ") and "failing (3)" in line]


def test_another_torch_makes_everything_stale(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.storing.provenance.torch_release", lambda: "9.9")
    found = lines(bench, "--why")
    assert found[0].endswith("0 complete and current; 0 shards current, 9 stale")
    assert [line for line in found if "torch: was " in line and line.endswith("is 9.9: clean (3), step (3), noise (3)")]


def test_a_suite_that_is_not_configured_and_a_defense_that_is_gone_are_said_to_be_so(bench: Bench) -> None:
    (bench.results / "other").mkdir()
    (bench.results / "other" / "suite.json").write_text("{}")
    ended = run_bench(
        "status", "--config", str(bench.folder / "bench.yaml"), "--results", str(bench.results), "--device", "cpu"
    )
    assert "other: stored, but not in the configuration" in ended.out
    record = bench.store.defense("stand_ins.Means")
    assert record is not None
    bench.store.write_defense(record.model_copy(update={"reference": "no-such-defense"}))
    assert [line for line in lines(bench) if line.startswith("  stand_ins.Means: cannot be compared: ")]


def test_an_empty_folder_says_what_to_run(tmp_path: Path) -> None:
    ended = run_bench("status", "--results", str(tmp_path))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"error: no results in {tmp_path}; run: bench evaluate --defense ours --results {tmp_path}\n"


def test_another_version_of_pillow_makes_jpeg_stale_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path / "bench").configure({"noise": {"draws": 2}}, data="digits", examples=4, shard_size=4)
    ended = bench.evaluate("jpeg", "none")
    assert ended.code == 0, ended.err
    installed, version = importlib.metadata.version("pillow"), importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0" if name == "pillow" else version(name))
    found = lines(bench, "--why")
    assert f"    a library that the defense depends on: pillow was {installed}, is 99.0: clean (1), noise (1)" in found
    assert "2 shards current, 2 stale" in found[0]


def test_defenses_of_which_nothing_is_stored_are_counted_and_named_when_asked(bench: Bench) -> None:
    (brief,) = [line for line in lines(bench) if "nothing is stored of" in line]
    (named,) = [line for line in lines(bench, "--why") if "nothing is stored of" in line]
    assert named.startswith(f"{brief}: ") and " madry," in named
    assert len(named.removeprefix(f"{brief}: ").split(", ")) == int(brief.split()[4])


def test_a_plugin_is_not_imported_into_the_process_that_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "patches.py"
    plugin.write_text(
        "import torch\nfrom torch import nn\nfrom bench import Defense\n"
        "import bench.upkeep.status\nbench.upkeep.status.patched = True\n"
        "class Patches(Defense):\n    version = 1\n    trainable = False\n"
        "    def __init__(self, data):\n        super().__init__(data)\n"
        "        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "        nn.init.constant_(self.classifier[1].weight, 0.1)\n        nn.init.zeros_(self.classifier[1].bias)\n"
    )
    made = Bench(tmp_path / "bench").configure({"step": STEP})
    monkeypatch.chdir(tmp_path)  # of a plugin outside the packages the file's name alone is stored
    assert made.evaluate(f"{plugin}:Patches", more=("--isolation", "process")).code == 0
    found = lines(made, "--isolation", "process")
    assert "1 complete and current" in found[0]
    assert not hasattr(module, "patched")
