"""Threat models, distances, and the checks of images and labels."""

from __future__ import annotations

import math

import pytest
import torch

from bench.contracts.errors import InputError
from bench.contracts.threat import ThreatModel, check_images, check_labels, distances, format_eps


@pytest.mark.parametrize("eps", [0.0, -0.1, math.nan, math.inf])
def test_a_radius_must_be_a_finite_number_above_zero(eps: float) -> None:
    with pytest.raises(InputError, match=rf"eps: {eps!r} must be a finite number greater than 0"):
        ThreatModel("linf", eps)


def test_an_unknown_norm_is_named() -> None:
    with pytest.raises(InputError, match="'l3' is not one of linf, l2, l1, l0"):
        ThreatModel("l3", 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (0.5, 0.5)])
def test_the_box_must_not_be_empty(low: float, high: float) -> None:
    with pytest.raises(InputError, match="must be below high"):
        ThreatModel("linf", 0.1, low, high)


def test_the_tolerance_is_for_float_rounding_only() -> None:
    assert ThreatModel("linf", 8 / 255).tolerance == pytest.approx(1e-6 + 1e-5 * 8 / 255)
    assert ThreatModel("l2", 100).tolerance < 0.01


@pytest.mark.parametrize(
    ("eps", "text"),
    [(8 / 255, "8/255"), (0.2, "0.2"), (1.0, "1"), (0.031, "0.031"), (1 / 3, "85/255"), (0.12345, "0.1235"), (3, "3")],
)
def test_radii_print_as_the_field_writes_them(eps: float, text: str) -> None:
    assert format_eps(eps) == text
    assert str(ThreatModel("l2", eps)) == f"l2 {text}"


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


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 3), r"expected floating-point \(N, C, H, W\), got torch.float32 \(2, 3\)"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), "got torch.uint8"),
        (torch.full((1, 1, 2, 2), math.nan), "contain NaN or infinity"),
        (torch.full((1, 1, 2, 2), 1.5), r"values span \[1.5, 1.5\], outside \[0, 1\]"),
        (torch.full((1, 1, 2, 2), -0.1), r"outside \[0, 1\]"),
    ],
)
def test_bad_images_are_refused(x: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_images(x)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0, 4]), r"label 4 is outside 0\.\.3"),
        (torch.tensor([-1, 0]), r"label -1 is outside 0\.\.3"),
        (torch.tensor([0.0]), r"expected int64 \(N,\), got torch.float32"),
        (torch.zeros(2, 1, dtype=torch.int64), r"expected int64 \(N,\)"),
    ],
)
def test_bad_labels_are_refused(y: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_labels(y, 4)


def test_good_images_and_labels_pass() -> None:
    check_images(torch.tensor([[[[0.0, 1.0], [0.5, 0.25]]]]))
    check_images(torch.zeros(0, 1, 2, 2))
    check_labels(torch.tensor([0, 3]), 4)
    check_labels(torch.zeros(0, dtype=torch.int64), 4)
