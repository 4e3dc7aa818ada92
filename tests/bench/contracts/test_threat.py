"""Threat models and distances."""

from __future__ import annotations

import math

import pytest
import torch

from bench.contracts.balls import distances
from bench.contracts.errors import InputError
from bench.contracts.threat import Lp, format_eps


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
