"""A built-in defense that behaves differently has another version (tests/fingerprints/defenses.json)."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fingerprints import Fingerprint, complaint, difference, numbers
from torch import Tensor

from bench.contracts.defense import Defense, DefenseSpec
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.seeding import seeded
from bench.data.load import load_data
from bench.plugins.registry import DEFENSES
from bench.plugins.resolve import build_defense, load_defense
from bench.storing.digest import state_digest
from defenses.parts.jpeg_codec import compress

FILE = "defenses.json"
DIGITS = load_data("digits")
COLOUR = DataInfo("colour", InputSpec((3, 32, 32)), 10)
#: Variants whose code is another than that of the defaults.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("ours", {"mode": "untargeted", "random_start": False}),
    ("ours", {"radius": 0.2}),
]
#: Transforms that need no weights, so that they are the same on colour images too.
ON_COLOUR = (
    "bart", "bit-depth", "crop-rescale", "gaussian-smoothing", "jpeg", "median-smoothing", "pixel-deflection",
    "random-resize-pad", "thermometer", "tv-minimization", "wavelet-denoising",
)  # fmt: skip
CASES = [*((name, {}) for name in DEFENSES.built_in()), *VARIANTS]


def _of_digits(defense: Defense, x: Tensor, y: Tensor) -> Fingerprint:
    """Outputs, transform, score, stand-ins and gradients with the shipped weights on a few digits."""
    found: Fingerprint = {}

    def draw(function: Any, x: Tensor) -> Tensor:
        with seeded("fingerprint"):
            value: Tensor = function(x)
            return value

    with torch.no_grad():
        found["logits"] = numbers(draw(defense, x))
        found["transform"] = numbers(draw(defense.transform, x))
        if defense.detect is not None:
            found["score"] = numbers(draw(defense.detect, x))
    leaf = x.clone().requires_grad_()
    if defense.detect is not None:
        (grad,) = torch.autograd.grad(draw(defense.detect, leaf).sum(), leaf)
        found["gradient of the score"] = numbers(grad)
    loss = F.cross_entropy(draw(defense, leaf), y, reduction="sum")
    grad = torch.autograd.grad(loss, leaf, allow_unused=True)[0] if loss.requires_grad else None
    found["gradient"] = "none" if grad is None else numbers(grad)
    for name, approximation in defense.approximations().items():
        leaf = x.clone().requires_grad_()
        value = draw(approximation.through, leaf)
        weights = torch.linspace(-1, 1, value.numel()).view_as(value)
        (grad,) = torch.autograd.grad((value * weights).sum(), leaf)
        found[f"approximation {name}"] = numbers(value)
        found[f"gradient of {name}"] = numbers(grad)
    return found


def _of_colour(name: str) -> Fingerprint:
    with seeded("fingerprint", "weights"):
        defense = build_defense(DefenseSpec(name, {"network": "resnet8"}), COLOUR).eval()
    corners = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    x = F.interpolate(corners, (32, 32), mode="bilinear", align_corners=False)
    with torch.no_grad(), seeded("fingerprint"):
        return {"transform of colour images": numbers(defense.transform(x))}


def _fingerprint(name: str, params: dict[str, Any]) -> tuple[str, Fingerprint]:
    """Version and weights, which are compared exactly as results do; and what they answer."""
    loaded = load_defense(DefenseSpec(name, params), DIGITS.info)
    defense = loaded.defense.eval()
    found = _of_digits(defense, DIGITS.test.x[:4], DIGITS.test.y[:4])
    if name in ON_COLOUR and not params:
        found |= _of_colour(name)
    return f"{loaded.version}, weights {state_digest(defense)[:8]}", found


def _complaint(name: str, params: dict[str, Any]) -> str:
    return complaint(FILE, DefenseSpec(name, params).name, *_fingerprint(name, params))


@pytest.mark.parametrize(("name", "params"), CASES, ids=[DefenseSpec(*case).name for case in CASES])
def test_the_fingerprint_is_that_of_the_version(name: str, params: dict[str, Any]) -> None:
    assert _complaint(name, params) == ""


@pytest.mark.parametrize(("name", "path", "changed", "field"), [
    ("ours", "defenses.parts.smooth_sign.LEAK", 0.2, "gradient of tanh"),
    ("hedge", "defenses.parts.inner_descent.tanh_slope", lambda u: 1 / (1 + u**2), "gradient of tanh"),
    ("jpeg", "defenses.input_transformation.jpeg.compress", lambda x, q: compress(x, [v - 5 for v in q]), "logits"),
    ("feature-squeezing", "defenses.detection.feature_squeezing.FeatureSqueezing.detect",
     lambda self, x: x.flatten(1).mean(1), "score"),
    ("region-based", "torch.rand_like", lambda x: torch.rand(x.shape).sqrt(), "logits"),
])  # fmt: skip
def test_other_behaviour_under_the_same_version_is_noticed(
    monkeypatch: pytest.MonkeyPatch, name: str, path: str, changed: Any, field: str
) -> None:
    monkeypatch.delenv("WRITE_FINGERPRINTS", raising=False)
    monkeypatch.setattr(path, changed)
    expected = rf"{name}: behaves differently under the same version [12].*: {field}: .*raise"
    assert re.search(expected, _complaint(name, {}))


def test_another_version_asks_for_its_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WRITE_FINGERPRINTS", raising=False)
    monkeypatch.setattr("defenses.none.Undefended.version", 2)
    assert "none: version 2, weights" in _complaint("none", {})
    assert "but the stored one is of version 1" in _complaint("none", {})


def test_rounding_of_another_processor_is_no_change() -> None:
    values = torch.randn(200, generator=torch.Generator().manual_seed(0))
    noisy = values * (1 + 1e-5 * torch.randn(200, generator=torch.Generator().manual_seed(1)))
    assert difference({"a": numbers(values)}, {"a": numbers(noisy)}) == ""
    at_an_edge = noisy.clone()
    at_an_edge[0] += 0.5  # one of the values that are kept
    assert difference({"a": numbers(values)}, {"a": numbers(at_an_edge)}) == ""
    assert difference({"a": numbers(values)}, {"a": numbers(values * 1.02)}).startswith("a: root mean square was")
    assert difference({"a": numbers(values)}, {"a": numbers(values.roll(1))}).startswith("a: ")
    assert difference({"a": "none"}, {"a": numbers(values)}).startswith('a was "none", is [')
    assert difference({"a": 1}, {"b": 1}) == "has b instead of a"
