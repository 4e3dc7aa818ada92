"""Checkpoints: what was saved comes back, and anything else is refused with one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import bench
import bench.contracts.defense
from bench.contracts.defense import Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.storing.checkpoints import checkpoint_path, load_, record_path, save

INFO = DataInfo("toy", InputSpec((1, 2, 2)), 3)


class _Linear(Defense):
    def __init__(self, data: DataInfo, classes: int = 3) -> None:
        super().__init__(data)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(4, classes), nn.BatchNorm1d(classes))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[_Linear, Path]:
    defense = _Linear(INFO)
    path = checkpoint_path(defense, "linear(classes=3)", tmp_path)
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
    path = checkpoint_path(defense, "a b/c", None)
    assert path == Path(bench.__file__).resolve().parent / "checkpoints" / "a-b-c" / "toy.safetensors"


def test_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    defense = _Linear(INFO)
    with pytest.raises(InputError, match=r"does not exist; make it with `bench train --defense linear --suite SUITE`"):
        load_(defense, checkpoint_path(defense, "linear", tmp_path))
    with pytest.raises(InputError, match=r"--defense linear --set a=1 --set b=x --suite SUITE` \(a suite on toy\)"):
        load_(defense, checkpoint_path(defense, "linear(a=1,b=x)", tmp_path))


def test_changed_bytes_are_refused(saved: tuple[_Linear, Path]) -> None:
    defense, path = saved
    expected = json.loads(record_path(path).read_text())["sha256"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    before = {k: v.clone() for k, v in defense.state_dict().items()}
    with pytest.raises(InputError, match=rf"toy\.safetensors: SHA-256 is [0-9a-f]{{64}}, its record says {expected}"):
        load_(defense, path)
    assert all(torch.equal(v, before[k]) for k, v in defense.state_dict().items())


def test_missing_or_damaged_record(saved: tuple[_Linear, Path]) -> None:
    defense, path = saved
    record_path(path).write_text("{")
    with pytest.raises(InputError, match=r"record toy\.json is missing or damaged"):
        load_(defense, path)


def test_other_shape_and_other_keys(saved: tuple[_Linear, Path]) -> None:
    _, path = saved
    with pytest.raises(InputError, match=r"classifier\.1\.bias has shape \(3,\), the defense needs \(4,\)"):
        load_(_Linear(INFO, classes=4), path)
    bare = bench.contracts.defense.BareModel(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), INFO)
    with pytest.raises(InputError, match=r"has a tensor classifier\.2\.bias that the defense lacks"):
        load_(bare, path)
