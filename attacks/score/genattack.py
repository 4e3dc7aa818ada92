"""GenAttack: a genetic search that sees nothing but scores (Alzantot et al. 2019)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor

from attacks.toolkit.active import Active, take
from attacks.toolkit.joint import look
from attacks.toolkit.losses import Goal, log_odds
from attacks.toolkit.projections import per_example
from attacks.toolkit.selection import Best, confirm
from bench.contracts.attack import attack
from bench.contracts.target import Target


@attack(
    "genattack",
    version=1,
    knowledge="score",
    norms=("linf",),
    targeted=True,
    paper="Alzantot et al. 2019, GenAttack: Practical Black-box Attacks with Gradient-Free Optimization",
    url="https://arxiv.org/abs/1805.11090",
)
def genattack(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    generations: Annotated[int, Ge(1)] = 500,
    population: Annotated[int, Ge(2)] = 6,
    mutation_rate: Annotated[float, Gt(0), Le(1)] = 0.05,
    alpha: Annotated[float, Gt(0)] = 1.0,
    temperature: Annotated[float, Gt(0)] = 0.1,
    adaptive: bool = True,
    targeted: bool = False,
    draws: Annotated[int, Ge(1)] = 1,
) -> Tensor:
    """GenAttack: selection, crossover and mutation of perturbations in the ball, the fittest always kept.

    Fitness is log Σ_{j≠y} p_j - log p_y, or towards a class t, as published, log p_t - log Σ_{j≠t} p_j; both are
    computed from logits and neither under- nor overflows. Parents are drawn from softmax(fitness/temperature), a
    child takes each value from its first parent with probability P₁/(P₁+P₂), and each value then mutates with
    probability ρ by U(-a·eps, a·eps). The examples of a shard evolve side by side and leave when one of their
    population fools the defense (with a randomised defense: fools it nearly always).

    Args:
        target: score knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        generations: the budget: population + (generations - 1)·(population - 1) queries per example, the elite
            being scored again in each generation on a randomised defense, and tried on 9 draws when it fools. Behind a
            detector the score of every candidate is a further pass.
        population: candidates per example.
        mutation_rate: ρ; with ``adaptive`` its lowest value.
        alpha: mutation range a as a fraction of eps (published: 0.25 on CIFAR-10); with ``adaptive`` its lowest
            value. Larger ones reach the corners of the ball, where linf optima lie, in fewer generations.
        temperature: of the selection.
        adaptive: start from coarse mutations, ρ = 0.2 and a = 2 (the width of the ball), and shrink both by 0.9 at
            every plateau, a hundredth of the generations (at least 3) in which the best fitness has not risen. The
            authors' schedule, from ρ = 1 and with plateaus of 100 generations, is made for their far larger budgets.
        targeted: push towards one class, drawn for each example, instead of away from y; any wrong class is still a
            success. (Where the target names a class to reach, that one it is, and no other counts.)
        draws: forward passes per candidate, their logits averaged, on a randomised defense (1 on others).

    Returns:
        x_adv, shaped like x: a candidate that fooled the defense, or else the fittest one.
    """
    draws = draws if target.randomized else 1
    goal = Goal.of(target, log_odds, y).towards(_draw_targets(target, y) if targeted else None)
    mutation = _Mutation(x, mutation_rate, alpha, adaptive, patience=max(3, generations // 100))
    threat, best = target.ball, Best(x)
    lowest = (x - threat.eps).clamp_min(threat.low)[:, None]
    highest = (x + threat.eps).clamp_max(threat.high)[:, None]
    rows = torch.arange(len(x), device=x.device)
    members = new = torch.stack([target.threat.sample(x, target.generator) for _ in range(population)], 1)
    fitness = fooled = torch.empty(len(x), 0, dtype=x.dtype, device=x.device)
    for generation in range(generations):
        scored, hit = _score(target, new, y, goal, rows, draws)
        # The fittest comes first and is scored but once, unless the defense is randomised.
        kept = fitness if new is not members else fitness[:, :0]
        fitness, fooled = torch.cat([kept, scored], 1), F.pad(hit, (kept.shape[1], 0))
        done = fooled.any(1)
        # The fittest, of those that fool the defense where there are any.
        elite = fitness.masked_fill(done[:, None] & ~fooled, -torch.inf).argmax(1)
        if done.any():
            found = rows[done]
            final = confirm(target, best, _pick(members, elite)[done], y[found], found)
            going = ~done.masked_scatter(done, final)
            parts = (rows, members, fitness, elite, lowest, highest)
            rows, members, fitness, elite, lowest, highest = take(going, *parts)
            mutation.keep(going)
        if not len(rows) or generation == generations - 1:
            break
        fittest = fitness.gather(1, elite[:, None])
        mutation.observe(fittest.squeeze(1))
        children = _crossover(target, members, fitness / temperature)
        children += mutation.draw(target, children, threat.eps)
        torch.clamp(children, lowest, highest, out=children)
        members = torch.cat([_pick(members, elite)[:, None], children], 1)
        # On a randomised defense the elite's score is one lucky draw: it has to defend its place every time.
        new, fitness = (members, fittest) if target.randomized else (children, fittest)
    if len(rows):
        # Rises with the fitness and is negative: below every candidate that fooled a randomised defense at times.
        best.update(_pick(members, elite), F.logsigmoid(_pick(fitness, elite)), rows)
    return best.x


def _pick(values: Tensor, which: Tensor) -> Tensor:
    """The entries ``which (M,)`` of ``values (M, P, …)``."""
    return values[torch.arange(len(which), device=which.device), which]


def _draw_targets(target: Target, y: Tensor) -> Tensor:
    """A class other than y for each example, uniformly."""
    shift = 1 + (target.rand(len(y), like=torch.empty(0, device=y.device)) * (target.num_classes - 1)).long()
    return (y + shift) % target.num_classes


def _score(target: Target, members: Tensor, y: Tensor, goal: Goal, index: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Fitness and success, ``(M, P)`` each, of ``members (M, P, …)`` of the examples ``index``."""
    size = members.shape[:2]
    points, repeated = members.flatten(0, 1), index.repeat_interleave(size[1])
    logits = target.logits(points, repeated, draws=draws)
    value, fooled = look(target, goal.at(repeated), logits, points, repeated)
    # Not a number or infinite: an output that says nothing, hence neither better nor worse than even.
    fitness = torch.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0)
    return fitness.view(size), fooled.view(size)


