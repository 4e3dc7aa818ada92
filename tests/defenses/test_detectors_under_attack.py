"""Every shipped detector under every attack that knows detectors, at the sizes of MNIST and CIFAR-10."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lab import assert_feasible, make_target
from torch import Tensor

from bench.contracts.defense import DefenseSpec, freeze
from bench.contracts.detector import Detector, WithDetector
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.seeding import seeded
from bench.plugins.references import resolve
from bench.plugins.registry import DEFENSES
from bench.plugins.resolve import build_defense, get_attack

GREY = DataInfo("grey", InputSpec((1, 28, 28), levels=256), 10)
COLOUR = DataInfo("colour", InputSpec((3, 32, 32), levels=256), 10)
NAMES = [name for name in DEFENSES.built_in() if issubclass(resolve(name), Detector)]  # type: ignore[arg-type]
PARAMS: dict[str, dict[str, Any]] = {
    "odds": {"samples": 2}, "dropout-uncertainty": {"passes": 2}, "density-and-uncertainty": {"passes": 2},
    "detector-ensemble": {"members": "kernel-density+mahalanobis"},
}  # fmt: skip
#: Attacks with budgets that only show that they run.
ATTACKS: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 2},
    "orthogonal-pgd": {"steps": 2},
    "grid-pgd": {"steps": 2},
    "combined-pgd": {"steps": 1, "searches": 2},
    "logit-matching": {"steps": 2, "samples": 2, "noise": 0.02},
    "cascade": {"steps": 1, "targets": 1, "restarts": 0, "rounds": 0, "halvings": 0, "queries": 2},
    "autoattack": {"steps": 1, "targets": 1, "queries": 2},
}
N = 2


def _guarded(name: str, info: DataInfo) -> tuple[WithDetector, Tensor, Tensor]:
    """A detector without training before a small network; whole grey levels, and the classes that it gives them."""
    with seeded("weights"):
        params = {"classifier": "tests/helpers/small_network.py:Small", **PARAMS.get(name, {})}
        made = freeze(build_defense(DefenseSpec(name, params), info))
    assert isinstance(made, WithDetector)
    for buffer in made.detector.buffers():
        if buffer.is_floating_point() and not buffer.any():  # untrained it knows nothing: all is equally far from that
            buffer.copy_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(2)))
    x = torch.randint(256, (N, *info.shape), generator=torch.Generator().manual_seed(1)) / 255
    return made, x, made(x).argmax(1)


@pytest.mark.parametrize("info", [GREY, COLOUR], ids=lambda info: info.name)
@pytest.mark.parametrize("name", NAMES)
def test_every_attack_that_knows_detectors_runs_on_it(name: str, info: DataInfo) -> None:
    defense, x, y = _guarded(name, info)
    seen: list[int] = []
    detect = defense.detect
    assert detect is not None

    def noting(images: Tensor) -> Tensor:
        seen.append(len(images))
        return detect(images)

    defense.detect = noting  # type: ignore[method-assign, assignment]
    with torch.no_grad(), seeded("threshold"):
        threshold = float(detect(x).sort().values[0])  # one of the images is at the threshold, the other above
    for attack, params in ATTACKS.items():
        spec = get_attack(attack)
        target = make_target(
            defense, N, spec.knowledge, eps=0.1, threshold=threshold, randomized=defense.randomized, batch_size=64
        )
        seen.clear()
        with seeded(attack):
            x_adv = spec.function(target, x, y, **spec.check(params, attack))
        assert_feasible(target, x, x_adv)
        assert seen, f"{attack} never looked at the score"
        assert target.counts.backward.sum() > 0
        assert not target.counts.notes, attack
