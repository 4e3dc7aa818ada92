"""A few examples as images: clean, adversarial, and what the defense's transform makes of both."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.contracts.errors import InputError
from bench.contracts.seeding import seeded
from bench.running.cell import Context, Setting, open_context
from bench.storing.current import current_shards
from bench.storing.records import DefenseRecord, GalleryEntry, Row, ShardRecord, SuiteRecord
from bench.storing.store import Store

#: Examples shown per defense.
SIZE = 8


def gallery_of(setting: Setting, suite: SuiteRecord, defense: DefenseRecord) -> list[GalleryEntry]:
    """Make the gallery of a defense from its stored shards and store its images, in a worker."""
    entries, images = make_gallery(setting.store, suite, defense, open_context(setting))
    if images:
        setting.store.write_tensors(setting.store.defense_folder(defense.name) / "gallery.safetensors", images)
    return entries


@torch.no_grad()
def make_gallery(
    store: Store, suite: SuiteRecord, defense: DefenseRecord, context: Context
) -> tuple[list[GalleryEntry], dict[str, Tensor]]:
    """Entries and the inputs ``x``, ``x_adv``, ``g_x``, ``g_x_adv`` (float32, ``(N, …)`` each).

    For each of the first examples that are right when clean: the x_adv of the attack it survives least.
    """
    clean = {position: row for position, row, _ in _rows(current_shards(store, suite, defense, None))}
    found: dict[int, dict[str, tuple[Row, ShardRecord]]] = {}
    for attack in suite.attacks:
        if attack.counted:
            for position, row, shard in _rows(current_shards(store, suite, defense, attack)):
                if row.reason == "ok" and position - shard.start in shard.stored:
                    found.setdefault(position, {})[attack.name] = (row, shard)
    entries: list[GalleryEntry] = []
    pictures: dict[str, list[Tensor]] = {"x": [], "x_adv": []}
    for position, before in sorted(clean.items()):
        if len(entries) == SIZE:
            break
        allowed = found.get(position, {})
        if before.prediction != before.label or not allowed:
            continue
        worst = min(allowed, key=lambda attack: _survival(allowed[attack][0]))
        row, shard = allowed[worst]
        try:
            x_adv = store.x_adv(shard)[shard.stored.index(position - shard.start)]
        except InputError:
            continue
        entries.append(
            GalleryEntry(
                id=before.id,
                attack=worst,
                label=before.label,
                clean_prediction=before.prediction,
                adversarial_prediction=row.prediction,
            )
        )
        pictures["x"].append(context.examples.at([position])[0])
        pictures["x_adv"].append(x_adv)
    if not entries:
        return [], {}
    images = {key: torch.stack(values).float() for key, values in pictures.items()}
    device = next((p.device for p in context.defense.parameters()), torch.device("cpu"))
    with seeded(suite.seed, defense.name, "gallery"):
        for key in ("x", "x_adv"):
            images[f"g_{key}"] = context.defense.transform(images[key].to(device)).float().cpu()
    return entries, images


def _rows(shards: Iterator[ShardRecord]) -> Iterator[tuple[int, Row, ShardRecord]]:
    """Every row of some shards with its position in the suite."""
    for shard in shards:
        for i, row in enumerate(shard.rows):
            yield shard.start + i, row, shard


def _survival(row: Row) -> tuple[float, float]:
    return row.report_robust, -row.linf
