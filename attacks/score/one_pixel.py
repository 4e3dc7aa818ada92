"""One-pixel attack: differential evolution over a few pixels that sees nothing but scores (Su et al. 2019)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from attacks.toolkit.active import take
from attacks.toolkit.joint import look
from attacks.toolkit.losses import Goal, LossLike, get_loss
from attacks.toolkit.selection import CONFIRM, Best, confirm, strength
from bench.contracts.attack import attack
from bench.contracts.target import Target

#: Values of one batch of candidates (33 million float32 are 128 MiB).
_VALUES = 2**25
#: On a randomised defense, one generation in so many scores the parents afresh instead of making children.
_RESCORE = 5


@attack(
    "one-pixel",
    version=1,
    knowledge="score",
    norms=("l0",),
    targeted=True,
    paper="Su, Vargas & Sakurai 2019, One Pixel Attack for Fooling Deep Neural Networks",
    url="https://arxiv.org/abs/1710.08864",
)
def one_pixel(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    generations: Annotated[int, Ge(1)] = 100,
    population: Annotated[int, Ge(3)] = 400,
    scale: Annotated[float, Gt(0)] = 0.5,
    crossover: Annotated[float, Gt(0), Le(1)] = 0.3,
    fresh: Annotated[float, Ge(0), Lt(1)] = 0.1,
    loss: LossLike = "margin",
    draws: Annotated[int, Ge(1)] = 1,
) -> Tensor:
    """One-pixel attack: the places and colours of eps pixels evolve by differential evolution.

    A candidate has five numbers per pixel (on colour images): row, column and colour. (Of a waveform a pixel is a
    time, in a row of values it is one of them, and its place is one number.) Its child is
    a + F·(b - c) with three other candidates a, b, c drawn at random, and takes its place when the loss is higher
    (eq. 3). Numbers are clipped to their ranges, which the paper leaves open. The populations of all examples are
    scored as one batch, and an example leaves when one of its candidates fools the defense.

    Two things are not in the paper and switched off by ``crossover=1, fresh=0``: a child keeps most of the pixels of
    the candidate it competes with, and now and then a pixel is a new one. On the adversarially trained digits, with
    three pixels, 2000 queries and 50 candidates, that leaves 3 % instead of 10 %.

    Args:
        target: score knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        generations: the budget: generations · population · draws queries per example. (On a randomised defense
            a candidate that fooled, and the best one at the end, are besides tried on 9 draws. Behind a detector the
            score of every candidate is a further pass.)
        population: candidates per example. At a few thousand queries 50 with more generations do better.
        scale: F, the factor of the difference of two candidates.
        crossover: chance of each pixel of a child to be a + F·(b - c), which one of them is always, and not the one
            of the candidate it competes with.
        fresh: chance of each such pixel to be drawn as in the first generation instead.
        loss: the fitness (``attacks.toolkit.losses``); the published one orders candidates as ``ce`` does.
        draws: forward passes per candidate, their logits averaged, on a randomised defense (1 on others).

    Returns:
        x_adv, shaped like x, with at most eps pixels changed: a candidate that fooled, or else the fittest one.
    """
    n, pixels = len(x), min(int(target.ball.eps), math.prod(_sides(x)))
    if pixels < 1:
        return x.clone()
    goal, best = Goal.of(target, get_loss(loss), y), Best(x)
    draws = draws if target.randomized else 1
    parents = _random(target, x, n, population, pixels)
    fitness = torch.full((n, population), -torch.inf, dtype=x.dtype, device=x.device)
    rows = torch.arange(n, device=x.device)
    for generation in range(generations):
        # Of many candidates on a randomised defense those that were kept had luck.
        again = target.randomized and generation % _RESCORE == _RESCORE - 1
        children = parents if again or generation == 0 else _children(target, x, parents, scale, crossover, fresh)
        value, fooled = _score(target, children, x, goal, rows, draws)
        better = torch.ones_like(fooled) if again else value > fitness
        parents = torch.where(better[:, :, None, None], children, parents)
        fitness = torch.where(better, value, fitness)
        hit = fooled.any(1)
        if hit.any():
            found = rows[hit]
            fittest = torch.where(fooled, value, -torch.inf)[hit].argmax(1)
            points = _paint(target, _pick(children[hit], fittest), x[found])
            going = ~hit.masked_scatter(hit, confirm(target, best, points, y[found], found))
            rows, parents, fitness = take(going, rows, parents, fitness)
            if not len(rows):
                return best.x
    points, score = _paint(target, _pick(parents, fitness.argmax(1)), x[rows]), fitness.amax(1)
    if target.randomized:
        score = strength(target, points, y[rows], rows, CONFIRM)
    best.update(points, score, rows)
    return best.x


def _pick(members: Tensor, which: Tensor) -> Tensor:
    """Member ``which (M,)`` of each population ``(M, P, …)``."""
    return members[torch.arange(len(which), device=which.device), which]


def _sides(x: Tensor) -> tuple[int, ...]:
    """The sides of the grid of pixels of ``x (M, C, …)`` or ``(M, D)``."""
    return tuple(x.shape[2:] or x.shape[1:])


def _random(target: Target, x: Tensor, *shape: int) -> Tensor:
    """Random pixels ``(*shape, P + C)``: P places uniform, colours normal, as published N(128, 127) of 255.

    All numbers are in [0, 1]: places as shares of the sides, colours as shares of the box.
    """
    channels = x.shape[1] if x.ndim > 2 else 1
    places, colours = target.rand(*shape, len(_sides(x)), like=x), target.randn(*shape, channels, like=x)
    return torch.cat([places, 0.5 + 0.5 * colours], -1).clamp_(0, 1)


def _children(target: Target, x: Tensor, parents: Tensor, scale: float, crossover: float, fresh: float) -> Tensor:
    """A child of each member of ``parents (M, P, pixels, numbers)``.

    All examples use the same random numbers, so that none depends on which others are still in the batch.
    """
    size, pixels = parents.shape[1:3]
    # Three different members.
    u = target.rand(3, size, like=parents)
    a, b, c = ((u[k] * (size - k)).long().clamp_max(size - k - 1) for k in range(3))
    b += b >= a
    lower, upper = torch.minimum(a, b), torch.maximum(a, b)
    c += c >= lower
    c += c >= upper
    mutant = (parents[:, a] + scale * (parents[:, b] - parents[:, c])).clamp_(0, 1)
    chance, lot = target.rand(2, size, pixels, 1, like=parents)
    taken = (chance < crossover) | (lot == lot.amax(1, keepdim=True))
    new = target.rand(size, pixels, 1, like=parents) < fresh
    mutant = torch.where(new, _random(target, x, size, pixels), mutant)
    return torch.where(taken, mutant, parents)


def _paint(target: Target, members: Tensor, x: Tensor) -> Tensor:
    """The images ``x (M, C, …)`` with the pixels that ``members (M, pixels, numbers)`` describe."""
    dims = len(_sides(x))
    sides = torch.tensor(_sides(x), dtype=x.dtype, device=x.device)
    place, *further = torch.minimum(members[:, :, :dims] * sides, sides - 1).long().unbind(2)
    for side, position in zip(_sides(x)[1:], further, strict=True):
        place = place * side + position
    low, high = target.ball.low, target.ball.high
    colour = low + (high - low) * members[:, :, dims:]
    images = (x.flatten(2) if x.ndim > 2 else x[:, None]).clone()
    for pixel in range(members.shape[1]):  # one after another: where two coincide the last one is seen
        at = place[:, pixel, None, None].expand(-1, images.shape[1], 1)
        images.scatter_(2, at, colour[:, pixel, :, None])
    return images.view_as(x)


def _score(target: Target, members: Tensor, x: Tensor, goal: Goal, rows: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Fitness and success, ``(M, P)`` each, of ``members (M, P, …)`` of the examples ``rows``."""
    size = members.shape[1]
    values, hits = [], []
    step = max(1, _VALUES // (size * x[0].numel()))
    for some, index in zip(members.split(step), rows.split(step), strict=True):
        repeated = index.repeat_interleave(size)
        points = _paint(target, some.flatten(0, 1), x[repeated])
        logits = target.logits(points, repeated, draws=draws)
        value, hit = look(target, goal.at(repeated), logits, points, repeated)
        values.append(value)
        hits.append(hit)
    fitness = torch.cat(values)
    # An output that is not a number is worth less than any other; among those that fool it still is one.
    fitness = torch.where(fitness.isfinite(), fitness, torch.finfo(fitness.dtype).min)
    return fitness.view(-1, size), torch.cat(hits).view(-1, size)
