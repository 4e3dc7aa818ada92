"""A built-in attack that behaves differently has another version (tests/fingerprints/attacks.json)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fingerprints import Fingerprint, complaint, numbers
from lab import length
from registered import CASES, run, specs, target_of, toy
from torch import Tensor

from bench.contracts.seeding import seeded
from bench.contracts.threat import Lp

FILE = "attacks.json"
#: Images of two channels, so that pixels and values differ.
SHAPE = (2, 6, 6)
#: On a randomised defense their points lie on the ball's surface, where rounding decides which of two is shorter.
LEFT_TO_ROUNDING = {("fmn", "l1")}


def _fingerprint(name: str, norm: str) -> Fingerprint:
    """What the attack does to eight inputs of a fixed network in double precision, and what it costs."""
    defense, x, y = toy(SHAPE, 8, torch.float64)
    found: Fingerprint = {}
    kinds = {"": (False, None), "randomized ": (True, None), "targeted ": (False, (y + 1) % 4)}
    for kind, (randomized, towards) in kinds.items():
        if (towards is not None and not specs()[name].targeted) or (randomized and (name, norm) in LEFT_TO_ROUNDING):
            continue
        target = target_of(name, norm, defense, len(x), randomized=randomized, towards=towards)
        with seeded("fingerprint"):
            delta = run(name, target, x, y) - x
        found[f"{kind}perturbation"] = numbers(delta)
        found[f"{kind}lengths"] = numbers(length(delta, norm))
        found[f"{kind}forward"] = target.counts.forward.tolist()
        found[f"{kind}backward"] = target.counts.backward.tolist()
    return found


def _complaint(name: str, norm: str) -> str:
    spec = specs()[name]
    alone = spec.randomised_version
    version = spec.version if alone is None else f"{spec.version}, {alone} on randomised defenses"
    return complaint(FILE, f"{name} {norm}", version, _fingerprint(name, norm))


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_the_fingerprint_is_that_of_the_version(name: str, norm: str) -> None:
    assert specs()[name].version is not None, f"{name}: a built-in attack declares a version"
    assert _complaint(name, norm) == ""


# -- what has to be noticed ---------------------------------------------------------------------------------------

_PROJECT = Lp.project_


def _ball_then_box(self: Lp, x_adv: Tensor, x: Tensor) -> Tensor:
    """Feasible, and not the nearest point: what is clipped at the box is lost to the other values."""
    delta = x_adv - x
    if self.norm == "linf":
        return _PROJECT(self, x_adv, x)
    size = length(delta, self.norm).clamp_min(1e-12)
    shrunk = x + delta * (self.eps / size).clamp_max(1.0).view(-1, *[1] * (x.ndim - 1))
    return x_adv.copy_(shrunk.clamp(self.low, self.high))


def _smaller(self: Lp, x_adv: Tensor, x: Tensor) -> Tensor:
    return _PROJECT(Lp(self.norm, 0.99 * self.eps, self.low, self.high), x_adv, x)


@pytest.mark.parametrize(("name", "norm", "rule"), [
    ("pgd", "l2", _ball_then_box), ("pgd", "l1", _ball_then_box), ("apgd", "l2", _ball_then_box),
    ("mi-fgsm", "l2", _ball_then_box), ("cascade", "l2", _ball_then_box),
    ("pgd", "linf", _smaller), ("bim", "linf", _smaller), ("transfer", "linf", _smaller),
])  # fmt: skip
def test_another_projection_under_the_same_version_is_noticed(
    monkeypatch: pytest.MonkeyPatch, name: str, norm: str, rule: Callable[[Lp, Tensor, Tensor], Tensor]
) -> None:
    monkeypatch.delenv("WRITE_FINGERPRINTS", raising=False)
    monkeypatch.setattr(Lp, "project_", rule)
    assert f"{name} {norm}: behaves differently under the same version 1" in _complaint(name, norm)
