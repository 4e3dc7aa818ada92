"""What the attack tests work with: targets, linear models of known minimal perturbation, a digits classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from bench.contracts.attack import PrepareContext
from bench.contracts.defense import BareModel, Defense, freeze
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.target import Target
from bench.contracts.threat import Lp
from bench.data.splits import Split

DIGITS = DataInfo("digits", InputSpec((1, 8, 8), levels=17), 10)


def make_target(
    defense: Defense, n: int, knowledge: str, *, norm: str = "linf", eps: float = 0.1, seed: int = 0, **settings: Any
) -> Target:
    """A target as the harness would build it; ``settings`` go to :class:`bench.contracts.target.Target`."""
    threat = Lp(norm, eps)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    return Target(defense, threat, n, knowledge=knowledge, generator=generator, **settings)


def make_context(defense: Defense | None, x: Tensor, y: Tensor, info: DataInfo, eps: float = 0.2) -> PrepareContext:
    """A preparation context on the CPU with ``x``, ``y`` as its training split."""
    train = Split(x, y, [str(i) for i in range(len(x))])
    return PrepareContext(defense, info, Lp("linf", eps), train, torch.device("cpu"))


class Linear(nn.Module):
    """Logits ``W (x - 1/2) + b``."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.weight.T + self.bias


@dataclass(frozen=True)
class LinearCase:
    """Examples of a linear model, each of which ``radius`` is the smallest perturbation that fools it."""

    defense: Defense
    x: Tensor
    y: Tensor
    norm: str
    radius: float

    def target(self, factor: float, knowledge: str, **settings: Any) -> Target:
        """A target whose eps is ``factor`` times the radius."""
        return make_target(self.defense, len(self.x), knowledge, norm=self.norm, eps=factor * self.radius, **settings)

    def fooled(self, x_adv: Tensor) -> Tensor:
        with torch.no_grad():
            return self.defense(x_adv).argmax(1) != self.y


def linear_case(
    n: int, shape: tuple[int, ...], norm: str, *, rivals: int = 2, dtype: torch.dtype = torch.float32
) -> LinearCase:
    """Build a :class:`LinearCase` of ``n`` examples and 4 classes.

    The first ``rivals`` classes meet in the middle of the box, the others are out of reach: with two rivals the
    nearest class is also the likeliest, with more a greedy attack may pursue the wrong one. The minimal radius is
    min_j margin_j / ‖w_y - w_j‖_dual over the rivals.
    """
    radius = {"linf": 0.1, "l2": 0.5, "l1": 0.25}[norm]
    generator = torch.Generator().manual_seed(n)
    dim = shape[0] * shape[1] * shape[2]
    weight = torch.randn(4, dim, generator=generator, dtype=torch.float64)
    weight[rivals:] *= 0.01
    bias = torch.tensor([0.0] * rivals + [-20.0] * (4 - rivals), dtype=torch.float64)
    y = torch.arange(n) % rivals
    offset = (weight[y] - (weight[:rivals].sum(0) - weight[y]) / (rivals - 1)).sign()
    offset += 0.3 * torch.randn(n, dim, generator=generator, dtype=torch.float64)
    logits = offset @ weight[:rivals].T
    margins = logits.gather(1, y[:, None]) - logits
    order = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    dual = (weight[y][:, None] - weight[None, :rivals]).norm(p=order, dim=2)
    nearest = (margins / dual).scatter(1, y[:, None], torch.inf).amin(1)
    assert (nearest > 0).all()
    offset *= (radius / nearest)[:, None]  # margins, hence radii, scale with the distance from the middle
    x = (0.5 + offset).view(n, *shape)
    assert x.min() > 0.15 and x.max() < 0.85, "the box must not interfere"
    defense = BareModel(Linear(weight, bias), DataInfo("linear", InputSpec(shape), 4)).to(dtype)
    return LinearCase(cast(Defense, freeze(defense)), x.to(dtype), y, norm, radius)


def curved_case(n: int) -> tuple[Defense, Tensor, Tensor]:
    """A random network of 4 classes whose boundaries bend, ``n`` images it is sure of, and the classes it gives."""
    generator = torch.Generator().manual_seed(0)
    hidden, output = (nn.Linear(*size).requires_grad_(False) for size in ((64, 48), (48, 4)))
    hidden.weight.copy_(torch.randn(48, 64, generator=generator))
    output.weight.copy_(torch.randn(4, 48, generator=generator))
    hidden.bias.copy_(-0.5 * hidden.weight.sum(1))
    output.bias.zero_()
    model = nn.Sequential(nn.Flatten(), hidden, nn.Tanh(), output)
    defense = cast(Defense, freeze(BareModel(model, DataInfo("curved", InputSpec((1, 8, 8)), 4))))
    x = torch.rand(32 * n, 1, 8, 8, generator=generator)
    top = defense(x).topk(2, dim=1)
    sure = (top.values[:, 0] - top.values[:, 1]).topk(n).indices
    return defense, x[sure], top.indices[sure, 0]


def length(delta: Tensor, norm: str) -> Tensor:
    """Length of each perturbation, ``(N,)``; in l0 the number of pixels changed."""
    if norm == "l0":
        return (delta != 0).any(1).flatten(1).sum(1).to(delta)
    lengths: Tensor = delta.flatten(1).norm(p={"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1)
    return lengths


def assert_feasible(target: Target, x: Tensor, x_adv: Tensor) -> None:
    """Shape, dtype, ball (with the judge's tolerance), box, finite."""
    threat = target.ball
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype
    assert torch.isfinite(x_adv).all()
    assert length((x_adv - x).double(), threat.norm).max() <= threat.eps + threat.tolerance
    assert x_adv.min() >= threat.low and x_adv.max() <= threat.high


class Wrapped(Defense):
    """``classifier(transform(x))`` with a transform given as a function."""

    def __init__(self, model: nn.Module, data: DataInfo, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(data)
        self.classifier, self.function = model, function

    def transform(self, x: Tensor) -> Tensor:
        return self.function(x)


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1000 training and 797 test digits: ``x_train, y_train, x_test, y_test``."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(data.images / 16, dtype=torch.float32)[order, None]
    y = torch.tensor(data.target, dtype=torch.int64)[order]
    return x[:1000], y[:1000], x[1000:], y[1000:]


@cache
def digits_classifier(width: int = 16) -> nn.Module:
    """A small network trained on clean digits, without any defense."""
    x, y, *_ = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * width, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(15):
            for rows in torch.randperm(len(x)).split(100):
                optimizer.zero_grad()
                F.cross_entropy(net(x[rows]), y[rows]).backward()
                optimizer.step()
    return freeze(net)
