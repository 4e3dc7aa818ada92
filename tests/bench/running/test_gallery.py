"""The gallery: for each example the adversarial input it survives least, as images that can be looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from small_bench import points
from stand_ins import plugin, run_bench, write_config
from torch import Tensor

from bench.data.load import load_data
from bench.running.gallery import SIZE
from bench.storing.records import DefenseRecord, ShardRecord
from bench.storing.store import Store

STEP, HALF = {"attack": plugin("one_step")}, {"attack": plugin("one_step"), "fraction": 0.05}


def evaluate(folder: Path, attacks: dict[str, Any], defense: str = "Means", **fields: Any) -> Store:
    config = write_config(folder / "bench.yaml", attacks, **fields)
    where = ["--suite", "tiny", "--config", config, "--results", folder / "results", "--device", "cpu"]
    assert run_bench("evaluate", *where, "--defense", plugin(defense)).code == 0
    return Store(folder / "results", "tiny")


def opened(store: Store, defense: str = "stand_ins.Means") -> tuple[DefenseRecord, dict[str, Tensor]]:
    record = store.defense(defense)
    assert record is not None
    path = store.defense_folder(defense) / "gallery.safetensors"
    return record, safetensors.torch.load_file(path) if path.exists() else {}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return evaluate(tmp_path_factory.mktemp("gallery"), {"half": HALF, "step": STEP}, "Noisy", seed=1)


def test_entries_are_the_first_examples_that_are_right_when_clean(store: Store) -> None:
    record, images = opened(store, "stand_ins.Noisy")
    clean = [row for n in range(3) for row in _shard(store, "clean", n).rows]
    right = [row.id for row in clean if row.prediction == row.label]
    assert [entry.id for entry in record.gallery] == right[:SIZE]
    assert all(entry.clean_prediction == entry.label for entry in record.gallery)
    assert {len(value) for value in images.values()} == {len(record.gallery)}


def _shard(store: Store, attack: str, number: int) -> ShardRecord:
    record = store.shard("stand_ins.Noisy", attack, number)
    assert record is not None
    return record


def test_the_images_are_x_and_the_stored_x_adv_of_the_named_attack(store: Store) -> None:
    record, images = opened(store, "stand_ins.Noisy")
    examples = load_data("digits").test.take(12)
    assert {entry.attack for entry in record.gallery} == {"half", "step"} or record.gallery[0].attack == "step"
    for i, entry in enumerate(record.gallery):
        position = examples.ids.index(entry.id)
        shard = _shard(store, entry.attack, position // 4)
        assert torch.equal(images["x"][i], examples.x[position])
        assert torch.equal(images["x_adv"][i], points(store, shard)[position % 4])
        row = shard.rows[position % 4]
        assert entry.adversarial_prediction == row.prediction
        others = [_shard(store, attack, position // 4).rows[position % 4] for attack in ("half", "step")]
        assert row.report_robust == min(other.report_robust for other in others)


def test_the_transform_is_shown_too(store: Store) -> None:
    _, images = opened(store, "stand_ins.Noisy")
    assert images["g_x"].shape == images["x"].shape
    assert 0.05 < (images["g_x"] - images["x"]).std() < 0.2  # the noise of the defense
    assert not torch.equal(images["g_x_adv"], images["g_x"])


def test_the_gallery_is_the_same_in_every_run(store: Store, tmp_path: Path) -> None:
    again = evaluate(tmp_path, {"half": HALF, "step": STEP}, "Noisy", seed=1)
    assert opened(again, "stand_ins.Noisy")[0].gallery == opened(store, "stand_ins.Noisy")[0].gallery
    for name, value in opened(again, "stand_ins.Noisy")[1].items():
        assert torch.equal(value, opened(store, "stand_ins.Noisy")[1][name])


@pytest.mark.parametrize("attack", ["outside", "misshapen"])
def test_refused_inputs_are_not_shown(tmp_path: Path, attack: str) -> None:
    record, images = opened(evaluate(tmp_path, {"bad": {"attack": plugin(attack)}}))
    assert (record.gallery, images) == ([], {})


def test_sanity_checks_are_not_shown(tmp_path: Path) -> None:
    record, _ = opened(evaluate(tmp_path, {"step": HALF, "large": {**STEP, "eps": 1.0}}))
    assert {entry.attack for entry in record.gallery} == {"step"}


def test_damaged_images_are_left_out(tmp_path: Path) -> None:
    store = evaluate(tmp_path, {"step": STEP})
    before, _ = opened(store)
    path = store.shard_path("stand_ins.Means", "step", 0).with_suffix(".safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    after, images = opened(evaluate(tmp_path, {"step": STEP}))
    assert 0 < len(images["x"]) == len(after.gallery)
    first_shard = set(load_data("digits").test.take(4).ids)
    assert first_shard & {entry.id for entry in before.gallery}
    assert not first_shard & {entry.id for entry in after.gallery}
