"""Checkpoints: what was saved comes back, and anything else is refused with one line."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import bench
import bench.contracts.defense
from bench.contracts.defense import Defense, DefenseSpec
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.threat import Lp
from bench.storing.checkpoints import (
    TrainingSettings,
    checkpoint_path,
    find_checkpoint,
    load_,
    record_path,
    save,
)
from bench.storing.names import slug

INFO = DataInfo("toy", InputSpec((1, 2, 2)), 3)
SETTINGS = TrainingSettings("toy", 1, Lp("linf", 0.1), seed=1)


class _Linear(Defense):
    def __init__(self, data: DataInfo, classes: int = 3) -> None:
        super().__init__(data)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(4, classes), nn.BatchNorm1d(classes))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[_Linear, Path]:
    defense = _Linear(INFO)
    path = checkpoint_path(defense, "linear(classes=3)", SETTINGS, tmp_path)
    save(defense, path, {"seconds": 1.5})
    return defense, path


def test_round_trip(saved: tuple[_Linear, Path]) -> None:
    defense, path = saved
    other = _Linear(INFO)
    loaded = load_(other, path)
    assert loaded.training == {"seconds": 1.5}
    for name, tensor in defense.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    record = json.loads(record_path(path).read_text())
    assert record["sha256"] == loaded.sha256
    assert record["size"] == path.stat().st_size
    assert record["num_parameters"] == 4 * 3 + 3 + 6
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".json", ".safetensors"]


def test_default_folder_is_that_of_the_whole_package() -> None:
    defense = bench.contracts.defense.BareModel(nn.Identity(), INFO)
    path = checkpoint_path(defense, "a b/c", SETTINGS)
    assert path.parent == Path(bench.__file__).resolve().parent / "checkpoints" / slug("a b/c")
    assert re.fullmatch(r"toy-linf-0\.1-[0-9a-f]{8}\.safetensors", path.name)


# -- which weights are meant ----------------------------------------------------------------------------------


def _name(settings: TrainingSettings, defense: Defense | None = None, name: str = "linear") -> str:
    return checkpoint_path(defense or _Linear(INFO), name, settings, Path("weights")).name


def _train(settings: TrainingSettings, spec: DefenseSpec) -> Path:
    """A checkpoint without training."""
    defense = _Linear(INFO)
    path = checkpoint_path(defense, spec.name, settings, spec.checkpoints)
    save(defense, path, settings.identity(defense, spec.name))
    return path


def test_whatever_decides_the_weights_changes_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [
        _name(replace(SETTINGS, data_version=2)),
        _name(replace(SETTINGS, data="toy2")),
        _name(replace(SETTINGS, threat=Lp("l2", 0.1))),
        _name(replace(SETTINGS, threat=Lp("linf", 0.1000001))),  # which is shown as 0.1
        _name(replace(SETTINGS, seed=2)),
        _name(SETTINGS, name="linear(classes=3)"),
    ]
    monkeypatch.setattr(_Linear, "recipe_version", 2)
    others.append(_name(SETTINGS))
    monkeypatch.undo()
    assert len({_name(SETTINGS), *others}) == 8
    assert _name(replace(SETTINGS, options="--suite other")) == _name(SETTINGS)
    assert _name(replace(SETTINGS, threat=Lp("linf", 0.1, -1.0, 1.0))) == _name(SETTINGS)  # the data's box


def test_a_recipe_without_the_threat_model_has_one_name_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Linear, "trains_in_ball", False)
    assert re.fullmatch(r"toy-[0-9a-f]{8}\.safetensors", _name(SETTINGS))
    assert _name(SETTINGS) == _name(replace(SETTINGS, threat=Lp("l2", 1.0))) == _name(replace(SETTINGS, threat=None))


def test_the_settings_of_a_record_are_those_that_it_was_made_with() -> None:
    assert TrainingSettings.of_record(SETTINGS.identity(_Linear(INFO), "linear")) == SETTINGS
    assert TrainingSettings.of_record({}) is None


def test_weights_of_another_threat_model_are_not_taken(tmp_path: Path) -> None:
    spec, defense = DefenseSpec("linear", checkpoints=tmp_path), _Linear(INFO)
    linf = _train(SETTINGS, spec)
    wanted = replace(SETTINGS, threat=Lp("l2", 0.5), any_seed=True, options="--suite round")
    with pytest.raises(InputError) as refused:
        find_checkpoint(defense, spec, wanted)
    assert f"make it with `bench train --defense linear --checkpoints {tmp_path} --suite round`" in str(refused.value)
    assert "there are weights for toy, linf 0.1, seed 1, which `trained_for` in the suite" in str(refused.value)
    l2 = _train(wanted, spec)
    assert linf != l2 and find_checkpoint(defense, spec, wanted) == l2
    assert find_checkpoint(defense, spec, SETTINGS) == linf


def test_weights_of_another_seed_are_taken_where_nothing_else_fits(tmp_path: Path) -> None:
    spec, defense = DefenseSpec("linear", checkpoints=tmp_path), _Linear(INFO)
    first = _train(SETTINGS, spec)
    wanted = replace(SETTINGS, seed=7)
    with pytest.raises(InputError, match="does not exist"):
        find_checkpoint(defense, spec, wanted)
    assert find_checkpoint(defense, spec, replace(wanted, any_seed=True)) == first
    _train(replace(SETTINGS, seed=2), spec)
    with pytest.raises(InputError, match=r"there are weights for (.*seed 1.*seed 2|.*seed 2.*seed 1)"):
        find_checkpoint(defense, spec, replace(wanted, any_seed=True))
    own = _train(wanted, spec)
    assert find_checkpoint(defense, spec, replace(wanted, any_seed=True)) == own


def test_without_settings_the_only_checkpoint_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, defense = DefenseSpec("linear", checkpoints=tmp_path), _Linear(INFO)
    only = _train(SETTINGS, spec)
    _train(replace(SETTINGS, data="other"), spec)
    assert find_checkpoint(defense, spec, None) == only
    _train(replace(SETTINGS, threat=Lp("l2", 1.0)), spec)
    with pytest.raises(InputError, match=r"linear: has several checkpoints \(toy, l.*; toy, l.*\)"):
        find_checkpoint(defense, spec, None)
    monkeypatch.setattr(_Linear, "recipe_version", 2)
    with pytest.raises(InputError, match="does not exist"):
        find_checkpoint(defense, spec, None)


def test_missing_file_says_how_to_make_it() -> None:
    defense = _Linear(INFO)
    with pytest.raises(InputError, match=r"does not exist; make it with `bench train --defense linear --suite SUITE`"):
        find_checkpoint(defense, DefenseSpec("linear"), SETTINGS)
    spec = DefenseSpec("plugins/my file.py:Linear", {"a": 1, "b": "x y"})
    command = "bench train --defense 'plugins/my file.py:Linear' --set a=1 --set 'b=x y' --suite SUITE"
    with pytest.raises(InputError, match=rf"make it with `{re.escape(command)}` \(a suite on toy\)"):
        find_checkpoint(defense, spec, None)


# -- what is in it --------------------------------------------------------------------------------------------


def test_changed_bytes_are_refused(saved: tuple[_Linear, Path]) -> None:
    defense, path = saved
    expected = json.loads(record_path(path).read_text())["sha256"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    before = {k: v.clone() for k, v in defense.state_dict().items()}
    with pytest.raises(InputError, match=rf"{path.name}: SHA-256 is [0-9a-f]{{64}}, its record says {expected}"):
        load_(defense, path)
    assert all(torch.equal(v, before[k]) for k, v in defense.state_dict().items())


def test_missing_or_damaged_record(saved: tuple[_Linear, Path]) -> None:
    defense, path = saved
    record_path(path).write_text("{")
    with pytest.raises(InputError, match=rf"record {path.stem}\.json is missing or damaged"):
        load_(defense, path)


def test_other_shape_and_other_keys(saved: tuple[_Linear, Path]) -> None:
    _, path = saved
    with pytest.raises(InputError, match=r"classifier\.1\.bias has shape \(3,\), the defense needs \(4,\)"):
        load_(_Linear(INFO, classes=4), path)
    bare = bench.contracts.defense.BareModel(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), INFO)
    with pytest.raises(InputError, match=r"has a tensor classifier\.2\.bias that the defense lacks"):
        load_(bare, path)
