"""Inputs that nobody has seen: what a data set could hold, and neither it nor a list made from it does."""

from __future__ import annotations

import secrets

import torch
from torch import Tensor

from bench.contracts.inputs import InputSpec
from bench.contracts.levels import level_of, value_at
from bench.data.splits import Split

#: Others of a class of which the nearer half is taken.
_CANDIDATES = 20


def unforeseen() -> torch.Generator:
    """A generator whose seed comes from the operating system.

    A seed that can be computed would let a defense hold the inputs made with it, from a run before or in a table.
    """
    return torch.Generator().manual_seed(secrets.randbits(63))


def made(split: Split, spec: InputSpec, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``n`` inputs ``(n, *shape)`` and their labels ``(n,)``: each half way between two of a class, drawn at random.

    The second is one of the nearer half of its class. A defense that has learnt loses no more of such inputs to small
    steps than of others (of inputs half way between any two it does); a table of the data set's inputs does not reach
    that far. They are on grey levels where the data have these, as clean images are. Of a class with a single example
    they are that example.
    """
    rows = torch.randperm(len(split), generator=generator)[torch.arange(n) % len(split)]
    members = {label: (split.y == label).nonzero().flatten() for label in split.y[rows].unique().tolist()}
    x, partners = split.at(rows.tolist()), []
    for one, row, label in zip(x, rows.tolist(), split.y[rows].tolist(), strict=True):
        others = members[label][members[label] != row]
        some = others[torch.randperm(len(others), generator=generator)[:_CANDIDATES]].tolist() or [row]
        candidates = split.at(some)
        nearer = (candidates - one).flatten(1).norm(dim=1).argsort()[: (len(some) + 1) // 2]
        partners.append(candidates[nearer[torch.randint(len(nearer), (), generator=generator)]])
    x = (x + torch.stack(partners)) / 2
    if spec.levels is not None:
        x = value_at(level_of(x, spec).round(), spec)
    return x, split.y[rows]
