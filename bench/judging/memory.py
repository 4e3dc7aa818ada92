"""Whether the inputs of the suite are answered better than fresh ones of the same kind."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.contracts.defense import Defense
from bench.contracts.seeding import generator
from bench.contracts.threat import Lp
from bench.data.splits import Data, Split
from bench.isolation.company import Company, in_company
from bench.judging.made import made, unforeseen
from bench.judging.places import Pool, along_the_gradient
from bench.storing.records import Memory

#: Inputs of each kind, at most.
EXAMPLES = 256
#: Copies that stay this near in shares of the ball should be answered as the original is.
NEAR = 0.05


#: By how much more of the suite's inputs has to stay right for more inputs to be made, and how often at most: else
#: luck with those that were made would hide a defense that knows a few of the suite's.
SUSPECT, BATCHES_MADE = 0.1, 4


def _kept(counts: tuple[int, ...]) -> float:
    """Of inputs that are right as they are the share that stays right when moved."""
    _, clean, _, moved = counts
    return min(moved, clean) / clean if clean else 0.0


@torch.no_grad()
def memory(defense: Defense, data: Data, known: Split, threat: Lp, batch_size: int) -> Memory | None:
    """Right answers to the suite's inputs and to fresh ones: as they are, moved a little, and wherever a step to the
    edge of the ball leads: along the gradient, towards an input of another class, and towards another class's mean.

    Fresh are those of the validation split, which a defense may know as well if it holds the whole data set, and such
    as are made for this (:func:`bench.judging.made.made`), which no defense can know. None where there is no
    validation split.

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

    def counted(x: Tensor, y: Tensor) -> tuple[int, int, int, int]:
        x, y = x.to(device, copy=True), y.to(device)
        with in_company(defense, Company(x, threat, data.info.input, unforeseen())):
            return asked_about(x, y)

    def asked_about(x: Tensor, y: Tensor) -> tuple[int, int, int, int]:
        near = x + NEAR * (threat.sample(x, generator("probe", "near", len(x))) - x)
        steps = [pool.nearest(x, y, threat), pool.between_means(x, y, threat)]
        parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
        along = [along_the_gradient(defense, part, labels, threat) for part, labels in parts]
        if all(part is not None for part in along):
            steps.append(torch.cat([part for part in along if part is not None]))
        moved = torch.stack([right(points, y) for points in steps]).all(0)
        return len(x), int(right(x.clone(), y).sum()), int(right(near, y).sum()), int(moved.sum())

    n = min(EXAMPLES, len(known))
    of_known, of_fresh = (counted(split.x, split.y) for split in (known.take(n), fresh.take(n)))
    of_made: tuple[int, ...] = (0, 0, 0, 0)
    for _ in range(BATCHES_MADE):
        more = counted(*made(data.train if len(data.train) else fresh, data.info.input, EXAMPLES, unforeseen()))
        of_made = tuple(a + b for a, b in zip(of_made, more, strict=True))
        if _kept(of_known) - _kept(of_made) <= SUSPECT:
            break
    return Memory(
        examples=of_known[0], clean=of_known[1], near=of_known[2], moved=of_known[3],
        fresh_examples=of_fresh[0], fresh_clean=of_fresh[1], fresh_near=of_fresh[2], fresh_moved=of_fresh[3],
        made_examples=of_made[0], made_clean=of_made[1], made_moved=of_made[3],
    )  # fmt: skip
