"""`bench accept`: check a bundle without believing any of it, and add it to results in one step, or say why not."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import torch

from bench.contracts.defense import DefenseSpec, ready
from bench.contracts.errors import InputError
from bench.contracts.isolation import Level, weakest
from bench.data.load import kept_in, load_data
from bench.data.splits import Data
from bench.engines.engine import Engine
from bench.isolation.opening import Isolation, decide, open_defense
from bench.plugins.registry import DEFENSES
from bench.plugins.resolve import LoadedDefense
from bench.running.cell import defense_key
from bench.running.describe import suite_record
from bench.running.evaluate import Evaluation, Request
from bench.running.progress import Display
from bench.storing import provenance
from bench.storing.keys import differences
from bench.storing.lock import check_unlocked, writing
from bench.storing.reading import read_record
from bench.storing.records import CLEAN, DefenseRecord, SuiteRecord
from bench.storing.store import Store, check_writable, to_json, write_atomically
from bench.storing.submitted import AcceptanceRecord, bundled_spec, submission_folder
from bench.submissions.again import choose, compare, fallen, run_anew
from bench.submissions.lowering import keep, lowering
from bench.submissions.manifest import Manifest, take_in
from bench.submissions.records import ClaimedNumbers
from bench.submissions.rows import check_rows
from bench.submissions.suite_key import suite_differences, suite_key
from bench.suites.config import Config, Suite
from bench.summary.results import DefenseResults
from bench.upkeep.points import Points
from bench.upkeep.verified import keep as keep_verdicts
from bench.upkeep.verify import Places, verify


@dataclass(frozen=True)
class Acceptance:
    """What ``bench accept`` was asked for.

    Attributes:
        config: the suites of who accepts.
        again: how many attacks are run anew.
        isolation: what was asked for, see :func:`bench.isolation.opening.decide`.
    """

    bundle: Path
    results: Path
    config: Config
    device: str
    data_root: Path | None
    again: int
    command: str
    isolation: str = "none"


@dataclass(frozen=True)
class Ground:
    """What a bundle is judged on: all of it the receiver's own."""

    suite: Suite
    record: SuiteRecord
    data: Data
    store: Store


@contextmanager
def taken_in(asked: Acceptance) -> Iterator[tuple[Manifest, Path]]:
    """The bundle's manifest and a folder beside the results that holds its copy; gone after the block."""
    check_writable(asked.results)
    beside = asked.results.resolve()
    while not beside.is_dir():
        beside = beside.parent
    staging = Path(tempfile.mkdtemp(prefix=".accepting-", dir=beside))
    try:
        (staging / "bundle").mkdir()
        yield take_in(asked.bundle, staging / "bundle"), staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def ground(asked: Acceptance, manifest: Manifest) -> Ground:
    """The receiver's suite of the name that the manifest says, with its data and results.

    Raises:
        InputError: when there is no such suite, or the stored results are of another state of it.
    """
    suite = asked.config.suite(manifest.suite)
    data = load_data(suite.data, asked.data_root)
    record, store = suite_record(suite, data), Store(asked.results, suite.name)
    check_unlocked(store.folder)
    stored = store.suite()
    if stored is not None and (changed := suite_differences(stored, record)):
        what = f"{suite.name} has changed since ({', '.join(changed[:3])})"
        raise InputError(f"results {asked.results}: {what}; run bench evaluate before accepting anything")
    return Ground(suite, record, data, store)


