"""`bench gradients`: measured, stored beside the results, shown on the page of the very defense that was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_bench import STEP, Bench
from stand_ins import run_bench

from bench.data.load import load_data
from bench.studies.input_gradients.record import read, write
from leaderboard import build


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path / "work").configure({"step": STEP})
    assert bench.evaluate("Means").code == 0
    return bench


def _measure(bench: Bench, name: str) -> tuple[int, str, str]:
    arguments = [part if part != "evaluate" else "gradients" for part in bench.arguments(name)]
    ended = run_bench(*arguments)
    return ended.code, ended.out, ended.err


def test_the_measurement_of_a_linear_model_is_stored_and_shown(bench: Bench, tmp_path: Path) -> None:
    code, out, _ = _measure(bench, "Means")
    assert code == 0
    assert "12 examples" in out and "all (64 pixels), linf 0.2: " in out
    record = read(bench.store, "stand_ins.Means")
    assert record is not None and record.n == 12 and record.provenance is not None
    heat = torch.tensor(record.heat_map)
    # A pixel that is black in every training image has the same weight, zero, for every class: no gradient.
    never = load_data("digits").train.x.amax(0)[0] == 0
    assert never.any() and heat[never].max() == 0 < heat[~never].max()
    accuracy = {(entry.pixels, entry.norm): entry.accuracy for entry in record.accuracies}
    assert accuracy["all", "linf"] <= min(accuracy["top", "linf"], accuracy["rest", "linf"])
    assert accuracy["top", "linf"] < accuracy["none", "linf"]
    build(bench.results, tmp_path / "site")
    page = next((tmp_path / "site").rglob("defenses/*.html")).read_text()
    assert "Input gradients" in page and "mean absolute input gradient" in page
    assert list((tmp_path / "site").rglob("gradients-heat.png"))


def test_a_measurement_of_another_defense_is_not_shown(bench: Bench, tmp_path: Path) -> None:
    assert _measure(bench, "Means")[0] == 0
    record = read(bench.store, "stand_ins.Means")
    assert record is not None
    other = record.defense.model_copy(update={"weights": "others"})
    write(bench.store, "stand_ins.Means", record.model_copy(update={"defense": other}))
    build(bench.results, tmp_path / "site")
    assert "Input gradients" not in next((tmp_path / "site").rglob("defenses/*.html")).read_text()


def test_a_defense_that_hides_its_gradient_is_refused(bench: Bench) -> None:
    code, _, err = _measure(bench, "Rounded")
    assert code == 2
    assert "that of Rounded is zero everywhere" in err
    assert read(bench.store, "stand_ins.Rounded") is None
