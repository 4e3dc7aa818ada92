"""`bench verify`: judge stored adversarial inputs again, from nothing but the results and the defense."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from bench.contracts.counting import Counts
from bench.contracts.defense import Defense, DefenseSpec, ready
from bench.contracts.errors import InputError, did_you_mean
from bench.contracts.threat import Lp
from bench.data.load import kept_in, load_data
from bench.data.splits import Data
from bench.isolation.opening import decide, open_defense
from bench.judging.again import in_a_crowd
from bench.judging.judge import Draws, Judging, judge
from bench.judging.towards import classes_to_reach
from bench.running.cell import defense_key
from bench.storing.checkpoints import TrainingSettings
from bench.storing.found import FOUND, FoundRecord, found_files, found_key, read_found_images
from bench.storing.keys import DefenseKey, differences
from bench.storing.reading import read_record
from bench.storing.records import CLEAN, AttackRecord, DefenseRecord, Row, ShardRecord, SuiteRecord
from bench.storing.store import Store, open_suite
from bench.storing.submitted import submitted_spec
from bench.summary.certified import contradictions, stored_radii, stored_smoothed
from bench.summary.results import DefenseResults
from bench.upkeep.points import Points, judge_points
from bench.upkeep.rounding import Rounding, rounded

#: What certificates are called beside the attacks.
CERTIFIED = "certificates"
#: The columns of a row that the judge decides.
JUDGED = (
    *("label", "prediction", "select_correct", "select_robust", "report_robust", "report_correct"),
    *("report_rejected", "report_caught", "l0", "reason"),
)
#: The distances, as far as floats agree.
_DISTANCES, _CLOSE = ("linf", "l2", "l1"), 1e-3


@dataclass(frozen=True)
class Places:
    """Where things are on this machine, where that is not what was recorded.

    Attributes:
        data: reference of the data set; root: where downloaded data sets are kept.
        checkpoints: folder of the defenses' checkpoints.
        specs: how to build a defense, by its name in the results.
    """

    data: str | None = None
    root: Path | None = None
    checkpoints: Path | None = None
    specs: Mapping[str, DefenseSpec] = field(default_factory=dict)

    def spec(self, store: Store, record: DefenseRecord) -> DefenseSpec:
        """How a stored defense is built here; one that was submitted from what it was submitted with."""
        found = self.specs.get(record.name) or submitted_spec(store, record)
        return found or DefenseSpec(record.reference, record.params, self.checkpoints)


@dataclass(frozen=True)
class Verdict:
    """One cell judged again.

    Attributes:
        rows: compared, those whose input is stored; different: of these, how many came out differently.
        problem: what kept it from being judged again as a whole.
        note: what may explain a difference.
        rounding: what becomes of the rows when x_adv is rounded to whole grey levels.
        key: of the defense as it is stored, where its record could be read.
    """

    defense: str
    attack: str
    rows: int
    different: int
    problem: str = ""
    note: str = ""
    rounding: Rounding = field(default_factory=Rounding)
    key: DefenseKey | None = None

    @property
    def confirmed(self) -> bool:
        """Whether every stored row could be judged again and came out the same."""
        return not self.different and not self.problem


def verify(
    results: Path,
    suite_name: str,
    names: tuple[str, ...],
    device: str,
    places: Places,
    attacks: tuple[str, ...] = (),
    isolation: str = "none",
) -> Iterator[Verdict]:
    """Judge every stored shard of a suite again, on the same random streams.

    Args:
        names: only these defenses; all stored ones when empty.
        places: where data and weights are on this machine.
        attacks: only these of the suite, ``clean`` among them; all when empty.
        isolation: the level at which a defense answers, see :func:`bench.isolation.opening.decide`.

    Raises:
        InputError: when the suite or a defense asked for has no results, the suite has no such attack, or its examples
            are not those of the data set found here.
    """
    store, suite = open_suite(results, suite_name)
    known = [*(attack.name for attack in suite.attacks), CLEAN, FOUND]
    for name in attacks:
        if name not in known:
            raise InputError(f"no attack {name!r} in suite {suite_name!r}{did_you_mean(name, known)}")
    found = list(_stored_defenses(store))
    for name in names:
        if name not in [defense for defense, _ in found]:
            stored = did_you_mean(name, (defense for defense, _ in found))
            raise InputError(f"no results of defense {name!r} in suite {suite_name!r}{stored}")
    data = load_data(places.data or suite.data, places.root)
    for name, record in found:
        if names and name not in names:
            continue
        if isinstance(record, str):
            yield Verdict(name, "–", 0, 0, record)
            continue
        try:
            spec = places.spec(store, record)
            training = TrainingSettings.of_record(record.training)
            apart = decide(spec, isolation, [results, *kept_in(places.data or suite.data, places.root)])
            loaded = open_defense(spec, data.info, torch.device(device), training, isolation=apart)
            ready(loaded.defense)
        except InputError as error:
            yield Verdict(record.name, "–", 0, 0, str(error))
            continue
        same = defense_key(spec, loaded) == record.key
        note = "" if same else "version or weights of the defense have changed since"
        for attack in (None, *suite.attacks):
            if attacks and (CLEAN if attack is None else attack.name) not in attacks:
                continue
            verdict = _cell(store, suite, record, attack, loaded.defense, data, device)
            if verdict.rows or verdict.problem:
                yield replace(verdict, note=note, key=record.key)
        if (not attacks or FOUND in attacks) and found_files(store, record.name):
            yield replace(_found(store, suite, record, loaded.defense, data, device), note=note, key=record.key)
        if not attacks and ((proven := _proven(store, suite, record)).rows or proven.problem):
            yield replace(proven, key=record.key)


def _agree(old: Row, new: Row) -> bool:
    if any(getattr(old, column) != getattr(new, column) for column in JUDGED):
        return False
    return all(
        math.isclose(getattr(old, column), getattr(new, column), rel_tol=_CLOSE, abs_tol=1e-6) for column in _DISTANCES
    )


def _found(
    store: Store, suite: SuiteRecord, record: DefenseRecord, defense: Defense, data: Data, device: str
) -> Verdict:
    """What was submitted, judged again on the draws of its own."""
    rows = different = 0
    for path in found_files(store, record.name):
        try:
            found = read_record(path, FoundRecord)
            ids, seed = [row.id for row in found.rows], found.key.suite.seed
            now = found_key(suite, record, ids, seed, torch="", device="")
            if not found.key.same_numbers(now):
                raise InputError("is stale: " + "; ".join(differences(found.key, now)[:-2]))
            points = Points(ids, read_found_images(store, found))
            again = judge_points(defense, data, suite, record, points, seed, device).judged.rows
        except (InputError, KeyError) as error:
            return Verdict(record.name, FOUND, rows, different, f"number {path.stem}: {error}")
        rows += len(again)
        for old, new in zip(found.rows, again, strict=True):
            different += not _agree(old, new)
    return Verdict(record.name, FOUND, rows, different)


def _proven(store: Store, suite: SuiteRecord, record: DefenseRecord) -> Verdict:
    """The certificates beside the stored rows: none that attacks break."""
    unreadable: list[str] = []
    results = DefenseResults(store, suite, record)
    radii = stored_radii(results, unreadable)
    stored_smoothed(results, unreadable)  # whether it can be read: no attack on the defense contradicts it
    wrong = contradictions(radii, suite.norm)
    return Verdict(record.name, CERTIFIED, sum(one.n for one in radii), len(wrong), "; ".join(wrong + unreadable))


def _stored_defenses(store: Store) -> Iterator[tuple[str, DefenseRecord | str]]:
    """Every stored defense by its name; of one that cannot be read, its folder and the reason."""
    for path in store.defenses():
        try:
            record = read_record(path, DefenseRecord)
        except InputError as error:
            yield path.parent.name, str(error)
        else:
            yield record.name, record


def _cell(
    store: Store,
    suite: SuiteRecord,
    record: DefenseRecord,
    attack: AttackRecord | None,
    defense: Defense,
    data: Data,
    device: str,
) -> Verdict:
    split = getattr(data, suite.split)
    position = {example: i for i, example in enumerate(split.ids)}
    name = CLEAN if attack is None else attack.name
    key = suite.cell_key(record, attack, torch="", device="")
    rows, different, rounding = 0, 0, Rounding()
    for number in store.shards(record.name, name):
        try:
            shard = store.shard(record.name, name, number)
        except InputError as error:
            return Verdict(record.name, name, rows, different, f"shard {number}: {error}")
        if shard is None or shard.status != "ok":
            continue
        if not shard.key.same_numbers(key(shard.start, shard.stop)):
            why = "; ".join(differences(shard.key, key(shard.start, shard.stop))[:-2])
            return Verdict(record.name, name, rows, different, f"shard {number} is stale: {why}")
        try:
            where = [position[row.id] for row in shard.rows]
            x, y = split.at(where).to(device), split.y[where].to(device)
            x_adv, kept = _stored(store, shard, x)
        except (KeyError, InputError) as error:
            return Verdict(record.name, name, rows, different, f"shard {number}: {error}")
        if not kept:
            continue
        eps = suite.eps if shard.key.attack is None else shard.key.attack.eps
        threat = Lp(suite.norm, eps, suite.low, suite.high)  # type: ignore[arg-type]
        asked = in_a_crowd(defense, threat)
        towards = _towards(suite, shard, asked, x, y)
        again = _judge(suite, record, shard, asked, threat, x, y, x_adv, towards)
        rows += len(kept)
        if shard.towards != (None if towards is None else towards.tolist()):
            return Verdict(record.name, name, rows, different, f"shard {number}: other classes to reach than recorded")
        for old, new in ((shard.rows[row], again[row]) for row in kept):
            different += not _agree(old, new)
        on_levels = None if attack is None else rounded(x_adv, x, data.info.input, threat)
        if on_levels is not None:
            files = _judge(suite, record, shard, asked, threat, x, y, on_levels, towards)
            rounding = rounding.of((again[row], files[row]) for row in kept)
    return Verdict(record.name, name, rows, different, rounding=rounding)


def _stored(store: Store, shard: ShardRecord, x: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """The inputs of a shard and the rows that are to be compared: where none is stored any more it is the clean one.

    (The judge asks a randomised defense about whole batches, so that every row needs some input.)
    """
    if shard.attack == CLEAN:
        return x, list(range(len(shard.rows)))
    stored = list(shard.stored)
    x_adv = x.clone()
    if stored:
        x_adv[stored] = store.x_adv(shard, x[stored]).to(x.device)
    return x_adv, stored


def _towards(
    suite: SuiteRecord, shard: ShardRecord, defense: Defense, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor | None:
    """The class that each row had to reach, found again; None for the clean input and in an untargeted suite."""
    if shard.attack == CLEAN:
        return None
    return classes_to_reach(
        suite.towards,
        defense,
        x,
        y,
        [row.id for row in shard.rows],
        seed=suite.seed,
        draws=shard.draws_select,
        name=shard.defense,
        protocol=suite.protocol,
    )


def _judge(
    suite: SuiteRecord,
    record: DefenseRecord,
    shard: ShardRecord,
    defense: Defense,
    threat: Lp,
    x: torch.Tensor,
    y: torch.Tensor,
    x_adv: torch.Tensor,
    towards: torch.Tensor | None,
) -> list[Row]:
    none = torch.zeros(len(x), dtype=torch.int64)
    return judge(
        defense,
        x,
        y,
        [row.id for row in shard.rows],
        x_adv,
        Counts(none, none, none, none),
        Judging(
            threat,
            Draws(shard.draws_select, shard.draws_report),
            record.probe.threshold,
            shard.batch_size,
            stream=shard.key.stream(shard.shard),
            clean=shard.attack == CLEAN,
            towards=towards,
            rounding=suite.protocol > 1,
        ),
    ).rows