def accept_defense(
    asked: Acceptance, manifest: Manifest, staging: Path, engine: Engine, display: Display
) -> AcceptanceRecord:
    """Judge the bundle of a defense, and add it to the results.

    Raises:
        InputError: in one line, when it is not accepted; nothing is written then.
    """
    bundle, here = staging / "bundle", ground(asked, manifest)
    _check_suite(bundle, manifest, here)
    folder = here.store.defense_folder(manifest.defense)
    if folder.exists():
        raise InputError(f"results {asked.results}: hold {manifest.defense!r} already; submit it under another name")
    made = Store(staging / "results", here.suite.name)
    spec = _arrange(bundle, manifest, made)
    labels = _labels(here)
    claim = read_claim(submission_folder(made, manifest.defense) / "claim.json")
    request = Request(
        suite=here.suite,
        defenses=[spec],
        attacks=(),
        results=staging / "results",
        device=asked.device,
        data_root=asked.data_root,
        command=asked.command,
        isolation=asked.isolation,
    )
    evaluation = Evaluation(request, engine, display)
    (record,) = evaluation.records
    theirs = _read(submission_folder(made, manifest.defense) / "defense.json", DefenseRecord)
    if why := differences(theirs.key, record.key, "defense"):
        raise InputError(f"bundle: the defense built from it is not the one that was evaluated: {why[0]}")
    rows = check_rows(made.defense_folder(record.name), here.record, record, labels, _kind(asked.device))
    if evaluation.plan.shards:
        raise InputError(f"bundle: lacks results of {next(iter(evaluation.plan.shards))}")
    if failures := evaluation.run():
        raise InputError(failures[0])
    _settle(made, record.name, manifest.reference)
    _verify(staging / "results", here, spec, rows, asked)
    record = _read(made.defense_folder(record.name) / "defense.json", DefenseRecord)
    bundled = DefenseResults(made, here.record, record)
    names = choose(bundled, asked.again)
    anew = run_anew(
        replace(request, attacks=names, results=staging / "again", finish=False), engine, display
    )
    compared = compare(bundled, anew, names)
    _keep_fallen(asked, here, made, record, spec, bundled, anew, names)
    accepted = AcceptanceRecord(
        by=manifest.by,
        note=manifest.note,
        submitted=manifest.created,
        accepted=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        reference=manifest.reference,
        params=manifest.params,
        standard=claim.standard,
        worst_case=claim.worst_case,
        judged=rows,
        again={each.attack: [each.fell, each.rose, each.n] for each in compared},
        isolation=_apart(asked, here, spec).level,
        provenance=provenance.finish(provenance.start(asked.command), asked.device),
    )
    home = submission_folder(made, record.name)
    write_atomically(home / "acceptance.json", to_json(accepted).encode())
    with writing(here.store.folder, asked.command):
        if here.store.suite() is None:
            here.store.write_suite(here.record)
        made.defense_folder(record.name).rename(folder)  # the one step in which it is accepted
    return accepted


def _apart(asked: Acceptance, here: Ground, spec: DefenseSpec) -> Isolation:
    """How far a submitted defense is kept apart from its judge: from the results and the data at the least."""
    return decide(spec, asked.isolation, [asked.results, *kept_in(here.suite.data, asked.data_root)])


def _opened(asked: Acceptance, here: Ground, spec: DefenseSpec) -> tuple[LoadedDefense, Level]:
    """The defense, and the level of isolation at which it answers."""
    apart, training = _apart(asked, here, spec), here.suite.training(here.data)
    loaded = open_defense(spec, here.data.info, torch.device(asked.device), training, isolation=apart)
    ready(loaded.defense)
    return loaded, apart.level


def _kind(device: str) -> str:
    return torch.device(device).type


def _read(path: Path, kind: type[DefenseRecord]) -> DefenseRecord:
    try:
        return read_record(path, kind)
    except InputError as error:
        raise InputError(f"bundle {path.name}{str(error).removeprefix(str(path))}") from None


def read_claim(path: Path) -> ClaimedNumbers:
    """The numbers that a bundle claims."""
    try:
        return ClaimedNumbers.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        raise InputError("bundle claim.json: is missing, or no claim of a defense") from None


def _check_suite(bundle: Path, manifest: Manifest, here: Ground) -> None:
    path = bundle / "suite.json"
    try:
        theirs = read_record(path, SuiteRecord)
    except InputError as error:
        raise InputError(f"bundle suite.json{str(error).removeprefix(str(path))}") from None
    if suite_key(theirs, manifest.reference) != manifest.suite_key:
        raise InputError("bundle manifest.json: its suite_key is not that of its suite.json")
    if changed := suite_differences(theirs, here.record, manifest.reference):
        what = ", ".join(changed[:5])
        raise InputError(f"bundle: was made for another suite than {here.suite.name!r} is here: {what}")


def _arrange(bundle: Path, manifest: Manifest, made: Store) -> DefenseSpec:
    """Move a bundle's files to where they lie among results; returns how its defense is built there."""
    if not manifest.reference.startswith("code/") and manifest.reference not in DEFENSES.built_in():
        raise InputError(f"bundle manifest.json: {manifest.reference!r} is neither code of the bundle nor shipped here")
    named = bundled_spec(Path("bundle"), manifest.reference, manifest.params).name
    if named != manifest.defense or ".." in manifest.reference:
        raise InputError(f"bundle manifest.json: its reference is called {named!r}, the defense {manifest.defense!r}")
    if not (bundle / "rows").is_dir():
        raise InputError("bundle: holds no rows")
    folder = made.defense_folder(manifest.defense)
    folder.parent.mkdir(parents=True)
    (bundle / "rows").rename(folder)
    bundle.rename(submission_folder(made, manifest.defense))
    return bundled_spec(submission_folder(made, manifest.defense), manifest.reference, manifest.params)


def _labels(here: Ground) -> dict[str, int]:
    split = getattr(here.data, here.suite.split)
    return dict(zip(split.ids, split.y.tolist(), strict=True))


def _settle(made: Store, name: str, reference: str) -> None:
    """Name the defense by what it is built from, wherever the results lie."""
    path = made.defense_folder(name) / "defense.json"
    record = read_record(path, DefenseRecord)
    made.write_defense(record.model_copy(update={"reference": reference}))


