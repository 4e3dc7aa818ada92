"""Checkpoints that no suite evaluates are named, with the reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from torch import nn

from bench.contracts.defense import Defense, DefenseSpec
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.threat import Lp
from bench.plugins.resolve import build_defense
from bench.storing.checkpoints import TrainingSettings, checkpoint_path, record_path, save
from bench.suites.config import Config
from bench.suites.reading import load_config
from bench.training.unused import unused_checkpoints
from defenses.none import Undefended

REPOSITORY = Path(__file__).parents[3]
INFO = DataInfo("digits", InputSpec((1, 8, 8)), 10)
SETTINGS = TrainingSettings("digits", 1, Lp("linf", 0.2), seed=1)


class _Empty(Defense):
    def __init__(self, data: DataInfo) -> None:
        super().__init__(data)
        self.classifier = nn.Identity()


def _save(folder: Path, settings: TrainingSettings = SETTINGS, name: str = "mine") -> Path:
    defense = _Empty(INFO)
    path = checkpoint_path(defense, name, settings, folder)
    save(defense, path, settings.identity(defense, name))
    return path


def _suites(folder: Path, **fields: object) -> Config:
    suite = {"data": "digits", "threat_model": {"norm": "linf", "eps": 0.2}, "seed": 1, "attacks": {"noise": {}}}
    file = folder / "bench.yaml"
    file.write_text(yaml.safe_dump({"suites": {"one": {**suite, **fields}}}))
    return load_config(file)


def _found(folder: Path, config: Config) -> dict[Path, str]:
    own = [suite for suite in config.suites.values() if suite.origin != "shipped"]
    return {each.path: each.reason for each in unused_checkpoints(own, folder / "weights")}


def test_what_a_suite_asks_for_is_used(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    own, l2 = _save(weights), _save(weights, replace(SETTINGS, threat=Lp("l2", 0.5)))
    elsewhere = _save(weights, replace(SETTINGS, data="other"))
    assert _found(tmp_path, _suites(tmp_path)) == {
        elsewhere: "no suite has the data other",
        l2: "no suite on digits asks for weights trained for l2 0.5, seed 1",
    }
    other = _suites(tmp_path, threat_model={"norm": "l2", "eps": 1}, trained_for={"norm": "l2", "eps": 0.5})
    assert own in _found(tmp_path, other) and l2 not in _found(tmp_path, other)


def test_another_seed_is_used_while_the_suite_has_no_weights_of_its_own(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    other = _save(weights, replace(SETTINGS, seed=2))
    assert _found(tmp_path, _suites(tmp_path)) == {}
    strict = _suites(tmp_path, trained_for={"norm": "linf", "eps": 0.2, "seed": 1})
    assert list(_found(tmp_path, strict)) == [other]
    _save(weights)
    assert list(_found(tmp_path, _suites(tmp_path))) == [other]


def test_a_record_that_says_nothing_a_wrong_name_and_an_older_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights"
    damaged, renamed = _save(weights, name="a"), _save(weights, name="b")
    record_path(damaged).write_text("{")
    moved = renamed.with_name("digits.safetensors")
    renamed.rename(moved)
    record_path(renamed).rename(record_path(moved))
    undefended = build_defense(DefenseSpec("none"), INFO)
    old = checkpoint_path(undefended, "none", SETTINGS, weights)
    save(undefended, old, SETTINGS.identity(undefended, "none"))
    monkeypatch.setattr(Undefended, "recipe_version", 2)
    assert _found(tmp_path, _suites(tmp_path)) == {
        damaged: "its record is missing, damaged or does not say what it was trained for",
        moved: "its name is not the one that its record gives it",
        old: "the recipe's version was 1, is 2",
    }


def test_every_shipped_checkpoint_is_used_and_named_after_its_record() -> None:
    found = unused_checkpoints(load_config(REPOSITORY / "bench.yaml").suites.values())
    assert found == []
    kept = json.loads(next((REPOSITORY / "defenses/checkpoints/madry").glob("digits-linf-0.2-*.json")).read_text())
    assert kept["training"]["threat"] == {"norm": "linf", "eps": 0.2} and kept["training"]["recipe_version"] == 1
