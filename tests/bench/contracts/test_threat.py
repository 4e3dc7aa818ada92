"""Threat models and distances."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from attacks.score.noise import noise
from bench.contracts.balls import distances
from bench.contracts.defense import BareModel
from bench.contracts.errors import InputError, NotApplicable
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.target import Target
from bench.contracts.threat import Lp
from bench.contracts.words import format_eps

IMAGE = (3, 4, 5)
#: Waveforms of two channels in [-1, 1].
WAVE, LOW, HIGH = (2, 10), -1.0, 1.0
BALLS = [("linf", 0.25), ("l2", 1.0), ("l1", 2.5), ("l0", 3.0)]


def _rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _waves(n: int, size: float = 1.0, seed: int = 0) -> Tensor:
    """Uniform in [-size, size]."""
    return size * (2 * _rand(n, *WAVE, seed=seed) - 1)


@pytest.mark.parametrize("eps", [0.0, -0.1, math.nan, math.inf])
def test_a_radius_must_be_a_finite_number_above_zero(eps: float) -> None:
    with pytest.raises(InputError, match=rf"eps: {eps!r} must be a finite number greater than 0"):
        Lp("linf", eps)


def test_an_unknown_norm_is_named() -> None:
    with pytest.raises(InputError, match="'l3' is not one of linf, l2, l1, l0"):
        Lp("l3", 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (0.5, 0.5)])
def test_the_box_must_not_be_empty(low: float, high: float) -> None:
    with pytest.raises(InputError, match="must be below high"):
        Lp("linf", 0.1, low, high)


def test_the_tolerance_is_for_float_rounding_only() -> None:
    assert Lp("linf", 8 / 255).tolerance == pytest.approx(1e-6 + 1e-5 * 8 / 255)
    assert Lp("l2", 100).tolerance < 0.01


@pytest.mark.parametrize(
    ("eps", "text"),
    [(8 / 255, "8/255"), (0.2, "0.2"), (1.0, "1"), (0.031, "0.031"), (1 / 3, "85/255"), (0.12345, "0.1235"), (3, "3")],
)
def test_radii_print_as_the_field_writes_them(eps: float, text: str) -> None:
    assert format_eps(eps) == text
    assert str(Lp("l2", eps)) == f"l2 {text}"


def test_distances_against_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(5, 3, 4, 4, generator=generator)
    x_adv = torch.where(torch.rand(x.shape, generator=generator) < 0.1, torch.rand(x.shape, generator=generator), x)
    found = distances(x, x_adv)
    for i in range(len(x)):
        pixels = {}
        for c in range(3):
            for h in range(4):
                for w in range(4):
                    difference = abs(float(x_adv[i, c, h, w]) - float(x[i, c, h, w]))
                    pixels.setdefault((h, w), []).append(difference)
        values = [v for channels in pixels.values() for v in channels]
        assert float(found["linf"][i]) == pytest.approx(max(values))
        assert float(found["l2"][i]) == pytest.approx(math.sqrt(sum(v * v for v in values)))
        assert float(found["l1"][i]) == pytest.approx(sum(values))
        assert int(found["l0"][i]) == sum(any(v > 0 for v in channels) for channels in pixels.values())
    assert found["l0"].max() > 1
    assert found["linf"].dtype == torch.float64


# -- points of an Lp threat model ------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.7), ("l1", 2.0), ("l0", 4.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_projected_is_feasible_and_stays_where_it_is(norm, eps, dtype) -> None:
    x = _rand(40, *IMAGE).to(dtype)
    far = (x + 2 * (2 * _rand(40, *IMAGE, seed=3) - 1)).to(dtype)
    threat = Lp(norm, eps)
    once = threat.project_(far.clone(), x)
    assert threat.violations(x, once) == ["ok"] * 40 and once.dtype == dtype
    torch.testing.assert_close(threat.project_(once.clone(), x), once)
    assert torch.equal(threat.project_(x.clone(), x), x)
    given = far.clone()
    assert threat.project_(given, x) is given, "in place"


def test_the_l0_projection_keeps_the_pixels_of_largest_change() -> None:
    x = torch.full((1, 2, 2, 2), 0.5)
    far = x.clone()
    far[0, :, 0, 0] += torch.tensor([0.2, 0.2])  # 0.28 in l2
    far[0, 0, 0, 1] += 0.25
    far[0, 1, 1, 0] += 9.0  # 0.5 once it is clipped
    out = Lp("l0", 2).project_(far.clone(), x)
    assert (out != x).any(1).flatten(1).tolist() == [[True, False, True, False]]
    assert out[0, 1, 1, 0] == 1


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.3), ("l1", 2.0), ("l0", 3.0)])
def test_random_starts_fill_the_ball(norm, eps) -> None:
    n = 400
    x = torch.full((n, *IMAGE), 0.5)
    threat, draws = Lp(norm, eps), torch.Generator().manual_seed(0)
    start = threat.sample(x, draws)
    assert threat.violations(x, start) == ["ok"] * n
    reach = distances(x, start)[norm] / eps
    assert reach.max() > 0.98
    # Uniform in a ball of d dimensions, the share of points beyond r is 1 - r^d; linf, l2 and l1 have d = 60.
    expected = 1.0 if norm == "l0" else 1 - 0.99**60
    assert abs((reach > 0.99).float().mean() - expected) < 0.08
    assert (start - x).mean().abs() < 0.01
    assert not torch.equal(start, threat.sample(x, draws))


# -- other boxes, other shapes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), BALLS[:3])
def test_the_projection_in_another_box_is_the_nearest_allowed_point(norm, eps) -> None:
    threat, x = Lp(norm, eps, LOW, HIGH), _waves(8)
    far = x + _waves(8, 0.6, seed=1)
    nearest = threat.project_(far.clone(), x)
    assert threat.violations(x, nearest) == ["ok"] * 8
    # Of a convex set: no allowed point lies beyond the plane through the nearest one (its variational inequality).
    draws = torch.Generator().manual_seed(2)
    for _ in range(200):
        other = threat.sample(x, draws)
        assert ((far - nearest) * (other - nearest)).flatten(1).sum(1).max() < 1e-5


@pytest.mark.parametrize(("norm", "eps"), BALLS[:3])
def test_where_the_box_is_far_the_projection_has_a_closed_form(norm, eps) -> None:
    threat, x = Lp(norm, eps, LOW, HIGH), _waves(8, 0.3)
    delta = _waves(8, 0.6, seed=1)
    out = threat.project_(x + delta, x) - x
    if norm == "linf":
        expected = delta.clamp(-eps, eps)
    elif norm == "l2":
        expected = delta * (eps / delta.flatten(1).norm(dim=1)).clamp_max(1)[:, None, None]
    else:  # soft thresholding (Duchi et al. 2008, figure 1)
        size = delta.flatten(1).abs().sort(1, descending=True).values
        above = (size.cumsum(1) - eps) / torch.arange(1, 21)
        count = (size > above).sum(1)
        cut = above.gather(1, count[:, None] - 1).clamp_min(0)[:, :, None]
        expected = delta.sign() * (delta.abs() - cut).clamp_min(0)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)


def test_the_l0_projection_of_a_waveform_keeps_times() -> None:
    x = torch.zeros(1, 2, 4)
    far = torch.tensor([[[0.5, 0.0, -3.0, 0.3], [0.5, 0.6, 0.0, 0.0]]])  # 0.71, 0.6, 1 once clipped, 0.3
    out = Lp("l0", 2, LOW, HIGH).project_(far.clone(), x)
    assert out.tolist() == [[[0.5, 0.0, -1.0, 0.0], [0.5, 0.0, 0.0, 0.0]]]


@pytest.mark.parametrize("shape", [WAVE, (20,), (1, 4, 5)], ids=str)
@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_samples_are_allowed_in_any_box_and_shape(norm, eps, shape) -> None:
    threat = Lp(norm, eps, LOW, HIGH)
    x = _waves(50).view(50, *shape).float()
    points = threat.sample(x, torch.Generator().manual_seed(0))
    assert points.dtype == x.dtype and points.shape == x.shape
    assert threat.violations(x, points) == ["ok"] * 50
    assert (threat.distances(x, points)[norm] > 0.5 * eps).float().mean() > 0.5, "they fill the ball"
    assert points.min() < -0.9 and points.max() > 0.9
    assert torch.equal(points, threat.sample(x, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(threat.project_(points.clone(), x), points)


def test_the_random_numbers_of_a_sample_are_those_of_the_generator_in_order() -> None:
    x, draws, again = _waves(3), torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    threat = Lp("linf", 0.25, LOW, HIGH)
    u = 2 * torch.rand(3, *WAVE, generator=again).to(x) - 1
    expected = (x + 0.25 * u).clamp(x - 0.25, x + 0.25).clamp(LOW, HIGH)
    assert torch.equal(threat.sample(x, draws), expected)
    assert torch.equal(draws.get_state(), again.get_state()), "and no more are drawn"


def test_every_violation_is_a_sentence() -> None:
    threat = Lp("l2", 0.5, LOW, HIGH)
    x = torch.zeros(4, 2, 2)
    x_adv = x.clone()
    x_adv[0, 0, 0], x_adv[1, 1, 1], x_adv[2, 0] = math.nan, -1.5, 0.5
    assert threat.violations(x, x_adv) == [
        "not finite",
        "outside the box: [-1.5, 0]",
        "outside the ball: l2 0.707107 > 0.5",
        "ok",
    ]
    assert threat.violations(x, x_adv[:, :1]) == ["shape (4, 1, 2) instead of (4, 2, 2)"] * 4
    assert Lp("linf", 2.0, LOW, HIGH).violations(x[:1], x[:1] - 0.9) == ["ok"], "a box of its own"


# -- threat models of other kinds --------------------------------------------------------------------------------


class FirstChannel:
    """Whatever happens to the first channel is allowed, and nothing else."""

    def distances(self, x: Tensor, x_adv: Tensor) -> dict[str, Tensor]:
        return distances(x, x_adv)

    def project_(self, x_adv: Tensor, x: Tensor) -> Tensor:
        x_adv[:, 1:] = x[:, 1:]
        return x_adv.clamp_(0, 1)

    def sample(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.project_(torch.rand(x.shape, generator=generator).to(x), x)

    def violations(self, x: Tensor, x_adv: Tensor) -> list[str]:
        return ["ok" if torch.equal(a[1:], b[1:]) else "changes another channel" for a, b in zip(x, x_adv, strict=True)]

    def __str__(self) -> str:
        return "first channel"


def test_attacks_use_a_threat_model_of_another_kind_unless_they_need_a_ball() -> None:
    defense = BareModel(nn.Flatten(), DataInfo("toy", InputSpec((2, 2)), 4)).eval()
    generator = torch.Generator().manual_seed(0)
    target = Target(defense, FirstChannel(), 3, knowledge="decision", generator=generator)
    x = _rand(3, 2, 2)
    x_adv = noise(target, x, x.flatten(1).argmax(1), draws=20)
    assert target.threat.violations(x, x_adv) == ["ok"] * 3 and not torch.equal(x, x_adv)
    with pytest.raises(NotApplicable, match="needs an Lp ball as threat model, not first channel"):
        _ = target.ball
    ball = Lp("linf", 0.1)
    assert Target(defense, ball, 3, knowledge="decision", generator=generator).ball is ball