def _levels(results: Path, here: Ground, spec: DefenseSpec, asked: Acceptance) -> str:
    """A hint where rows were made in the judge's process and judged in another, or the other way round."""
    ours = _apart(asked, here, spec).level
    files = Store(results, here.suite.name).shards(spec.name, CLEAN).values()
    theirs = weakest([file.read(rows=False).isolation for file in files])
    if (ours == "none") == (theirs == "none"):
        return ""
    return f"; they were made under isolation {theirs} and judged under {ours}, where draws differ"


def _verify(results: Path, here: Ground, spec: DefenseSpec, rows: int, asked: Acceptance) -> None:
    where = Places(here.suite.data, asked.data_root, spec.checkpoints, {spec.name: spec})
    judged, verdicts, clock = 0, [], provenance.start(asked.command)
    for verdict in verify(results, here.suite.name, (spec.name,), asked.device, where, (), asked.isolation):
        if not verdict.confirmed:
            why = verdict.problem or f"{verdict.different} of {verdict.rows} rows differ when they are judged again"
            raise InputError(f"bundle rows of {verdict.attack}: {why}{_levels(results, here, spec, asked)}")
        judged += verdict.rows
        verdicts.append(verdict)
    if judged != rows:
        raise InputError(f"bundle: {judged} of {rows} rows can be judged again")
    keep_verdicts(Store(results, here.suite.name), here.record, verdicts, clock, asked.device)


def _keep_fallen(
    asked: Acceptance,
    here: Ground,
    made: Store,
    record: DefenseRecord,
    spec: DefenseSpec,
    bundled: DefenseResults,
    anew: DefenseResults,
    names: list[str],
) -> None:
    """What falls with another seed although nothing in the bundle made it fall counts, like any submitted attack."""
    split = getattr(here.data, here.suite.split)
    loaded, level = _opened(asked, here, spec)
    store = Store(anew_root(made), anew.suite.name)
    place = {example: i for i, example in enumerate(split.ids)}
    for name, positions in fallen(bundled, anew, names).items():
        ids, images = [], []
        for shard in anew.cells[name].shards:
            rows = [i for i in range(shard.start, shard.stop) if i in positions]
            if shard.status == "ok" and rows:
                x = split.at([place[row.id] for row in shard.rows])
                x_adv = store.x_adv(shard, x)
                ids += [shard.rows[i - shard.start].id for i in rows]
                images += [x_adv[i - shard.start] for i in rows]
        if not ids:
            continue
        points = Points(ids, torch.stack(images))
        note = f"{name} with another seed, run when the defense was accepted"
        found = lowering(
            loaded.defense,
            here.data,
            made,
            here.record,
            record,
            points,
            by="bench accept",
            note=note,
            device=asked.device,
            isolation=level,
        )
        if found.record is not None:
            keep(made, found)


def anew_root(made: Store) -> Path:
    """Where the attacks that were run anew have their rows."""
    return made.root.parent / "again"


def accept_points(asked: Acceptance, manifest: Manifest, staging: Path) -> str:
    """Judge the bundle of an attack, and add what lowers the defense; returns a sentence that says what it does.

    Raises:
        InputError: in one line, when it is not accepted; nothing is written then.
    """
    from bench.submissions.points import read_points

    here = ground(asked, manifest)
    if suite_key(here.record, None) != manifest.suite_key:
        raise InputError(f"bundle: was made for other examples or another ball than suite {here.suite.name!r} has here")
    record = here.store.defense(manifest.defense)
    if record is None:
        raise InputError(f"results {asked.results}: hold no {manifest.defense!r} in suite {here.suite.name!r}")
    points = read_points(staging / "bundle", here.record)
    spec = Places(None, asked.data_root).spec(here.store, record)
    loaded, level = _opened(asked, here, spec)
    if why := differences(record.key, defense_key(spec, loaded), "defense"):
        raise InputError(f"{record.name}: has changed since its results were made: {why[0]}")
    found = lowering(
        loaded.defense,
        here.data,
        here.store,
        here.record,
        record,
        points,
        by=manifest.by,
        note=manifest.note,
        device=asked.device,
        isolation=level,
    )
    if found.record is None:
        raise InputError(
            f"{record.name}: none of the {found.rows} examples lowers its worst case of {100 * found.before:.1f} % "
            f"({found.fooled} fool it, {found.refused} are outside the threat model); nothing is written"
        )
    with writing(here.store.folder, asked.command):
        keep(here.store, found)
    return (
        f"{record.name} on {here.suite.name}: {found.lowered} of {found.rows} examples fall that had stood, by "
        f"{manifest.by}; worst case {100 * found.before:.1f} % → {100 * found.after:.1f} %"
    )
