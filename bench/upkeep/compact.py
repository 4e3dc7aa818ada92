"""`bench compact`: results small enough to be published.

Nearly all of a results folder is adversarial inputs, most of which decide nothing. What is kept of an example is the
input of the attack that is worst for it, the one that the worst-case robust accuracy rests on: ``bench verify`` still
judges that again. All rows stay, those of a cell in one compressed file, and so do the pictures to look at, compressed;
of them those of 8 bits take 8 bits.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from bench.contracts.errors import InputError
from bench.contracts.inputs import InputSpec
from bench.contracts.levels import level_of, value_at
from bench.storing.current import current_shards
from bench.storing.images import pick
from bench.storing.lock import writing
from bench.storing.reading import read_record
from bench.storing.records import CLEAN, DefenseRecord, ShardRecord, SuiteRecord
from bench.storing.store import Store, open_suite, pack_tensors, unpack_tensors
from bench.summary.numbers import SETTLED
from bench.summary.results import DefenseResults


@dataclass(frozen=True)
class Compacted:
    """What a defense's results took before and after, in bytes.

    ``note`` says why nothing was done, ``unreadable`` names files that could not be read.
    """

    defense: str
    before: int
    after: int
    note: str = ""
    unreadable: list[str] = field(default_factory=list)


def compact(results: Path, suite_name: str) -> Iterator[Compacted]:
    """Compact every complete defense of a suite in place, and remove what attacks had prepared for themselves.

    A defense with a missing or failed cell is left alone: its worst attack may change.

    Raises:
        InputError: when the suite has no results, a run writes there, stored inputs are not those of their record, or
            the system refuses to write.
    """
    store, suite = open_suite(results, suite_name)
    with writing(store.folder, "bench compact"):
        try:
            yield from _compact(store, suite)
        except OSError as error:
            raise InputError(
                f"results folder {results}: {error.strerror or error}; what is stored is whole, "
                "and the same command goes on from there"
            ) from None


def _compact(store: Store, suite: SuiteRecord) -> Iterator[Compacted]:
    for path in (store.folder / ".prepared").glob("*.safetensors"):
        path.unlink()
    shutil.rmtree(store.folder / ".headers", ignore_errors=True)
    for path in store.defenses():
        before = _size(path.parent)
        try:
            record = read_record(path, DefenseRecord)
        except InputError as error:
            yield Compacted(path.parent.name, before, before, "left alone", [str(error)])
            continue
        found = DefenseResults(store, suite, record)
        unfinished = [n for n, cell in found.cells.items() if cell.status not in SETTLED]
        if unfinished or found.clean.status != "complete":
            why = f"not complete: {', '.join(unfinished) or CLEAN}"
            yield Compacted(record.name, before, before, why, found.unreadable)
            continue
        _, chosen = found.worst(found.names())
        worst = dict(zip(np.array(suite.ids)[found.measured], chosen, strict=True))
        for name in (CLEAN, *found.attacks):
            for shard in current_shards(store, suite, record, found.attacks.get(name)):
                _compact_shard(store, shard, worst)
            store.join(record.name, name)
        _compact_gallery(store, record.name, suite)
        yield Compacted(record.name, before, _size(path.parent))


def _compact_shard(store: Store, shard: ShardRecord, worst: dict[str, str]) -> None:
    # Examples beyond those that the defense is run on have no worst attack.
    keep = [row for row in shard.stored if worst.get(shard.rows[row].id) == shard.attack and shard.attack != CLEAN]
    if store.is_compact(shard, keep):
        return
    if not keep:
        store.compact_shard(shard, [], None)
    else:
        places = [shard.stored.index(row) for row in keep]
        store.compact_shard(shard, keep, pick(store.images(shard), places))


def _compact_gallery(store: Store, defense: str, suite: SuiteRecord) -> None:
    """Store as bytes what is whole 255ths of the box throughout: it comes back bit for bit (leaderboard/gallery.py)."""
    path = store.gallery_path(defense)
    if path.suffix == ".gz":
        return
    try:
        before, _ = unpack_tensors(path.read_bytes())
    except (FileNotFoundError, SafetensorError):
        return  # the site says so on the defense's page
    after, eight_bits = dict(before), InputSpec(suite.shape, suite.low, suite.high, levels=256)
    for key, image in before.items():
        levels = level_of(image, eight_bits).round().clamp(0, 255)
        if image.is_floating_point() and torch.equal(value_at(levels, eight_bits), image):
            after[key] = levels.to(torch.uint8)
    store.write_gallery(defense, pack_tensors(after), small=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
