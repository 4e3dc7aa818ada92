"""Defenses that are built for waveforms as well, and those that say that they take images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from waveforms import INFO, tones

from bench.contracts.defense import DefenseSpec
from bench.contracts.errors import InputError
from bench.contracts.threat import Lp
from bench.plugins.registry import DEFENSES
from bench.plugins.resolve import build_defense
from bench.training.recipe import TrainingRun
from defenses.parts.recipes import augmentation_for

#: Nothing of theirs is about images.
ANY = ["none", "madry", "trades", "free-at", "fast-at"]


@pytest.mark.parametrize("name", DEFENSES.built_in())
def test_a_defense_takes_waveforms_or_says_that_it_takes_images(name: str) -> None:
    if name in ANY:
        defense = build_defense(DefenseSpec(name), INFO)
        x = tones().test.x[:2].clone().requires_grad_()
        logits = defense(x)
        assert logits.shape == (2, 3)
        (grad,) = torch.autograd.grad(logits.sum(), x)
        assert (grad.flatten(1).abs().sum(1) > 0).all()
    else:
        with pytest.raises(InputError, match="takes images; the inputs of tones are waveforms"):
            build_defense(DefenseSpec(name), INFO)


def test_a_network_for_images_is_refused() -> None:
    with pytest.raises(InputError, match="network 'resnet18' takes images"):
        build_defense(DefenseSpec("none", {"network": "resnet18"}), INFO)
    assert augmentation_for(INFO) is None


@pytest.mark.parametrize("name", ["none", "trades"])
def test_recipes_train_on_waveforms(name: str, tmp_path: Path) -> None:
    data, threat = tones(), Lp("linf", 0.05, -1.0, 1.0)
    torch.manual_seed(0)
    defense = build_defense(DefenseSpec(name, {"steps": 1} if name == "trades" else {}), data.info)
    defense.fit(TrainingRun(data.train, data.validation, data.info, threat, 0, torch.device("cpu"), tmp_path))
    with torch.no_grad():
        right = defense.eval()(data.test.x).argmax(1) == data.test.y
    assert right.float().mean() > 0.8
