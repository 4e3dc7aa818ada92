"""After the attacks: a defense is asked once more about the adversarial inputs that they have found.

A probe comes before the attacks and cannot know their points. What shows itself at these alone shows itself here:
randomness, dependence on the batch, and answers other than those that the judge was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.contracts.errors import InputError
from bench.contracts.seeding import seeded
from bench.engines.supply import Supply
from bench.judging.behaviour import Answers, depends_on_batch, is_random, undecided
from bench.running.cell import Setting, open_context
from bench.running.gallery import Chosen, gallery_of
from bench.storing.current import current_headers
from bench.storing.images import Images, decode, pick
from bench.storing.records import Afterwards, DefenseRecord, GalleryEntry, SuiteRecord
from bench.storing.store import Store

#: Adversarial inputs that are asked about again, and passes that are compared.
MOST, PASSES = 64, 3


@dataclass
class Found:
    """Adversarial inputs of all attacks as they are stored, one each, with the positions of their examples in the
    suite, the labels, and whether the judge found them right."""

    images: list[Images] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)


def found_by_attacks(results: Path, suite: SuiteRecord, defense: DefenseRecord) -> Found:
    """As many adversarial inputs of every attack, of the first shards that it has finished."""
    store, found = Store(results, suite.name), Found()
    attacks = [attack for attack in suite.attacks if attack.counted]
    each = max(1, MOST // max(1, len(attacks)))
    for attack in attacks:
        left = each
        for file, header in current_headers(store, suite, defense, attack):
            if not left:
                break
            if header.status != "ok":
                continue
            shard = file.read()
            try:
                images = store.images(shard)
            except InputError:
                continue
            kept = [(at, i) for at, i in enumerate(shard.stored) if shard.rows[i].reason == "ok"]
            for at, i in kept[:left]:
                row = shard.rows[i]
                found.images.append(pick(images, [at]))
                found.positions.append(shard.start + i)
                found.labels.append(row.label)
                found.right.append(row.report_correct == shard.draws_report)
                left -= 1
    return found


@torch.no_grad()
def asked_afterwards(setting: Setting, found: Found) -> Afterwards | None:
    """What a defense says now; None where no attack has found anything."""
    if not found.images:
        return None
    context = open_context(setting)
    defense, clean = context.defense, context.examples.at(found.positions)
    x_adv = [decode(images, clean[i : i + 1]) for i, images in enumerate(found.images)]
    x = torch.cat(x_adv).float().to(setting.torch_device)
    with seeded(setting.suite.seed, "afterwards"):
        # From the last to the first, all attacks' in one batch: another order and other company than before.
        now = Answers.of(defense, x.flip(0))
        random = is_random(defense, x, PASSES)
        batch = not random and not setting.randomized and depends_on_batch(defense, x)
    differing = 0
    if not setting.randomized and setting.suite.towards is None:
        right = now.logits.argmax(1).cpu() == torch.tensor(found.labels).flip(0)
        told = torch.tensor(found.right).flip(0)
        differing = int(((right != told) & ~undecided(now.logits).cpu()).sum())
    return Afterwards(points=len(x), random=random, batch_dependent=batch, differing=differing)


def finish(
    setting: Setting, chosen: Supply[Chosen], found: Supply[Found] | None
) -> tuple[Sequence[GalleryEntry], bytes | None, Afterwards | None]:
    """What is made of a defense once its attacks have ended: its gallery, and what it says of their points now."""
    afterwards = None if found is None else asked_afterwards(setting, found.take())
    return *gallery_of(setting, chosen), afterwards
