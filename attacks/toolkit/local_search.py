"""Annealed random search around the best points of a pool, on random draws that all proposals have in common."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attacks.toolkit.common_draws import common_draws
from attacks.toolkit.joint import merit
from attacks.toolkit.losses import Goal, margin, probability, repeat
from attacks.toolkit.pool import Pool
from attacks.toolkit.projections import per_example
from bench.contracts.target import Target

#: Side of the first and of the last windows as a share of each side of the input.
_WIDEST, _NARROWEST = 0.6, 0.05
#: Proposals between one set of common draws and the next, on a randomised defense.
_KEEP_DRAWS = 25
#: By how much of what proposals typically change one may be worse at first (falls to zero), and how long a change is
#: remembered for that.
_HEAT, _MEMORY = 0.25, 0.9


def local_search(pool: Pool, index: Tensor, queries: int, draws: int) -> None:
    """Search around the best points of the examples ``index`` by proposals of random windows; offers what it finds.

    A proposal changes a window of random place, the windows getting smaller: to the far side of the ball for each
    channel (as in Andriushchenko et al. 2020), to what another point of the pool has there, to random values, or back
    to x. It is taken where the value rises, and at first also where it falls a little (annealing). The value is the
    margin, or behind a detector the joint objective; on a randomised defense without a detector the mean of -p_y over
    ``draws`` random draws, which are the same for all proposals until they are drawn anew. So two points are told apart
    by far fewer draws than if each had its own, and what no gradient tells, such as a choice among patches, is
    searched.

    Args:
        index: int64 ``(M,)``, examples of the pool.
        queries: forward passes for each of them.
        draws: in a value, on a randomised defense.
    """
    if not len(index):
        return
    target, draws = pool.target, draws if pool.target.randomized else 1
    steps = max(1, queries // draws)
    every = _KEEP_DRAWS if target.randomized else steps + 1
    point = pool.best[index]
    value = best_value = point.new_empty(0)
    best, token = point, 0
    x, typical = pool.x[index], torch.zeros(len(index), dtype=point.dtype, device=point.device)
    for step in range(steps):
        if step % every == 0:
            token = int(target.rand(1, like=x).double() * 2**31)
            if step:  # of what was kept on other draws: whether it still is the best
                pool.offer(best, index)
            value = _value(pool, point, index, draws, token)
            best, best_value = point, value
            continue
        done = step / steps
        proposal = _propose(pool, point, x, index, _WIDEST * (_NARROWEST / _WIDEST) ** done)
        new = _value(pool, proposal, index, draws, token)
        typical = _MEMORY * typical + (1 - _MEMORY) * (new - value).abs().nan_to_num(posinf=0.0)
        heat = _HEAT * (1 - done) * typical * -target.rand(len(index), like=x).clamp_min(1e-9).log()
        taken = new > value - heat
        point, value = torch.where(per_example(taken, point), proposal, point), torch.where(taken, new, value)
        ahead = value > best_value
        best, best_value = torch.where(per_example(ahead, point), point, best), torch.maximum(value, best_value)
    pool.offer(best, index)


def _value(pool: Pool, points: Tensor, index: Tensor, draws: int, token: int) -> Tensor:
    """What is to rise, ``(M,)``, on the draws named ``token``."""
    target, rows, examples = pool.target, repeat(points, draws), index.repeat(draws)
    with common_draws(target, token):
        logits = target.logits(rows, examples)
        scores = target.scores(rows, examples) if target.rejects else None
    loss = probability if target.randomized and not target.rejects else margin
    goal = Goal.of(target, loss, pool.y).at(examples)
    value = goal(logits) if scores is None else merit(target, goal, logits, rows, examples, scores)
    return value.nan_to_num(nan=torch.inf).view(draws, len(points)).mean(0)


def _propose(pool: Pool, point: Tensor, x: Tensor, index: Tensor, side: float) -> Tensor:
    """``point`` with a window of each row changed in one of four ways, drawn for each."""
    target, threat = pool.target, pool.target.ball
    signs = (target.rand(*x.shape[:2], *[1] * (x.ndim - 2), like=x) - 0.5).sign()
    # In l2 as long as if the window took most of the perturbation; the projection takes from what is outside.
    length = threat.eps if threat.norm == "linf" else threat.eps / (side * math.sqrt(x[0].numel()))
    far = (x + length * signs).clamp(threat.low, threat.high)
    ways = torch.stack([far, pool.other(index), threat.sample(x, target.generator), x])
    way = torch.tensor([0, 0, 0, 1, 1, 1, 2, 3], device=x.device)[(target.rand(len(x), like=x) * 8).long().clamp_max(7)]
    new = ways[way, torch.arange(len(x), device=x.device)]
    return threat.project_(torch.where(_windows(target, x, side), new, point), x)


def _windows(target: Target, x: Tensor, side: float) -> Tensor:
    """Boxes of ``side`` of each side of an input at places of their own, bool ``(M, 1, …)``, of vectors ``(M, D)``."""
    mask = torch.ones_like(x if x.ndim == 2 else x[:, :1], dtype=torch.bool)
    for axis in range(1 if x.ndim == 2 else 2, x.ndim):
        length = x.shape[axis]
        width = max(1, round(side * length))
        corner = (target.rand(len(x), like=x) * (length - width + 1)).long()
        places = torch.arange(length, device=x.device).view(*[-1 if a == axis else 1 for a in range(x.ndim)])
        corner = corner.view(-1, *[1] * (x.ndim - 1))
        mask = mask & (places >= corner) & (places < corner + width)
    return mask
