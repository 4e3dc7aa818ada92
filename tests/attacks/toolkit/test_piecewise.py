"""Networks as units: the pieces are the network's own, and what is not piecewise linear is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.toolkit.piecewise import PiecewiseLinear
from bench.contracts.errors import NotApplicable
from bench.contracts.inputs import DataInfo, InputSpec
from defenses.parts.nets import NETWORKS


class Mixed(nn.Module):
    """Every operation that is known, on small images."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.norm.running_mean.uniform_(-0.1, 0.1)
        self.pool, self.output = nn.MaxPool2d(3, 2, 1), nn.Linear(3 * ((size + 1) // 2) ** 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = (x.clamp(0.1, 0.9) - 0.5) / 0.25
        z = self.pool(F.relu(self.norm(self.conv(x)), inplace=True))
        z = F.leaky_relu(z - 0.5, 0.2) + F.hardtanh(z, -0.2, 0.4) + F.relu6(3 * z).abs() - torch.maximum(z, 0.5 - z)
        z = torch.minimum(z, z.mean(1, keepdim=True)) + z.clamp(max=0.3) + z.clamp_min(-0.1)
        return self.output(F.dropout(z, 0.5, self.training).flatten(1))


class Pools(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x).flatten(1)


def _seeded(build, *args) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(*args).eval().requires_grad_(False)


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 7, 7)], ids=str)
def test_pieces_are_those_of_the_network(shape) -> None:
    model = _seeded(Mixed, *shape[:2])
    draw = torch.Generator().manual_seed(1)
    network = PiecewiseLinear(model, torch.rand(1, *shape, generator=draw))
    for _ in range(3):
        x = torch.rand(1, *shape, generator=draw, dtype=torch.float64)
        piece = network.at(x)
        torch.testing.assert_close(piece.logits, model.double()(x)[0])
        affine = network.affine(piece.active)
        torch.testing.assert_close(affine.A @ x.flatten() + affine.a, piece.logits)
        torch.testing.assert_close(affine.Z @ x.flatten() + affine.b, piece.z)
        # A unit depends on no other of its layer: freeing one changes layers behind it alone.
        free = torch.randperm(len(piece.z), generator=draw)[:9].sort().values
        _, units = network.outputs_of(piece.active, free)
        for place, unit in enumerate(free.tolist()):
            layer = next(layer for layer in network.layers if layer.start <= unit < layer.stop)
            assert units[: layer.stop, place].abs().max() < 1e-12
            alone, _ = network.outputs_of(piece.active, torch.tensor([unit]))
            gain = network.influence(piece, torch.tensor([1.0, -1.0, 0.0, 0.0]).double())
            torch.testing.assert_close(gain[unit], (alone[0] - alone[1])[0])


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d((2, 3), (1, 2), (0, 1)), nn.MaxPool2d(2, dilation=2)],
    ids=str,
)
def test_max_pooling_is_a_tournament(pool) -> None:
    x = torch.randn(1, 2, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = PiecewiseLinear(Pools(pool), x)
    torch.testing.assert_close(network.at(x).logits, pool(x).flatten())


@pytest.mark.parametrize("name", ["cnn-a", "resnet8", "compact"])
def test_networks_of_this_project(name) -> None:
    info = DataInfo("images", InputSpec((3, 32, 32)), 10)
    model = _seeded(NETWORKS[name], info)
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    try:
        network = PiecewiseLinear(model, x)
    except NotApplicable as error:
        assert "too many" in str(error)
    else:
        torch.testing.assert_close(network.at(x).logits.float(), model.float()(x)[0], atol=1e-4, rtol=1e-4)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * x.relu()).flatten(1)


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + 0.1 * torch.randn_like(x)).relu().flatten(1)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x if x.mean() > 0.5 else -x).relu().flatten(1)


class By(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x).flatten(1)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (4 * x).to(torch.int64).to(x.dtype), "aten._to_copy"),
        (lambda x: x.half().to(x.dtype), "aten._to_copy"),
        (lambda x: x.bool().to(x.dtype), "aten._to_copy"),
        (lambda x: torch.div(x, 0.25, rounding_mode="floor"), "aten.div"),
        (F.instance_norm, "aten.native_batch_norm"),
        (lambda x: F.leaky_relu(x, 2.0), "leaky ReLU of slope 2"),
        (lambda x: F.leaky_relu(x, -1.0), "leaky ReLU of slope -1"),
    ],
    ids=["integers", "half", "bool", "floor", "statistics", "steeper", "descending"],
)
def test_operations_that_their_arguments_bend_are_named(function, message) -> None:
    with pytest.raises(NotApplicable, match=message):
        PiecewiseLinear(By(function).eval(), torch.rand(1, 2, 4, 4))


def test_a_cast_to_single_precision_is_affine() -> None:
    x = torch.rand(1, 1, 4, 4)
    assert len(PiecewiseLinear(By(lambda x: x.float()).eval(), x).at(x).logits) == 16


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Tanh()), "not known to be piecewise linear: aten.tanh"),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Softmax(1)), "aten._softmax"),
        (Twice(), "multiplies values that depend on the input"),
        (Random(), "another function than its trace|piecewise linear"),
        (Branching(), "cannot be traced"),
    ],
    ids=["tanh", "softmax", "product", "random", "branching"],
)
def test_what_is_not_piecewise_linear_is_named(model, message) -> None:
    with pytest.raises(NotApplicable, match=message):
        PiecewiseLinear(model.eval(), torch.rand(1, 1, 4, 4))
