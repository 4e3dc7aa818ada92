"""GenAttack: a genetic search that sees nothing but scores (Alzantot et al. 2019)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor

from attacks.projections import per_example, project_, start_in_ball
from attacks.selection import Best, strength
from bench.attack import attack
from bench.target import Target

#: Draws on which a candidate that fooled a randomised defense is tried again, and the share it has to fool to end.
_CONFIRM, _ENOUGH = 9, 0.88


@attack(
    "genattack",
    knowledge="score",
    norms=("linf",),
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
        x: ``(N, C, H, W)`` in the box; y: int64 ``(N,)``.
        generations: the budget: population + (generations - 1)·(population - 1) queries per example, the elite
            being scored again in each generation on a randomised defense, and tried on 9 draws when it fools.
        population: candidates per example.
        mutation_rate: ρ; with ``adaptive`` its lowest value.
        alpha: mutation range a as a fraction of eps (published: 0.25 on CIFAR-10); with ``adaptive`` its lowest
            value. Larger ones reach the corners of the ball, where linf optima lie, in fewer generations.
        temperature: of the selection.
        adaptive: start from coarse mutations, ρ = 0.2 and a = 2 (the width of the ball), and shrink both by 0.9 at
            every plateau, a hundredth of the generations (at least 3) in which the best fitness has not risen. The
            authors' schedule, from ρ = 1 and with plateaus of 100 generations, is made for their far larger budgets.
        targeted: push towards one class, drawn for each example, instead of away from y.
        draws: forward passes per candidate, their logits averaged, on a randomised defense (1 on others).

    Returns:
        x_adv, shaped like x: a candidate that fooled the defense, or else the fittest one.
    """
    draws = draws if target.randomized else 1
    goal = _draw_targets(target, y) if targeted else y
    mutation = _Mutation(len(x), x, mutation_rate, alpha, adaptive, patience=max(3, generations // 100))
    best = Best(x)
    active = torch.arange(len(x), device=x.device)
    members = torch.stack([start_in_ball(target, x) for _ in range(population)], 1)
    fitness, fooled = _score(target, members, y, goal, active, targeted, draws)
    for generation in range(generations):
        # The fittest goes first; one that fools the defense is fittest of all.
        elite = torch.where(fooled, torch.inf, fitness).argmax(1)
        rows = torch.arange(len(active), device=x.device)
        going = ~_record(best, target, members[rows, elite], fooled[rows, elite], fitness[rows, elite], y, active)
        active, members, fitness, elite = active[going], members[going], fitness[going], elite[going]
        if not len(active) or generation == generations - 1:
            break
        rows = rows[: len(active)]
        mutation.observe(fitness[rows, elite], active)
        kept = members[rows, elite][:, None]
        children = _crossover(target, members, fitness / temperature)
        children += target.threat.eps * mutation.draw(target, children, active)
        base = x[active][:, None].expand_as(children)
        children = project_(children.flatten(0, 1), base.flatten(0, 1), target.threat).view_as(children)
        members = torch.cat([kept, children], 1)
        # On a randomised defense the elite's score is one lucky draw: it has to defend its place every time.
        new = members if target.randomized else children
        scored, hit = _score(target, new, y, goal, active, targeted, draws)
        if target.randomized:
            fitness, fooled = scored, hit
        else:
            fitness = torch.cat([fitness[rows, elite][:, None], scored], 1)
            fooled = torch.cat([torch.zeros_like(hit[:, :1]), hit], 1)
    return best.x


def _record(
    best: Best, target: Target, elite: Tensor, fooled: Tensor, fitness: Tensor, y: Tensor, index: Tensor
) -> Tensor:
    """Keep the elite of each of the examples ``index``; returns which of them are finished.

    A candidate that fools is preferred to one that does not. On a randomised defense one answer is luck: the
    candidate is tried on fresh draws, and preferred by how many of them it fools.
    """
    order = F.logsigmoid(fitness)  # rises with the fitness and is negative: below every candidate that fools
    if not target.randomized:
        best.update(elite, torch.where(fooled, 1.0, order), index)
        return fooled
    if fooled.any():
        order[fooled] = strength(target, elite[fooled], y[index[fooled]], index[fooled], _CONFIRM).to(order)
    best.update(elite, order, index)
    return fooled & (order >= _ENOUGH)


def _draw_targets(target: Target, y: Tensor) -> Tensor:
    """A class other than y for each example, uniformly."""
    shift = 1 + (target.rand(len(y), like=torch.empty(0, device=y.device)) * (target.num_classes - 1)).long()
    return (y + shift) % target.num_classes


def _score(
    target: Target, members: Tensor, y: Tensor, goal: Tensor, index: Tensor, targeted: bool, draws: int
) -> tuple[Tensor, Tensor]:
    """Fitness and success, ``(M, P)`` each, of ``members (M, P, …)`` of the examples ``index``."""
    size = members.shape[:2]
    rows, repeated = members.flatten(0, 1), index.repeat_interleave(size[1])
    logits = target.logits(rows, repeated, draws=draws)
    fooled = target.fooled(logits, rows, y[repeated], repeated)
    wanted = goal[repeated][:, None]
    rest = logits.scatter(1, wanted, -torch.inf).logsumexp(1)
    fitness = rest - logits.gather(1, wanted).squeeze(1)
    # Not a number or infinite: an output that says nothing, hence neither better nor worse than even.
    fitness = torch.nan_to_num(-fitness if targeted else fitness, nan=0.0, posinf=0.0, neginf=0.0)
    return fitness.view(size), fooled.view(size)


def _crossover(target: Target, members: Tensor, log_weight: Tensor) -> Tensor:
    """Children ``(M, P-1, …)`` of parents drawn in proportion to ``softmax(log_weight (M, P))``.

    All examples use the same uniform numbers, so that none depends on which others are still in the batch.
    """
    count = members.shape[1] - 1
    chance = log_weight.softmax(1)
    ticket = target.rand(2 * count, like=chance).expand(len(chance), -1).contiguous()
    parents = torch.searchsorted(chance.cumsum(1), ticket).clamp_max(count)
    weight = chance.gather(1, parents).view(-1, 2, count).clamp_min(torch.finfo(chance.dtype).tiny)
    first = weight[:, 0] / weight.sum(1)
    rows = torch.arange(len(members), device=members.device)[:, None]
    one, two = (members[rows, parents[:, part]] for part in (slice(count), slice(count, None)))
    coin = target.rand(*members.shape[1:], like=members)[1:]
    return torch.where(coin < first.view(*first.shape, *[1] * (members.ndim - 2)), one, two)


class _Mutation:
    """Mutation rate and range of every example, shrinking at plateaus if adaptive."""

    def __init__(self, n: int, like: Tensor, rate: float, span: float, adaptive: bool, patience: int) -> None:
        self.floor = (rate, span)
        self.adaptive, self.patience = adaptive, patience
        self.best = torch.full((n,), -torch.inf, dtype=like.dtype, device=like.device)
        self.waited = torch.zeros(n, device=like.device)
        self.plateaus = torch.zeros(n, dtype=like.dtype, device=like.device)

    def observe(self, fitness: Tensor, index: Tensor) -> None:
        """Take note of the best ``fitness (M,)`` of this generation."""
        better = fitness > self.best[index]
        self.best[index] = torch.maximum(fitness, self.best[index])
        self.waited[index] = torch.where(better, 0.0, self.waited[index] + 1)
        over = index[self.waited[index] >= self.patience]
        self.plateaus[over] += 1
        self.waited[over] = 0.0

    def draw(self, target: Target, children: Tensor, index: Tensor) -> Tensor:
        """Mutations in units of eps for ``children (M, P-1, …)``; the same numbers serve all examples."""
        rate, span = (torch.full((len(index),), low).to(children) for low in self.floor)
        if self.adaptive:
            shrunk = 0.9 ** self.plateaus[index]
            rate, span = torch.maximum(rate, 0.2 * shrunk), torch.maximum(span, 2.0 * shrunk)
        shape = children.shape[1:]
        where = target.rand(*shape, like=children) < per_example(rate, children)
        return where * per_example(span, children) * (2 * target.rand(*shape, like=children) - 1)
