"""`bench verify`: stored numbers are confirmed, and every kind of tampering is noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_bench import points
from stand_ins import Ended, Means, plugin, run_bench, write_config

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


# -- rounded to grey levels -------------------------------------------------------------------------------------


def test_inputs_are_judged_as_files_would_hold_them(results: Path) -> None:
    """Full steps of 0.2 lie between the digits' 17 levels, which the ball holds up to 3/16."""
    from bench.contracts.inputs import InputSpec
    from bench.contracts.threat import Lp
    from bench.data.load import load_data
    from bench.upkeep.rounding import rounded

    data = load_data("digits")
    store = Store(results, "tiny")
    survive = fall = 0
    for number in store.shards("stand_ins.Means", "step"):
        shard = store.shard("stand_ins.Means", "step", number)
        assert shard is not None
        x = data.test.x[shard.start : shard.stop]
        x_adv = rounded(points(store, shard), x, InputSpec((1, 8, 8), levels=17), Lp("linf", 0.2))
        assert x_adv is not None and (16 * x_adv - (16 * x_adv).round()).abs().max() < 1e-4
        assert (x_adv - x).abs().max() <= 0.2
        guess = Means(data.info)(x_adv).argmax(1)
        for row, predicted in zip(shard.rows, guess.tolist(), strict=True):
            survive += predicted == row.label and not row.report_robust
            fall += predicted != row.label and bool(row.report_robust)
    said = line(verify(results), "stand_ins.Means × step")
    assert f"rounded to grey levels {survive + fall} change ({survive} survive, {fall} fall)" in said


def test_the_unattacked_input_is_not_rounded(results: Path) -> None:
    assert "rounded" not in line(verify(results), "stand_ins.Means × clean")


def test_what_was_found_is_kept_when_asked_for(results: Path, tmp_path: Path) -> None:
    path = results / "tiny" / "stand_ins.Means" / "verified.json"
    assert verify(results).code == 0 and not path.exists()
    assert verify(results, "--record").code == 0
    record = json.loads(path.read_text())
    assert (record["judged"], record["different"], record["rounded"], record["levels"]) == (36, 0, 24, 17)
    assert run_bench("leaderboard", "--results", results, "--out", tmp_path / "site").code == 0
    page = (tmp_path / "site" / "tiny" / "defenses" / "stand_ins.Means.html").read_text()
    assert "Rounded to 17 grey levels" in page and "of 24 adversarial inputs" in page


def test_a_part_is_not_kept(results: Path) -> None:
    ended = verify(results, "--record", "--attack", "step")
    assert ended.code == 2 and "--record" in ended.err and len(ended.err.splitlines()) == 1
    assert not list(results.rglob("verified.json"))
