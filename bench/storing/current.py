"""Which stored shards are current, which examples they cover, and what is left to be run."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bench.storing.headers import SETTLED, Headers
from bench.storing.keys import differences
from bench.storing.reading import ShardFile
from bench.storing.records import CLEAN, AttackRecord, DefenseRecord, ShardRecord, SuiteRecord
from bench.storing.store import Store


@dataclass(frozen=True)
class Piece:
    """Examples ``start`` to ``stop`` of a suite, to be run as the shard of that number."""

    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class CellState:
    """What is stored of one attack against one defense.

    Attributes:
        settled: of the shards that need not be run again, by number, the positions of their examples.
        stale: for every other stored shard, by number, why it has to be.
    """

    settled: dict[int, range] = field(default_factory=dict)
    stale: dict[int, list[str]] = field(default_factory=dict)

    def missing(self, examples: int, shard_size: int) -> list[Piece]:
        """The examples that no settled shard covers, cut where shards of ``shard_size`` would be.

        A piece has the number that its shard would have if all were cut that way, unless a settled shard of another
        size has it: then one beyond these.
        """
        if not self.settled:
            return list(_grid(examples, shard_size))
        if self._cover(examples):
            return []
        covered = [False] * examples
        for shard in self.settled.values():
            covered[shard.start : shard.stop] = [True] * len(range(shard.start, min(shard.stop, examples)))
        taken, pieces = set(self.settled), []
        beyond = shard_count(examples, shard_size)
        for number in range(beyond):
            first = number * shard_size
            for start, stop in _runs(covered, first, min(first + shard_size, examples)):
                chosen = number
                while chosen in taken:
                    chosen = beyond = max(beyond, chosen + 1)
                taken.add(chosen)
                pieces.append(Piece(chosen, start, stop))
        return pieces

    def _cover(self, examples: int) -> bool:
        """Whether the settled shards leave nothing out."""
        reached = 0
        for shard in sorted(self.settled.values(), key=lambda shard: shard.start):
            if shard.start > reached:
                return False
            reached = max(reached, shard.stop)
        return reached >= examples


def shard_count(examples: int, shard_size: int) -> int:
    """How many shards hold so many examples; the last may be smaller."""
    return -(-examples // shard_size)


@functools.lru_cache(maxsize=8)
def _grid(examples: int, shard_size: int) -> tuple[Piece, ...]:
    """All examples; remembered, since it is the same for all cells of which nothing is stored."""
    starts = range(0, examples, shard_size)
    return tuple(Piece(n, start, min(start + shard_size, examples)) for n, start in enumerate(starts))


def _runs(covered: Sequence[bool], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Maximal ranges without a covered position."""
    if all(covered[start:stop]):
        return
    first = None
    for i in range(start, stop):
        if covered[i] and first is not None:
            yield first, i
            first = None
        elif not covered[i] and first is None:
            first = i
    if first is not None:
        yield first, stop


def cell_state(
    headers: Headers, defense: DefenseRecord, attack: AttackRecord | None, *, torch: str, device: str
) -> CellState:
    """Compare every stored shard of a cell with what it would be made of now.

    Args:
        headers: of the shards of the suite as it is now.
        attack: None for the unattacked input.
        torch: major.minor; device: its type.

    Raises:
        NewerSchemaError: when a file is of a newer schema: it is not to be replaced.
    """
    state, whole = CellState(), headers.suite.whole_key(defense, attack, torch=torch, device=device)
    same: dict[int, bool] = {}  # by the object: shards that were made of the same share it
    for number, header in headers.read(defense.name, CLEAN if attack is None else attack.name):
        if isinstance(header, str):
            state.stale[number] = [header]
            continue
        now, made_of = headers.examples(header.start, header.stop), header.whole
        if id(made_of) not in same:
            same[id(made_of)] = made_of.model_copy(update={"data": whole.data}) == whole
        current = same[id(made_of)] and header.data is now
        why = [] if current else differences(header.key, whole.model_copy(update={"data": now}))
        if not why and not header.problem:
            state.settled[number] = range(header.start, header.stop)
        else:
            state.stale[number] = why or [header.problem]
    return state


def current_shards(
    store: Store,
    suite: SuiteRecord,
    defense: DefenseRecord,
    attack: AttackRecord | None,
    unreadable: list[str] | None = None,
) -> Iterator[ShardRecord]:
    """The stored shards of a cell whose numbers stand, whichever machine they were made on.

    A shard that failed is passed over where its examples have been run since.

    Args:
        unreadable: gets a line for each file that cannot be read, which is then passed over.

    Raises:
        InputError: when a file cannot be read and nobody is told.
    """
    return (shard for _, shard in _standing(store, suite, defense, attack, rows=True, unreadable=unreadable))


def current_headers(
    store: Store, suite: SuiteRecord, defense: DefenseRecord, attack: AttackRecord | None
) -> list[tuple[ShardFile, ShardRecord]]:
    """The same shards without their rows, each with its file, in the order of their first examples."""
    found = _standing(store, suite, defense, attack, rows=False)
    return sorted(found, key=lambda one: one[1].start)


def _standing(
    store: Store,
    suite: SuiteRecord,
    defense: DefenseRecord,
    attack: AttackRecord | None,
    *,
    rows: bool,
    unreadable: list[str] | None = None,
) -> Iterator[tuple[ShardFile, ShardRecord]]:
    key = suite.cell_key(defense, attack, torch="", device="")
    found = []
    for file in store.shards(defense.name, CLEAN if attack is None else attack.name).values():
        shard = file.read_or_note(unreadable, rows)
        if shard is None:
            continue
        if shard.key.same_numbers(key(shard.start, shard.stop)):
            found.append((file, shard))
    done = {i for _, shard in found if shard.status in SETTLED for i in range(shard.start, shard.stop)}
    for file, shard in found:
        if shard.status in SETTLED or not done.issuperset(range(shard.start, shard.stop)):
            yield file, shard
