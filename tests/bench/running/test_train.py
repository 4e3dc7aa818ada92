"""``bench train``: what is trained and where to, in parallel, the same whatever the number of workers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stand_ins import Ended, plugin, run_bench, write_config

STEP = {"step": {"attack": plugin("one_step")}}


def train(folder: Path, *more: object, workers: int | None = None, weights: str = "weights") -> Ended:
    config = write_config(folder / "bench.yaml", STEP)
    where = ["--suite", "tiny", "--config", config, "--checkpoints", folder / weights, "--device", "cpu"]
    return run_bench("train", *where, "--defense", plugin("Trained"), *more, workers=workers)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def test_it_says_what_it_trains_where_to_and_how_far_it_is(tmp_path: Path) -> None:
    ended = train(tmp_path)
    assert ended.code == 0, ended
    lines = ended.err.splitlines()
    ((name, _),) = files(tmp_path / "weights").items()
    assert lines[0].startswith("stand_ins.Trained: training on ") and "digits" in lines[0] and name in lines[0]
    assert lines[1].startswith("training: 0/1 trained")
    assert lines[-1].startswith("training: 1/1 trained")
    assert ended.out.startswith("stand_ins.Trained: trained, ") and name in ended.out


def test_what_is_trained_is_not_trained_again_unasked(tmp_path: Path) -> None:
    train(tmp_path)
    (path,) = (tmp_path / "weights").rglob("*.safetensors")
    before = path.stat().st_mtime_ns
    ended = train(tmp_path)
    assert ended.code == 0 and path.stat().st_mtime_ns == before
    (line,) = ended.out.splitlines()
    assert ended.err == "" and "trained before" in line and "--again" in line and path.name in line
    assert "Trained: trained, " in train(tmp_path, "--again").out
    assert path.stat().st_mtime_ns > before


def test_a_checkpoint_that_cannot_be_loaded_is_made_again(tmp_path: Path) -> None:
    train(tmp_path)
    (path,) = (tmp_path / "weights").rglob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert "cannot be loaded" in train(tmp_path).err
    assert path.read_bytes() == whole


def test_one_thread_whatever_was_set_and_the_same_weights_in_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.running.training.train_one", _threads)
    torch.set_num_threads(2)
    try:
        assert "trained, 1 threads" in train(tmp_path, weights="none").out
    finally:
        torch.set_num_threads(1)
    monkeypatch.undo()
    train(tmp_path, weights="here")
    train(tmp_path, weights="there", workers=2)
    assert files(tmp_path / "here") == files(tmp_path / "there") != {}


def _threads(*_: object) -> str:
    return f"{torch.get_num_threads()} threads"


def test_all_and_a_defense_contradict_each_other(tmp_path: Path) -> None:
    ended = train(tmp_path, "--all")
    assert ended.code == 2 and "--all: takes every defense, so --defense" in ended.err


def test_a_parameter_that_is_set_twice_is_refused(tmp_path: Path) -> None:
    ended = train(tmp_path, "--set", "scale=2", "--set", "scale=3")
    assert ended.code == 2 and "--set 'scale=3': scale is given twice (2 before)" in ended.err