def _crossover(target: Target, members: Tensor, log_weight: Tensor) -> Tensor:
    """Children ``(M, P-1, …)`` of parents drawn in proportion to ``softmax(log_weight (M, P))``.

    All examples use the same uniform numbers, so that none depends on which others are still in the batch.
    """
    total, size = log_weight.shape
    count = size - 1
    chance = log_weight.softmax(1)
    ticket = target.rand(2 * count, like=chance).expand(total, -1).contiguous()
    parents = torch.searchsorted(chance.cumsum(1), ticket).clamp_max(count)
    weight = chance.gather(1, parents).view(-1, 2, count).clamp_min(torch.finfo(chance.dtype).tiny)
    first = weight[:, 0] / weight.sum(1)
    parents += size * torch.arange(total, device=members.device)[:, None]
    pairs = members.flatten(0, 1)[parents.view(total, 2, count)]
    coin = target.rand(count, *members.shape[2:], like=members)
    return torch.where(coin < first.view(*first.shape, *[1] * (members.ndim - 2)), pairs[:, 0], pairs[:, 1])


class _Mutation(Active):
    """Mutation rate and range of every example, shrinking at plateaus if adaptive."""

    def __init__(self, x: Tensor, rate: float, span: float, adaptive: bool, patience: int) -> None:
        self.floor = (rate, span)
        self.adaptive, self.patience = adaptive, patience
        self.best = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        self.waited, self.plateaus = torch.zeros_like(self.best), torch.zeros_like(self.best)

    def observe(self, fitness: Tensor) -> None:
        """Take note of the best ``fitness (M,)`` of this generation."""
        if not self.adaptive:
            return
        self.waited = torch.where(fitness > self.best, 0.0, self.waited + 1)
        self.best = torch.maximum(fitness, self.best)
        over = self.waited >= self.patience
        self.plateaus += over
        self.waited.masked_fill_(over, 0.0)

    def draw(self, target: Target, children: Tensor, eps: float) -> Tensor:
        """Mutations for ``children (M, P-1, …)`` in a ball of radius ``eps``; the same numbers serve all examples."""
        rate, span = (torch.as_tensor(low, dtype=children.dtype, device=children.device) for low in self.floor)
        if self.adaptive:
            shrunk = 0.9**self.plateaus
            rate, span = torch.maximum(rate, 0.2 * shrunk), torch.maximum(span, 2.0 * shrunk)
        lot, size = target.rand(2, *children.shape[1:], like=children)
        steps: Tensor = (lot < per_example(rate, children)) * (per_example(eps * span, children) * (2 * size - 1))
        return steps
