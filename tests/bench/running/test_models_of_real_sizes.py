"""Models as people bring them, of real sizes, from the command line to the table: a few images, tiny budgets.

The models of ``docs/submit-a-defense.md`` are evaluated where its commands are followed (``tests/docs``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import elsewhere
import numpy as np
import pytest
import torch
import yaml
from stand_ins import Ended, run_bench

from bench.summary.numbers import DefenseSummary
from bench.summary.summarise import summarise

ATTACKS: dict[str, Any] = {
    "noise": {"draws": 2},
    "pgd": {"steps": 3},
    "autoattack": {"steps": 3, "targets": 1, "queries": 10},
    "cascade": {"steps": 2, "targets": 1, "restarts": 0, "queries": 10},
    "hopskipjump": {"queries": 40},
}
LIGHT = {name: ATTACKS[name] for name in ("noise", "pgd")} | {"square": {"queries": 10}}


def evaluate(folder: Path, model: str, shape: elsewhere.Shape, n: int, attacks: dict[str, Any] = ATTACKS) -> Ended:
    """``bench evaluate`` on images in a file, labelled as the sound model of this size classifies them."""
    sound = {elsewhere.GREY: "grey_cnn", elsewhere.COLOUR: "colour_resnet", elsewhere.LARGE: "large"}[shape]
    x = elsewhere.images(shape, n)
    with torch.no_grad():
        logits = getattr(elsewhere, sound)()(x)
    np.savez(folder / "mine.npz", x=(x * 255).byte().numpy(), y=logits.argmax(1), num_classes=logits.shape[1])
    suite = {
        "data": f"file:{folder / 'mine.npz'}", "examples": None, "seed": 1, "shard_size": 8,
        "threat_model": {"norm": "linf", "eps": 0.1}, "reference": f"{elsewhere.__file__}:{sound}", "attacks": attacks,
    }  # fmt: skip
    (folder / "bench.yaml").write_text(yaml.safe_dump({"suites": {"tiny": suite}}))
    where = ["--suite", "tiny", "--config", folder / "bench.yaml", "--results", folder / "results", "--device", "cpu"]
    return run_bench("evaluate", "--defense", f"{elsewhere.__file__}:{model}", *where)


def summary(folder: Path) -> DefenseSummary:
    (found,) = summarise(folder / "results", "tiny").defenses
    return found


@pytest.mark.parametrize(("model", "shape", "n"), [
    ("grey_cnn", elsewhere.GREY, 12),
    ("colour_resnet", elsewhere.COLOUR, 12),
    ("large", elsewhere.LARGE, 4),
    ("hugging_face", elsewhere.COLOUR, 12),
])  # fmt: skip
def test_a_sound_model_is_evaluated_whole_and_without_a_warning_of_its_own(
    tmp_path: Path, model: str, shape: elsewhere.Shape, n: int
) -> None:
    attacks = LIGHT if shape == elsewhere.LARGE else ATTACKS
    ended = evaluate(tmp_path, model, shape, n, attacks)
    assert ended.code == 0, ended.err
    found = summary(tmp_path)
    assert found.complete
    assert {attack.record.name: attack.status for attack in found.attacks} == dict.fromkeys(attacks, "complete")
    assert found.standard.value == 1.0 and found.standard.n == n
    assert found.worst_case.value == 0.0, "eps 0.1 fools a network of random weights"
    # That it is not isolated is how these tests are run.
    assert [flag.id for flag in found.flags if flag.kind == "warning"] == ["not-isolated"]
    assert f"elsewhere.{model}" in ended.out


def test_a_model_of_fewer_classes_than_the_data_is_a_clear_line(tmp_path: Path) -> None:
    ended = evaluate(tmp_path, "colour_resnet", elsewhere.LARGE, 2)
    assert ended.code == 2 and "expected logits of shape (2, 1000), got (2, 10)" in ended.err
    assert not (tmp_path / "results").exists()


def test_half_precision_is_a_clear_line_and_nothing_is_written(tmp_path: Path) -> None:
    ended = evaluate(tmp_path, "half", elsewhere.COLOUR, 4)
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert "its weights are float16, inputs are float32: call .float() on the model" in line
    assert not (tmp_path / "results").exists()


def test_probabilities_are_flagged(tmp_path: Path) -> None:
    assert evaluate(tmp_path, "probabilities", elsewhere.COLOUR, 12, LIGHT).code == 0
    found = summary(tmp_path)
    assert found.complete and found.standard.value == 1.0
    assert "probabilities" in {flag.id for flag in found.flags}


def test_a_model_at_chance_is_flagged_with_what_usually_causes_it(tmp_path: Path) -> None:
    assert evaluate(tmp_path, "at_chance", elsewhere.COLOUR, 12, LIGHT).code == 0
    found = summary(tmp_path)
    (flag,) = [flag for flag in found.flags if flag.id == "chance"]
    assert found.standard.value == 0.0
    assert "labels in another order" in flag.text and flag.kind == "warning"
