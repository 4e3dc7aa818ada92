"""Two circles in the plane: where the gradients of the losses are long, short, and exactly zero.

Ozbulak et al. 2020, figure 6: a network of one hidden ReLU layer separates scikit-learn's ``make_circles``; an attacker
moves a point of the outer class to the inner one.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts.seeding import derive_seed, seeded
from bench.studies.losses.descent import Model, is_zero, perturbation
from bench.studies.losses.record import SURE, Circles, Region, Underflow

#: Labels of ``make_circles``.
OUTER, INNER = 0, 1
_LOW, _HIGH = -1.6, 1.6
#: What the logits are multiplied by to see numbers run out; the map of zeros is that of the second.
_SCALES = (1.0, 10.0, 100.0)


def train_network(seed: int, hidden: int = 64, epochs: int = 3000) -> tuple[nn.Module, float]:
    """The network, and its accuracy on the points that it was trained on."""
    from sklearn.datasets import make_circles

    points, labels = make_circles(1000, noise=0.05, factor=0.4, random_state=derive_seed(seed, "circles") % 2**32)
    x, y = torch.tensor(points, dtype=torch.float32), torch.tensor(labels)
    with seeded(seed, "circles"):
        network = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 2))
        descent = torch.optim.Adam(network.parameters(), lr=0.05)
        for _ in range(epochs):
            descent.zero_grad()
            F.cross_entropy(network(x), y).backward()
            descent.step()
    network.eval().requires_grad_(False)
    return network, float((network(x).argmax(1) == y).float().mean())


def measure_circles(seed: int, size: int = 49, epochs: int = 3000) -> Circles:
    """Maps of the lengths of the gradients over ``size × size`` points of the plane, all towards the inner class."""
    network, accuracy = train_network(seed, epochs=epochs)
    ticks = torch.linspace(_LOW, _HIGH, size)
    x = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1).view(-1, 2)
    t = torch.full((len(x),), INNER)
    length = {source: _length(network, x, t, source) for source in ("ce", "ce_sign", "logit", "m_logit")}
    with torch.no_grad():
        confidence = network(x).softmax(1)[:, INNER]

    def square(values: Tensor) -> list[list[float]]:
        return [[float(f"{v:.3g}") for v in row] for row in values.view(size, size).tolist()]

    parts = {
        "S1": confidence < 1 - SURE,
        "S2": (confidence >= 1 - SURE) & (confidence <= SURE),
        "S3": confidence > SURE,
    }
    regions = [
        Region(
            name=name,
            points=int(part.sum()),
            **{source: _mean(length[source][part]) for source in ("ce", "logit", "m_logit")},
        )
        for name, part in parts.items()
    ]
    zero = _zero(_scaled(network, _SCALES[1]), x, t, "ce")
    return Circles(
        low=_LOW, high=_HIGH, accuracy=accuracy, hidden=len(next(network.parameters())), target=square(confidence),
        ce=square(length["ce"]), ce_sign=square(length["ce_sign"]), logit=square(length["logit"]),
        zero_scale=_SCALES[1], zero=zero.view(size, size).int().tolist(), regions=regions,
        underflow=[_underflow(network, x[parts["S3"]], t[parts["S3"]], scale) for scale in _SCALES],
    )  # fmt: skip


def _underflow(network: nn.Module, x: Tensor, t: Tensor, scale: float) -> Underflow:
    single, double = _scaled(network, scale), _scaled(copy.deepcopy(network).double(), scale)
    return Underflow(
        scale=scale,
        float32=_mean(_zero(single, x, t, "ce").float()),
        float64=_mean(_zero(double, x.double(), t, "ce").float()),
    )


def _scaled(network: nn.Module, scale: float) -> Model:
    def scaled(x: Tensor) -> Tensor:
        logits: Tensor = network(x)
        return scale * logits

    return scaled


def _length(network: Model, x: Tensor, t: Tensor, source: str) -> Tensor:
    found: Tensor = perturbation(network, x, t, source)[0].norm(dim=1)
    return found


def _zero(network: Model, x: Tensor, t: Tensor, source: str) -> Tensor:
    return is_zero(perturbation(network, x, t, source)[0])


def _mean(values: Tensor) -> float:
    return float(f"{float(values.mean()):.4g}") if len(values) else 0.0
