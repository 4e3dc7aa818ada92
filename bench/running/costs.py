"""How long a shard or a preparation will take, from what earlier runs took. Needs nothing but the results folder.

A shard is expected to take, per example, what stored shards of its own cell took, current or stale. Where there are
none, an attack's time is taken to be in proportion to the defense's inference time: the median over the other stored
defenses of (its time against that defense / that defense's inference time), times this defense's inference time. A
preparation takes what it took before, else the median of the same attack's against other defenses. What no earlier
run can tell is unknown. Another budget or machine makes this wrong by a factor, which the progress display corrects
as soon as jobs end.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from bench.storing.headers import SETTLED
from bench.storing.reading import read_or_note
from bench.storing.records import DefenseRecord, ShardRecord
from bench.storing.store import Store

Basis = Literal["the same cell", "other defenses", "nothing"]

#: Stored shards of a cell that are looked at.
_SAMPLE = 3
#: Expected seconds of a shard are never 0, which would mean unknown.
_LEAST = 0.01


@dataclass(frozen=True)
class Expected:
    """Seconds, 0 where unknown, and what the expectation rests on."""

    seconds: float
    basis: Basis

    @property
    def sure(self) -> bool:
        """Whether it is more than a guess."""
        return self.basis == "the same cell"


UNKNOWN = Expected(0.0, "nothing")


@dataclass(frozen=True)
class _Observed:
    """What stored shards of one cell took: seconds per example, and the preparation's seconds."""

    per_example: float
    preparation: float


class Costs:
    """Expected seconds in one suite of one results folder. Each file is read once, when it is asked about."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._shards: dict[tuple[str, str, int, float | None], Expected] = {}
        self._cells: dict[tuple[str, str], _Observed | None] = {}
        self._defenses: dict[str, float | None] | None = None

    def shard(self, defense: str, attack: str, examples: int, per_1000: float | None) -> Expected:
        """Of a shard.

        Args:
            examples: how many are attacked.
            per_1000: seconds of inference of 1000 examples, if they are known.
        """
        asked = defense, attack, examples, per_1000
        if asked not in self._shards:
            self._shards[asked] = self._expect(*asked)
        return self._shards[asked]

    def _expect(self, defense: str, attack: str, examples: int, per_1000: float | None) -> Expected:
        own = self._cell(defense, attack)
        if own is not None:
            return Expected(max(_LEAST, own.per_example * examples), "the same cell")
        others = [(seen, inference) for name, inference in self._others(defense) if (seen := self._cell(name, attack))]
        in_passes = [seen.per_example / inference for seen, inference in others if inference]
        if per_1000 and in_passes:
            per_example = statistics.median(in_passes) * per_1000
        elif others:
            per_example = statistics.median(seen.per_example for seen, _ in others)
        else:
            return UNKNOWN
        return Expected(max(_LEAST, per_example * examples), "other defenses")

    def preparation(self, defense: str, attack: str) -> Expected:
        """Of an attack's preparation for a defense."""
        own = self._cell(defense, attack)
        if own is not None and own.preparation > 0:
            return Expected(own.preparation, "the same cell")
        others = [seen.preparation for name, _ in self._others(defense) if (seen := self._cell(name, attack))]
        took = [seconds for seconds in others if seconds > 0]
        return Expected(statistics.median(took), "other defenses") if took else UNKNOWN

    def _cell(self, defense: str, attack: str) -> _Observed | None:
        if (defense, attack) not in self._cells:
            files = list(self._store.shards(defense, attack).values())
            sample = files[:: max(1, len(files) // _SAMPLE)][:_SAMPLE]
            # What cannot be read is for others to complain about.
            self._cells[defense, attack] = _observed(s for file in sample if (s := file.read_or_note([], rows=False)))
        return self._cells[defense, attack]

    def _others(self, defense: str) -> Iterable[tuple[str, float | None]]:
        """The other stored defenses, with their seconds of inference per 1000 examples."""
        if self._defenses is None:
            paths = self._store.defenses()
            records = [record for path in paths if (record := read_or_note(path, DefenseRecord, []))]
            self._defenses = {r.name: r.timing.seconds_per_1000 if r.timing else None for r in records}
        return ((name, inference) for name, inference in self._defenses.items() if name != defense)


def _observed(shards: Iterable[ShardRecord]) -> _Observed | None:
    settled = [shard for shard in shards if shard.status in SETTLED]
    if not settled:
        return None
    examples = sum(shard.stop - shard.start for shard in settled)
    preparation = max(shard.prepare_seconds for shard in settled)
    return _Observed(sum(map(seconds_of, settled)) / max(1, examples), preparation)


def seconds_of(shard: ShardRecord) -> float:
    """How long a worker was busy with a shard: from start to end where the clock, in whole seconds, shows more than
    the attack alone, which is without judging."""
    about = shard.provenance
    busy = datetime.fromisoformat(about.ended) - datetime.fromisoformat(about.started)
    return max(shard.seconds, busy.total_seconds())
