"""A few examples as images: clean, adversarial, and what the defense's transform makes of both."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from bench.contracts.errors import InputError
from bench.contracts.seeding import generator, seeded
from bench.engines.supply import Supply
from bench.isolation.company import Company, in_company
from bench.running.cell import Setting, open_context
from bench.storing.current import current_headers
from bench.storing.images import Images, decode, pick
from bench.storing.reading import ShardFile
from bench.storing.records import AttackRecord, DefenseRecord, GalleryEntry, Row, ShardRecord, SuiteRecord
from bench.storing.store import Store, pack_tensors

#: Examples shown per defense.
SIZE = 8


@dataclass
class Chosen:
    """The examples to show of a defense: an entry, the position in the suite and the x_adv of each."""

    entries: list[GalleryEntry] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    images: list[Images] = field(default_factory=list)


def gallery_of(setting: Setting, chosen: Supply[Chosen]) -> tuple[list[GalleryEntry], bytes | None]:
    """The gallery of a defense, made in a worker: its entries, and its images as a safetensors file.

    The images are ``x``, ``x_adv``, ``g_x``, ``g_x_adv``, float32 ``(N, …)`` each. None where there is nothing to show.
    """
    shown = chosen.take()
    if not shown.entries:
        return [], None
    return shown.entries, pack_tensors(_pictures(setting, shown))


@torch.no_grad()
def _pictures(setting: Setting, shown: Chosen) -> dict[str, Tensor]:
    context = open_context(setting)
    x = context.examples.at(shown.positions).float()
    x_adv = torch.cat([decode(stored, x[i : i + 1]) for i, stored in enumerate(shown.images)])
    images = {"x": x, "x_adv": x_adv}
    device = next((p.device for p in context.defense.parameters()), torch.device("cpu"))
    threat, spec = setting.suite.threat_for(context.data.info), context.data.info.input
    company = Company(x, threat, spec, generator(setting.suite.seed, "gallery", "company"))
    with seeded(setting.suite.seed, setting.spec.name, "gallery"), in_company(context.defense, company):
        for key in ("x", "x_adv"):
            images[f"g_{key}"] = context.defense.transform(images[key].to(device, copy=True)).float().cpu()
    return images


def choose(results: Path, suite: SuiteRecord, defense: DefenseRecord) -> Chosen:
    """The first examples that are right when clean, each with the x_adv of the attack that it survives least.

    Reads the results folder, and of it no more than the shards in which these examples are.
    """
    store, chosen = Store(results, suite.name), Chosen()
    clean = _Rows(store, suite, defense, None)
    attacked = {attack.name: _Rows(store, suite, defense, attack) for attack in suite.attacks if attack.counted}
    for position in range(len(suite.ids)):
        if len(chosen.entries) == SIZE:
            break
        before = clean.at(position)
        if before is None or before[0].prediction != before[0].label:
            continue
        allowed = {
            name: found
            for name, rows in attacked.items()
            if (found := rows.at(position)) and found[0].reason == "ok" and position - found[1].start in found[1].stored
        }
        if not allowed:
            continue
        worst = min(allowed, key=lambda attack: _survival(allowed[attack][0]))
        row, shard = allowed[worst]
        try:
            images = pick(store.images(shard), [shard.stored.index(position - shard.start)])
        except InputError:
            continue
        chosen.entries.append(
            GalleryEntry(
                id=before[0].id,
                attack=worst,
                label=before[0].label,
                clean_prediction=before[0].prediction,
                adversarial_prediction=row.prediction,
            )
        )
        chosen.positions.append(position)
        chosen.images.append(images)
    return chosen


class _Rows:
    """The rows of a cell by position in the suite. A shard is read when one of its rows is asked for."""

    def __init__(self, store: Store, suite: SuiteRecord, defense: DefenseRecord, attack: AttackRecord | None) -> None:
        self._files = current_headers(store, suite, defense, attack)
        self._shards: dict[ShardFile, ShardRecord] = {}

    def at(self, position: int) -> tuple[Row, ShardRecord] | None:
        """The row of an example with its shard; None where there is none."""
        for file, header in self._files:
            if header.start <= position < header.stop and header.status == "ok":
                if file not in self._shards:
                    self._shards[file] = file.read()
                return self._shards[file].rows[position - header.start], self._shards[file]
        return None


def _survival(row: Row) -> tuple[float, float]:
    return row.report_robust, -row.linf
