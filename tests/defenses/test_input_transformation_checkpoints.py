"""The shipped digits checkpoints of the input transformations: adapted attacks break what naive ones do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attacks.pgd import pgd
from bench.data import load_data
from bench.defense import Defense, DefenseSpec
from bench.plugins import load_defense
from bench.seeding import generator, seeded
from bench.target import Target
from bench.threat import ThreatModel

DATA = load_data("digits")
THREAT = ThreatModel("linf", 0.2)
#: Clean accuracy that each must reach on 200 test images.
CLEAN = {
    "bit-depth": 0.95,
    "median-smoothing": 0.93,
    "gaussian-smoothing": 0.95,
    "wavelet-denoising": 0.95,
    "crop-rescale": 0.93,
    "tv-minimization": 0.9,
    "image-quilting": 0.9,
    "thermometer": 0.95,
    "k-wta": 0.95,
}
EOT = {"eot": {"samples": 4, "of": "exact"}}


def _load(name: str) -> Defense:
    return load_defense(DefenseSpec(name), DATA.info).defense.eval().requires_grad_(False)


def _accuracy(defense: Defense, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad(), seeded("score"):
        return (defense(x).argmax(1) == y).double().mean().item()


def _under_attack(defense: Defense, estimator: Any, steps: int) -> float:
    some = DATA.test.take(50)
    target = Target(
        defense, THREAT, len(some), knowledge="gradient", generator=generator(0), randomized=defense.randomized
    )
    with seeded("attack"):
        x_adv = pgd(target, some.x, some.y, steps=steps, estimator=estimator)
    return _accuracy(defense, x_adv, some.y)


@pytest.mark.parametrize("name", CLEAN)
def test_clean_accuracy(name: str) -> None:
    some = DATA.test.take(200)
    assert _accuracy(_load(name), some.x, some.y) >= CLEAN[name]


@pytest.mark.parametrize("name", ["median-smoothing", "gaussian-smoothing", "wavelet-denoising"])
def test_what_is_differentiable_falls_to_plain_pgd(name: str) -> None:
    assert _under_attack(_load(name), "exact", 20) <= 0.1


@pytest.mark.parametrize(
    ("name", "left"), [("bit-depth", 0.02), ("tv-minimization", 0.2), ("image-quilting", 0.3), ("thermometer", 0.02)]
)
def test_what_cuts_the_graph_falls_to_what_it_declares(name: str, left: float) -> None:
    defense = _load(name)
    assert _under_attack(defense, "exact", 3) >= 0.8
    assert _under_attack(defense, {"eot": {"samples": 4, "of": {"bpda": "first"}}}, 10) <= left


def test_random_crops_fall_to_averaged_gradients() -> None:
    assert _under_attack(_load("crop-rescale"), EOT, 20) <= 0.1


def test_k_winners_fall_at_this_radius_even_to_plain_gradients() -> None:
    assert _under_attack(_load("k-wta"), "exact", 20) <= 0.1
