"""region: complete on tiny networks, by exhaustive search over all patterns; and the laws of all attacks."""

from __future__ import annotations

import builtins
import itertools
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from fingerprints import complaint, numbers
from lab import Linear, assert_feasible, length, linear_case, make_target
from piecewise_networks import Images, defense_of, perceptron
from registered import formula
from scipy.optimize import linprog
from torch import Tensor, nn

from attacks.adaptive.cascade import cascade
from attacks.adaptive.region import _Search, region
from attacks.toolkit.losses import margin
from attacks.toolkit.piecewise import PiecewiseLinear
from bench.contracts.defense import Defense
from bench.contracts.errors import NotApplicable
from bench.contracts.seeding import seeded
from bench.contracts.target import Target

highspy = pytest.importorskip("highspy", reason="needs HiGHS: pip install 'worst-case-bench[region]'")


def _perceptron(seed: int, *sizes: int) -> nn.Module:
    """Layers of the given sizes with random weights, in double precision; first kinks and boundaries meet near
    the middle of the box."""
    draw = torch.Generator().manual_seed(seed)
    model = perceptron(draw, *sizes).double()
    middle = model(torch.full((1, sizes[0]), 0.5).double())[0]
    model[-1].bias.sub_(middle - 0.1 * torch.randn(sizes[-1], generator=draw).double())
    return model


def _largest_margin(network: PiecewiseLinear, x: Tensor, y: int, eps: float) -> float:
    """The largest margin against y in the ball, by a linear program for every pattern and every other class."""
    best = -float("inf")
    low, high = (x - eps).clamp(0, 1).flatten(), (x + eps).clamp(0, 1).flatten()
    for pattern in itertools.product([False, True], repeat=len(network.slopes)):
        active = torch.tensor(pattern)
        affine = network.affine(active)
        sign = torch.where(active, 1.0, -1.0).double()
        reach = (sign[:, None] * affine.Z) @ ((low + high) / 2) + sign * affine.b + affine.Z.abs() @ ((high - low) / 2)
        for t in set(range(len(affine.a))) - {y} if (reach >= 0).all() else ():
            found = linprog(
                (affine.A[y] - affine.A[t]).numpy(), (-sign[:, None] * affine.Z).numpy(), (sign * affine.b).numpy(),
                bounds=torch.stack([low, high], 1).tolist(),
            )  # fmt: skip
            if found.status == 0:
                best = max(best, float(affine.a[t] - affine.a[y]) - found.fun)
    return best


@pytest.mark.parametrize(
    ("seed", "eps", "exists"),
    [(2, 0.3, False), (3, 0.15, False), (3, 0.3, True), (5, 0.15, False), (6, 0.05, False), (6, 0.15, True)],
)
def test_it_finds_a_point_in_a_tiny_network_if_and_only_if_there_is_one(seed: int, eps: float, exists: bool) -> None:
    model = _perceptron(seed, 3, 3, 2, 3)
    x = torch.rand(1, 1, 1, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = model(x).argmax(1)
    largest = _largest_margin(PiecewiseLinear(model, x), x, int(y), eps)
    assert (largest > 1e-3) == exists and abs(largest) > 1e-3, "an example to decide"
    target = make_target(defense_of(model, (1, 1, 3), 3), 1, "gradient", norm="linf", eps=eps)
    x_adv = region(target, x, y)
    assert_feasible(target, x, x_adv)
    assert bool(model(x_adv).argmax(1) != y) == exists


@pytest.mark.parametrize("n", [1, 3])
def test_a_linear_network_is_one_piece(n: int) -> None:
    case = linear_case(n, (1, 8, 8), "linf", rivals=3)
    target = case.target(1.02, "gradient")
    x_adv = region(target, case.x, case.y)
    assert_feasible(target, case.x, x_adv)
    assert case.fooled(x_adv).all()
    assert not case.fooled(region(case.target(0.98, "gradient"), case.x, case.y, rounds=2)).any()


def _hard(number: int) -> tuple[nn.Module, Tensor, Tensor, float]:
    """A small CNN, adversarially trained on digits of 28 by 28 pixels; an image, a radius at which it barely falls."""
    stored = np.load(Path(__file__).parent / "hard_instances.npz")
    model = nn.Sequential(
        nn.Conv2d(1, 8, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10),
    ).requires_grad_(False).double()  # fmt: skip
    for place, parameter in enumerate(model.parameters()):
        parameter.copy_(torch.from_numpy(stored[f"p{place}"]))
    x = torch.from_numpy(stored["x"][number : number + 1]).double() / 255
    return model, x, torch.from_numpy(stored["y"][number : number + 1]), float(stored["eps"][number])


@pytest.mark.parametrize("number", [0, 1])
def test_it_breaks_images_that_cascade_leaves(number: int) -> None:
    model, x, y, eps = _hard(number)
    defense = defense_of(model, (1, 28, 28), 10)
    assert model(cascade(_target(defense, 1, eps), x, y)).argmax(1) == y
    target = _target(defense, 1, eps)
    x_adv = region(target, x, y, rounds=20)
    assert_feasible(target, x, x_adv)
    assert model(x_adv).argmax(1) != y


def test_what_it_does_not_better_stays_as_cascade_left_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y, eps = _hard(0)
    defense = defense_of(model, (1, 28, 28), 10)
    left = cascade(_target(defense, 1, eps), x, y)
    monkeypatch.setattr(_Search, "_climb", lambda self, points, t, pivot=True: self._offer(self.x))
    found = region(_target(defense, 1, eps), x, y, rounds=0)
    assert float(margin(model(left), y)) > float(margin(model(x), y)) and torch.equal(found, left)


@cache
def _images(shape: tuple[int, ...], n: int) -> tuple[Defense, Tensor, Tensor]:
    defense = defense_of(Images(shape[0], shape[1]).double(), shape, 4)
    x = (0.5 + 0.55 * formula(n, *shape, seed=3.0)).clamp(0, 1)
    return defense, x, defense(x).argmax(1)


def _target(defense: Defense, n: int, eps: float = 0.02, **settings) -> Target:
    return make_target(defense, n, "gradient", norm="linf", eps=eps, **settings)


FEW = {"rounds": 2, "targets": 1, "seconds": 600.0}


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)], ids=str)
def test_it_stays_in_ball_and_box_and_is_never_worse_than_cascade(shape) -> None:
    defense, x, y = _images(shape, 6)
    target, state = _target(defense, 6), torch.get_rng_state()
    x_adv = region(target, x, y, **FEW)
    assert_feasible(target, x, x_adv)
    assert torch.equal(torch.get_rng_state(), state), "randomness comes from the target's generator"
    alone = _target(defense, 6)
    fallen = defense(cascade(alone, x, y)).argmax(1) != y
    assert (defense(x_adv).argmax(1) != y)[fallen].all()
    assert (target.counts.forward >= alone.counts.forward).all() and not target.counts.notes


