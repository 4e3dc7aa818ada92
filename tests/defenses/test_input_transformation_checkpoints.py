"""The shipped digits checkpoints of the input transformations: adapted attacks break what naive ones do not."""

from __future__ import annotations

import pytest
from shipped import DATA, accuracy, load, under_attack

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


@pytest.mark.parametrize("name", CLEAN)
def test_clean_accuracy(name: str) -> None:
    some = DATA.test.take(200)
    assert accuracy(load(name), some.x, some.y) >= CLEAN[name]


@pytest.mark.parametrize("name", ["median-smoothing", "gaussian-smoothing", "wavelet-denoising"])
def test_what_is_differentiable_falls_to_plain_pgd(name: str) -> None:
    assert under_attack(load(name), "exact", 20) <= 0.1


@pytest.mark.parametrize(
    ("name", "left"), [("bit-depth", 0.02), ("tv-minimization", 0.2), ("image-quilting", 0.3), ("thermometer", 0.02)]
)
def test_what_cuts_the_graph_falls_to_what_it_declares(name: str, left: float) -> None:
    defense = load(name)
    assert under_attack(defense, "exact", 3) >= 0.8
    assert under_attack(defense, {"eot": {"samples": 4, "of": {"bpda": "first"}}}, 10) <= left


def test_random_crops_fall_to_averaged_gradients() -> None:
    assert under_attack(load("crop-rescale"), EOT, 20) <= 0.1


def test_k_winners_fall_at_this_radius_even_to_plain_gradients() -> None:
    assert under_attack(load("k-wta"), "exact", 20) <= 0.1
