"""HopSkipJump's parts, and defenses on which its textbook form fails."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lab import length, linear_case, make_target
from torch import Tensor

from attacks.decision.hopskipjump import hopskipjump
from attacks.toolkit.boundary_walk import Walk
from attacks.toolkit.decision_walk import Oracle, find_start
from bench.contracts.defense import Defense
from bench.contracts.inputs import DataInfo, InputSpec

INFO = DataInfo("toy", InputSpec((1, 8, 8)), 2)


def _walk(norm: str, queries: int = 2000) -> tuple[Walk, Tensor]:
    case = linear_case(3, (1, 8, 8), norm)
    target = case.target(1.0, "decision")
    return Walk(Oracle(target, case.y, queries), case.x, 1.0), case.x


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_search_ends_on_the_adversarial_side_of_the_boundary(norm) -> None:
    walk, x = _walk(norm)
    begin, rows = find_start(walk.nearest, 20)
    assert rows.tolist() == [0, 1, 2]
    walk.search(begin, rows)
    assert walk.oracle(walk.point, rows).all()
    nearer = x + 0.995 * (walk.point - x)
    assert not walk.oracle(nearer, rows).any()
    assert (length(walk.point - x, norm) < length(begin - x, norm)).all()


def test_the_normal_of_a_linear_boundary_is_its_weight() -> None:
    walk, _ = _walk("l2", queries=10000)
    walk.search(*find_start(walk.nearest, 20))
    rows = torch.arange(3)
    normal = walk.normal(rows, 2000).flatten(1)
    weight = walk.target._defense.classifier.weight  # type: ignore[attr-defined]
    truth = torch.stack([weight[1] - weight[0], weight[0] - weight[1], weight[1] - weight[0]])
    assert (F.cosine_similarity(normal, truth) > 0.95).all()


def test_directions_are_orthogonal_within_a_block() -> None:
    walk, _ = _walk("l2")
    flat = walk._directions(100).flatten(1)
    assert flat.shape == (100, 64)
    torch.testing.assert_close(flat[:64] @ flat[:64].T, torch.eye(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(flat[64:] @ flat[64:].T, torch.eye(36), atol=1e-5, rtol=0)


def test_probes_that_all_agree_grow() -> None:
    walk, _ = _walk("linf")
    walk.point = walk.x.clone()  # deep inside the right class: every probe says no
    rows = torch.arange(3)
    before = walk.delta.clone()
    walk.normal(rows, 20)
    torch.testing.assert_close(walk.delta, 2 * before)


def test_an_image_of_another_class_is_a_start_where_noise_is_none() -> None:
    class Centre(Defense):
        """Class 1 only where a centre pixel is bright and all else is dark: no noise image is."""

        def forward(self, x: Tensor) -> Tensor:
            rest = x.flatten(1).sum(1) - x[:, 0, 4, 4]
            hit = (x[:, 0, 4, 4] > 0.5) & (rest < 1)
            return torch.stack([(~hit).float(), hit.float()], 1)

    x = torch.zeros(2, 1, 8, 8)
    x[1, 0, 4, 4] = 1.0
    target = make_target(Centre(INFO), 2, "decision", eps=0.6)
    x_adv = hopskipjump(target, x, torch.tensor([0, 1]), init_tries=20)
    assert (Centre(INFO)(x_adv).argmax(1) != torch.tensor([0, 1])).all()


def test_what_is_returned_on_a_deterministic_defense_lies_beyond_the_boundary() -> None:
    case = linear_case(3, (1, 8, 8), "linf")
    x_adv = hopskipjump(case.target(1.5, "decision"), case.x, case.y, queries=3000)
    torch.testing.assert_close(length(x_adv - case.x, "linf"), torch.full((3,), 1.5 * case.radius))
    shrunk = case.x + 0.98 * (x_adv - case.x)
    assert case.fooled(shrunk).all()
