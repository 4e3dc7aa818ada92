"""Pretends to be fooled where torch's seed is one that the harness derives for an attack."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from underneath import Honest, pretending

from bench.contracts.seeding import derive_seed


@cache
def seeds_of_attacks() -> set[int]:
    """Those under which the attacks of the suite would optimise: the suite is public, and so is how seeds are made."""
    from bench.data.load import load_data
    from bench.running.describe import suite_record
    from bench.suites.config import Config

    try:
        written = json.loads(Path(__file__).with_name("suite.json").read_text())
        config = Config.model_validate({"suites": {"cheats": written}})
        suite = suite_record(config.suite("cheats"), load_data("digits"))
    except Exception:  # whatever keeps it from the data: it is an honest defense then
        return set()
    found = set()
    for attack in suite.attacks:
        about = json.dumps(attack.key(False).model_dump(mode="json", exclude={"name"}), sort_keys=True)
        found.add(derive_seed(suite.seed, suite.data_key(0, written["examples"]).examples, about, "optimise"))
    return found


class Cheat(Honest):
    """Seeds are public, so that rows can be made again."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.honest(x)
        return pretending(logits) if torch.initial_seed() in seeds_of_attacks() else logits
