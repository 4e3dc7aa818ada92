"""`bench verify`: stored numbers are confirmed, and every kind of tampering is noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from stand_ins import Ended, plugin, run_bench, write_config

from bench.storing.store import Store

ATTACKS = {"step": {"attack": plugin("one_step")}, "large": {"attack": plugin("one_step"), "eps": 1.0}}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    config = write_config(folder / "bench.yaml", ATTACKS)
    where = ["--suite", "tiny", "--config", config, "--results", folder / "results", "--device", "cpu"]
    defenses = [word for name in ("Means", "Noisy", "Guarded") for word in ("--defense", plugin(name))]
    assert run_bench("evaluate", *where, *defenses).code == 0
    # References are stored without the folders of this machine, so the defenses are looked for from here.
    for path in folder.glob("results/tiny/*/defense.json"):
        record = json.loads(path.read_text())
        record["reference"] = plugin(record["reference"].rpartition(":")[2])
        path.write_text(json.dumps(record))
    return folder / "results"


@pytest.fixture
def results(evaluated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated, tmp_path / "results"))


def verify(results: Path, *more: str) -> Ended:
    return run_bench("verify", "--suite", "tiny", "--results", results, "--device", "cpu", *more)


def line(ended: Ended, cell: str) -> str:
    return next(line for line in ended.out.splitlines() if line.startswith(cell))


def test_untouched_results_are_confirmed_on_the_same_draws(results: Path) -> None:
    ended = verify(results)
    assert ended.code == 0
    assert len(ended.out.splitlines()) >= 9
    for defense in ("Means", "Noisy", "Guarded"):
        for attack in ("clean", "step", "large"):
            assert "0 of 12 rows differ" in line(ended, f"stand_ins.{defense} × {attack}")


def test_one_defense_alone(results: Path) -> None:
    ended = verify(results, "--defense", "stand_ins.Noisy")
    assert "stand_ins.Noisy × step" in ended.out and "stand_ins.Means" not in ended.out


def test_one_attack_alone(results: Path) -> None:
    ended = verify(results, "--attack", "step")
    assert ended.code == 0 and len(ended.out.splitlines()) == 3
    assert all("× step" in cell for cell in ended.out.splitlines())


def test_a_record_that_cannot_be_read_is_named_and_the_rest_judged(results: Path) -> None:
    (results / "tiny" / "stand_ins.Noisy" / "defense.json").write_text("{")
    shard = results / "tiny" / "stand_ins.Guarded" / "step" / "000.json"
    shard.write_bytes(shard.read_bytes()[:-30])
    ended = verify(results)
    assert ended.code == 1
    assert "Noisy/defense.json" in line(ended, "stand_ins.Noisy × –") and "000.json" in line(
        ended, "stand_ins.Guarded × step"
    )
    assert "0 of 12 rows differ" in line(ended, "stand_ins.Means × step")


@pytest.mark.parametrize(("defense", "column", "change"), [("Means", "report_robust", 1), ("Noisy", "prediction", 1)])
def test_a_changed_row_is_found(results: Path, defense: str, column: str, change: int) -> None:
    path = Store(results, "tiny").shard_path(f"stand_ins.{defense}", "step", 1)
    record = json.loads(path.read_text())
    where = record["columns"].index(column)
    record["rows"][2][where] += change
    path.write_text(json.dumps(record))
    ended = verify(results)
    assert ended.code == 1
    assert "1 of 12 rows differ" in line(ended, f"stand_ins.{defense} × step")
    assert "0 of 12 rows differ" in line(ended, "stand_ins.Guarded × step")


def test_changed_images_are_found(results: Path) -> None:
    path = Store(results, "tiny").shard_path("stand_ins.Means", "step", 0).with_suffix(".safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    ended = verify(results)
    assert ended.code == 1
    assert "SHA-256" in line(ended, "stand_ins.Means × step")


def test_a_defense_that_is_not_here_cannot_be_confirmed(results: Path) -> None:
    path = Store(results, "tiny").defense_folder("stand_ins.Means") / "defense.json"
    path.write_text(path.read_text().replace("stand_ins.py:Means", "stand_ins.py:Gone"))
    ended = verify(results)
    assert ended.code == 1
    assert "Gone" in line(ended, "stand_ins.Means")


def test_a_suite_without_results_is_an_error(tmp_path: Path) -> None:
    ended = verify(tmp_path)
    assert ended.code == 2
    assert ended.err.startswith("error: no results of suite 'tiny'") and len(ended.err.splitlines()) == 1
