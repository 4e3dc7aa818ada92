"""The page that says how published numbers are made again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.reference import reproduce

ROOT = Path(__file__).parents[3]


def _checkpoint(folder: Path, *, defense: str, data: str, threat: dict[str, object] | None, **fields: object) -> None:
    stages = [{"name": "training", "epochs": 5, "seconds": 60.0}]
    training = {"defense": defense, "data": data, "threat": threat, "seconds": 90.0, "params": {}, "stages": stages}
    place = folder / "defenses" / "checkpoints" / defense / f"{data}.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({"size": 2000, "num_parameters": 1000, "training": training | fields}))


def test_each_training_says_its_command_and_time(tmp_path: Path) -> None:
    ball = {"norm": "l2", "eps": 0.5}
    _checkpoint(tmp_path, defense="madry", data="cifar10", threat=ball, validation_accuracy=0.7)
    _checkpoint(tmp_path, defense="none", data="cifar10", threat=None, params={"network": "resnet8"})
    _checkpoint(tmp_path, defense="trades", data="digits", threat=None)
    text = reproduce.reference(tmp_path)
    assert "`bench train --suite cifar10-l2 --defense madry --half` | 1,000 | 5 of training | 70.0 % | 2 min |" in text
    assert "`bench train --suite cifar10 --defense none --set network=resnet8 --half`" in text
    assert "`bench train --all --suite digits` (1 training)" in text
    assert "trades" not in text


@pytest.mark.parametrize("published", sorted(path.parent.name for path in (ROOT / "results").glob("*/suite.json")))
def test_every_published_suite_is_there(published: str) -> None:
    text = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    assert f"--suite {published} --results results`" in text, "write it again: make docs"


def test_every_published_study_is_there() -> None:
    studies = reproduce._studies(ROOT / "results")
    assert "losses.json" in studies and "transformation.json" in studies and "input_gradients.json" in studies
    assert studies in (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8"), "write it again: make docs"


def test_a_study_says_its_command_as_it_is_to_be_given(tmp_path: Path) -> None:
    place = tmp_path / "digits" / "none" / "losses.json"
    place.parent.mkdir(parents=True)
    command = "bench study losses --data folder:here --results mine --images 5"
    place.write_text(json.dumps({"provenance": {"command": command}}))
    expected = "| `bench study losses --data folder:DIR --results results --images 5` | `digits/none/losses.json` |"
    assert expected in reproduce._studies(tmp_path)


def test_every_published_training_beyond_digits_is_there() -> None:
    assert reproduce._weights(ROOT / "defenses" / "checkpoints") in (ROOT / "docs" / "reproduce.md").read_text(
        encoding="utf-8"
    ), "write it again: make docs"