def test_the_seed_alone_decides_and_the_batch_size_nothing() -> None:
    defense, x, y = _images((1, 8, 8), 6)
    first = region(_target(defense, 6), x, y, **FEW)
    torch.manual_seed(1)
    assert torch.equal(region(_target(defense, 6), x, y, **FEW), first)
    # Sums in another order may turn the choice between two equal points, but not how good these are.
    halves = region(_target(defense, 6, batch_size=2), x, y, **FEW)
    torch.testing.assert_close(margin(defense(halves), y), margin(defense(first), y), atol=1e-4, rtol=0)


def test_the_fingerprint_is_that_of_the_version() -> None:
    defense, x, y = _images((1, 8, 8), 6)
    target = _target(defense, 6)
    with seeded("fingerprint"):
        delta = region(target, x, y, **FEW) - x
    now = {"perturbation": numbers(delta), "lengths": numbers(length(delta, "linf"))}
    assert complaint("attacks.json", "region linf", region.attack.version, now) == ""


def test_a_limit_of_time_that_is_reached_is_noted() -> None:
    model = _perceptron(0, 64, 48, 32, 3)
    model[-1].bias[0] += 9.0
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = _target(defense_of(model, (1, 8, 8), 3), 1, eps=0.1)
    x_adv = region(target, x, torch.zeros(1).long(), seconds=1e-3)
    assert_feasible(target, x, x_adv)
    assert target.counts.notes == {"region: an example ran into its limit of 0.001 s"}


def test_where_it_is_not_applicable_it_says_so(monkeypatch) -> None:
    x, y = torch.rand(2, 1, 4, 4), torch.zeros(2).long()
    smooth = defense_of(nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Tanh()), (1, 4, 4), 3)
    with pytest.raises(NotApplicable, match=r"not known to be piecewise linear: aten\.tanh"):
        region(_target(smooth, 2), x, y)
    linear = defense_of(Linear(torch.eye(3, 16), torch.zeros(3)), (1, 4, 4), 3)
    with pytest.raises(NotApplicable, match="this one is randomised"):
        region(_target(linear, 2, randomized=True), x, y)
    with pytest.raises(NotApplicable, match="guarded by a detector"):
        region(_target(linear, 2, threshold=0.5), x, y)
    import_, missing = builtins.__import__, "highspy"

    def without(name, *args, **kwargs):
        if name == missing:
            raise ImportError(name)
        return import_(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(NotApplicable, match=r"pip install 'worst-case-bench\[region\]'"):
        region(_target(linear, 2), x, y)
