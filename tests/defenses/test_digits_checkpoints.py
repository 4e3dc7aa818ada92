"""The shipped digits checkpoints: they load, classify, and fall or stand as the literature says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shipped import DATA, THREAT, accuracy, load, under_attack

from attacks.gradient.pgd import pgd
from bench.contracts.defense import Defense, DefenseSpec
from bench.contracts.seeding import generator
from bench.contracts.target import Target
from bench.plugins.resolve import load_defense

#: Clean accuracy that each must reach on 200 test images.
CLEAN = {
    "none": 0.95,
    "madry": 0.95,
    "jpeg": 0.95,
    "random-resize-pad": 0.95,
    "feature-squeezing": 0.95,
    "ours": 0.87,
    "ours(mode=untargeted)": 0.87,
    "ours(random_start=False)": 0.75,
    "ours(mode=untargeted,random_start=False)": 0.75,
}


def _load(name: str) -> Defense:
    base, _, params = name.rstrip(")").partition("(")
    values: dict[str, Any] = dict(p.split("=") for p in params.split(",")) if params else {}
    if "random_start" in values:
        values["random_start"] = values["random_start"] == "True"
    assert DefenseSpec(base, values).name == name
    return load(base, **values)


def _under_attack(name: str, estimator: Any, steps: int = 10) -> float:
    return under_attack(_load(name), estimator, steps)


@pytest.mark.parametrize("name", CLEAN)
def test_clean_accuracy(name: str) -> None:
    some = DATA.test.take(200)
    assert accuracy(_load(name), some.x, some.y) >= CLEAN[name]


def test_checkpoint_carries_its_training_record() -> None:
    loaded = load_defense(DefenseSpec("madry"), DATA.info)
    assert loaded.training["threat"] == {"norm": "linf", "eps": 0.2}
    assert loaded.training["seconds"] > 0
    assert loaded.checkpoint is not None
    assert loaded.checkpoint.stat().st_size < 1_000_000


def test_undefended_falls_and_adversarial_training_stands() -> None:
    assert _under_attack("none", "exact", steps=20) <= 0.06
    assert 0.5 <= _under_attack("madry", "exact", steps=20) <= 0.85


def test_jpeg_only_hides_its_gradient() -> None:
    assert _under_attack("jpeg", "exact") >= 0.9
    assert _under_attack("jpeg", "identity", steps=20) <= 0.1
    assert _under_attack("jpeg", {"bpda": "differentiable-jpeg"}, steps=20) <= 0.1


def test_random_resize_pad_falls_to_eot() -> None:
    assert _under_attack("random-resize-pad", {"eot": {"samples": 4, "of": "exact"}}) <= 0.1


@pytest.mark.parametrize("estimator", ["identity", {"bpda": "tanh"}, {"bpda": "softsign"}], ids=str)
def test_adversarial_transformation_falls_to_bpda(estimator: Any) -> None:
    assert _under_attack("ours", "exact") >= 0.6
    assert _under_attack("ours", {"eot": {"samples": 2, "of": estimator}}) <= 0.4


def test_feature_squeezing_detects_a_careless_attack() -> None:
    defense, some = _load("feature-squeezing"), DATA.test.take(100)
    assert defense.detect is not None
    target = Target(defense, THREAT, len(some), knowledge="gradient", generator=generator(0))
    x_adv = pgd(target, some.x, some.y, steps=10)
    with torch.no_grad():
        threshold = defense.detect(DATA.validation.x).quantile(0.95)
        assert (defense.detect(some.x) > threshold).double().mean() <= 0.12
        assert (defense.detect(x_adv) > threshold).double().mean() >= 0.5
