"""L-BFGS: its minima beside SciPy's, passes, the class it pursues."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lab import curved_case, linear_case, make_target
from scipy.optimize import minimize

from attacks.minimum_norm.lbfgs import lbfgs
from attacks.toolkit.losses import ce
from attacks.toolkit.selection import ranked_classes


@pytest.mark.parametrize("const", [1e-3, 1e-2, 0.03])
def test_a_run_reaches_the_minimum_that_scipy_finds(const) -> None:
    defense, x, y = curved_case(4)
    defense, x = defense.double(), x.double()
    t = ranked_classes(defense(x), y, 1)[0]

    def objective(flat: np.ndarray, i: int) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(flat.copy()).view(1, 1, 8, 8).requires_grad_()
        size = (point - x[i : i + 1]).square().sum()
        value = size - const * ce(defense(point), y[i : i + 1], t[i : i + 1]).sum()
        return value.item(), torch.autograd.grad(value, point)[0].flatten().numpy()

    target = make_target(defense, 4, "gradient", norm="l2", eps=8)
    x_adv = lbfgs(target, x, y, initial_const=const, searches=1, steps=60, stop_inside=False)
    for i in range(4):
        if defense(x_adv[i : i + 1]).argmax(1) != y[i]:
            continue  # what is returned is then the shortest point, not the minimum
        ours, _ = objective(x_adv[i].flatten().numpy(), i)
        start = x[i].flatten().numpy()
        theirs = minimize(objective, start, (i,), "L-BFGS-B", jac=True, bounds=[(0, 1)] * 64)
        began, _ = objective(start, i)
        assert began - ours > 0.99 * (began - theirs.fun)


def test_every_pass_is_counted() -> None:
    case = linear_case(2, (1, 8, 8), "l2")
    target = case.target(4.0, "gradient")
    lbfgs(target, case.x, case.y, steps=1, searches=7, stop_inside=False)
    assert target.counts.forward.tolist() == [8, 8]
    assert target.counts.backward.tolist() == [7, 7]
    target = case.target(4.0, "gradient", towards=1 - case.y)  # nothing to rank
    lbfgs(target, case.x, case.y, steps=1, searches=7, stop_inside=False)
    assert target.counts.forward.tolist() == target.counts.backward.tolist() == [7, 7]


@pytest.mark.parametrize("initial_const", [1e-5, 1e3])
def test_the_search_finds_c_from_far_off(initial_const) -> None:
    case = linear_case(3, (1, 8, 8), "l2")
    target = case.target(8.0, "gradient")
    x_adv = lbfgs(target, case.x, case.y, initial_const=initial_const, searches=16, stop_inside=False)
    assert case.fooled(x_adv).all()
    assert (x_adv - case.x).flatten(1).norm(dim=1).max() < 1.05 * case.radius


def test_a_history_of_one_will_do() -> None:
    defense, x, y = curved_case(4)
    target = make_target(defense, 4, "gradient", norm="l2", eps=8)
    x_adv = lbfgs(target, x, y, history=1, stop_inside=False)
    assert (defense(x_adv).argmax(1) != y).all()
