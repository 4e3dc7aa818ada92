"""What a defense does away from clean inputs, where attacks ask and the judge judges."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.contracts.defense import Defense
from bench.contracts.seeding import seeded
from bench.contracts.threat import Lp
from bench.data.splits import Data
from bench.judging.behaviour import Answers, check_size, depends_on_batch, depends_on_the_past, is_random
from bench.judging.made import made, unforeseen
from bench.judging.places import Pool, margin_gradient, places
from bench.judging.slopes import slopes
from bench.storing.records import Slopes

#: Inputs around which points are taken, and passes that are compared at each place.
EXAMPLES, PASSES = 16, 3


@dataclass(frozen=True)
class Behaviour:
    """What answers depend on besides the input, by the names of the places where that was seen.

    Attributes:
        random, batch: places; past: whether on what was asked before (None: cannot be told).
        mode: whether on a gradient being asked for.
        slopes: how far the gradient is that of the logits.
    """

    random: list[str]
    batch: list[str]
    past: bool | None
    mode: bool
    slopes: Slopes | None


def behaviour(
    defense: Defense, data: Data, unseen: slice, threat: Lp, seed: int, randomized: bool
) -> Behaviour:
    """Look where attacks go: at points of the ball off and on the grey levels, and where a gradient leads.

    Args:
        unseen: samples that it has not been asked about before; the first few of them are taken.
        randomized: whether clean inputs have shown it to be, or it says so.
    """
    device = next((p.device for p in defense.parameters()), torch.device("cpu"))
    rows = range(len(data.samples))[unseen][:EXAMPLES]
    x, y = data.samples.at(list(rows)).to(device), data.samples.y[list(rows)].to(device)
    pool = data.train if len(data.train) else data.samples
    # Made for this: a memory that lasts from one run to the next knows those of the data set already.
    new, labels = (part.to(device) for part in made(pool, data.info.input, len(rows), unforeseen()))
    past = depends_on_the_past(defense, new, Pool.of(pool, device).nearest(new, labels, threat), seed, "probe", "past")
    with seeded(seed, "probe", "places"):
        found = places(defense, data.info.input, threat, x, y, seed)
        for points in found.values():
            check_size(Answers.of(defense, points).logits)
        random: list[str] = []
        batch: list[str] = []
        if not randomized:
            random = [name for name, points in found.items() if is_random(defense, points, PASSES)]
        if not randomized and not random:
            batch = [name for name, points in found.items() if depends_on_batch(defense, points)]
            if not batch and depends_on_batch(defense, torch.cat([x, *found.values()])):
                batch = ["batches of mixed points"]
    at = torch.cat([x, found["random points of the ball"]])
    twice = y.repeat(2)
    with seeded(seed, "probe", "mode"):
        _, asked = margin_gradient(defense, at, twice)
    with seeded(seed, "probe", "mode"):
        plain = Answers.of(defense, at).logits
    mode = not random and asked is not None and Answers(plain, None).differ(Answers(asked, None))
    return Behaviour(random, batch, past, mode, slopes(defense, at, twice, threat, seed, "probe", "slopes"))
