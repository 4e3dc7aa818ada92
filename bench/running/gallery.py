"""A few examples as images: clean, adversarial, and what the defense's transform makes of both."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.contracts.errors import InputError
from bench.contracts.seeding import seeded
from bench.running.cell import Context, Setting, attack_key
from bench.storing.records import CLEAN, GalleryEntry, ShardRecord
from bench.storing.row import Row
from bench.storing.store import shard_count

#: Examples shown per defense.
SIZE = 8


@torch.no_grad()
def make_gallery(setting: Setting, context: Context) -> tuple[list[GalleryEntry], dict[str, Tensor]]:
    """Entries and the images ``x``, ``x_adv``, ``g_x``, ``g_x_adv`` (float32, ``(N, C, H, W)`` each).

    For each of the first examples that are right when clean: the x_adv of the attack it survives least.
    """
    size, store, name = setting.suite.shard_size, setting.store, setting.spec.name
    counted = [entry.name for entry in context.attacks.values() if entry.counted]
    entries: list[GalleryEntry] = []
    pictures: dict[str, list[Tensor]] = {"x": [], "x_adv": []}
    for shard in range(shard_count(len(context.examples.ids), size)):
        records = {attack: store.shard(name, attack, shard) for attack in (CLEAN, *counted)}
        clean = records.pop(CLEAN)
        done = {a: r for a, r in records.items() if r and r.status == "ok" and _is_current(r, setting, context)}
        if clean is None or not clean.rows:
            continue
        for i, row in enumerate(clean.rows):
            allowed = [a for a, record in done.items() if record.rows[i].reason == "ok" and i in record.stored]
            if len(entries) == SIZE:
                break
            if row.prediction != row.label or not allowed:
                continue
            worst = min(allowed, key=lambda attack: _survival(done[attack].rows[i]))
            record = done[worst]
            try:
                x_adv = store.x_adv(record)[record.stored.index(i)]
            except InputError:
                continue
            entries.append(
                GalleryEntry(
                    id=row.id,
                    attack=worst,
                    label=row.label,
                    clean_prediction=row.prediction,
                    adversarial_prediction=record.rows[i].prediction,
                )
            )
            pictures["x"].append(context.examples.x[shard * size + i])
            pictures["x_adv"].append(x_adv)
    if not entries:
        return [], {}
    images = {key: torch.stack(values).float() for key, values in pictures.items()}
    with seeded(setting.suite.seed, name, "gallery"):
        for key in ("x", "x_adv"):
            images[f"g_{key}"] = context.defense.transform(images[key].to(setting.device)).float().cpu()
    return entries, images


def _is_current(record: ShardRecord, setting: Setting, context: Context) -> bool:
    """Whether a stored shard is of this suite, this defense and the parameters that the attack has now."""
    keys = (setting.suite_key, setting.defense_key, attack_key(context.attacks[record.attack]))
    return (record.suite_key, record.defense_key, record.attack_key) == keys


def _survival(row: Row) -> tuple[float, float]:
    return row.report_robust, -row.linf
