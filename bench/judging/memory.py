"""Whether the inputs of the suite are answered better than fresh ones of the same kind."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.contracts.defense import Defense
from bench.contracts.seeding import generator
from bench.contracts.threat import Lp
from bench.data.splits import Data, Split
from bench.judging.places import Pool, along_the_gradient
from bench.storing.records import Memory

#: Inputs of either kind.
EXAMPLES = 64
#: Copies that stay this near in shares of the ball should be answered as the original is.
NEAR = 0.05


@torch.no_grad()
def memory(defense: Defense, data: Data, known: Split, threat: Lp, batch_size: int) -> Memory | None:
    """Right answers to the suite's inputs and to fresh ones: as they are, moved a little, and wherever a step to the
    edge of the ball leads: along the gradient, towards an input of another class, and towards another class's mean.

    None where there are no fresh ones.

    Args:
        known: the inputs that are attacked.
    """
    fresh = data.validation if len(data.validation) else data.test
    names = set(known.ids)
    if not len(fresh) or names.intersection(fresh.ids):
        return None
    device = next((p.device for p in defense.parameters()), torch.device("cpu"))
    pool = Pool.of(data.train if len(data.train) else fresh, device)

    def right(x: Tensor, y: Tensor) -> Tensor:
        parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
        return torch.cat([defense(part).argmax(1) == labels for part, labels in parts])

    def counted(split: Split) -> tuple[int, int, int, int]:
        some = split.take(EXAMPLES)
        x, y = some.x.to(device, copy=True), some.y.to(device)
        near = x + NEAR * (threat.sample(x, generator("probe", "near", len(x))) - x)
        steps = [pool.nearest(x, y, threat), pool.between_means(x, y, threat)]
        if (step := along_the_gradient(defense, x, y, threat)) is not None:
            steps.append(step)
        moved = torch.stack([right(points, y) for points in steps]).all(0)
        return len(x), int(right(x.clone(), y).sum()), int(right(near, y).sum()), int(moved.sum())

    of_known, of_fresh = counted(known), counted(fresh)
    return Memory(
        examples=of_known[0], clean=of_known[1], near=of_known[2], moved=of_known[3],
        fresh_examples=of_fresh[0], fresh_clean=of_fresh[1], fresh_near=of_fresh[2], fresh_moved=of_fresh[3],
    )  # fmt: skip
