"""The work of one shard, done in a worker process: load, attack, judge, and hand back what is to be stored."""

from __future__ import annotations

import ctypes
import gc
import time
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.contracts.attack import PrepareContext
from bench.contracts.counting import no_counts
from bench.contracts.defense import Defense, DefenseSpec, freeze, ready
from bench.contracts.errors import InputError, NotApplicable
from bench.contracts.reporting import report
from bench.contracts.seeding import generator, seeded
from bench.contracts.target import Target
from bench.data.load import load_data
from bench.data.splits import Data, Split
from bench.engines.admission import DiffersHere
from bench.engines.supply import Supply
from bench.isolation.company import Company, in_company
from bench.isolation.opening import NONE, Isolation, open_defense, run_apart
from bench.isolation.remote import RemoteDefense
from bench.judging.again import in_a_crowd, judge_apart
from bench.judging.judge import Draws, Judging, judge
from bench.judging.towards import classes_to_reach
from bench.judging.witness import Witness
from bench.plugins.resolve import LoadedDefense, attack_version
from bench.running.copies import load_copy, prepare_copy
from bench.storing import provenance
from bench.storing.current import Piece
from bench.storing.digest import digest
from bench.storing.images import encode
from bench.storing.keys import DataKey, DefenseKey, Key, differences
from bench.storing.records import CLEAN, ShardRecord
from bench.storing.store import PackedShard, pack_shard, pack_tensors, unpack_tensors
from bench.suites.attacks import ResolvedAttack, resolve_attacks
from bench.suites.config import Suite


@dataclass(frozen=True)
class Setting:
    """Everything a worker needs to set up one defense in one suite again."""

    suite: Suite
    spec: DefenseSpec
    device: str
    data_root: Path | None
    defense: DefenseKey
    randomized: bool
    threshold: float | None
    command: str
    isolation: Isolation = NONE

    @property
    def data(self) -> Supply[Data]:
        """The data set."""
        return Supply(
            f"data {self.suite.data} below {self.data_root}", partial(load_data, self.suite.data, self.data_root)
        )

    @property
    def weights(self) -> Supply[bytes]:
        """Parameters and buffers of the defense, as a safetensors file."""
        return Supply(f"weights {self.defense.weights}", partial(weights_of, self))

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    def open(self, data: Data) -> LoadedDefense:
        """The defense, in evaluation mode, at its level of isolation; of a server a new one every time."""
        weights = self.weights.brought()
        return open_defense(
            self.spec,
            data.info,
            self.torch_device,
            self.suite.training(data),
            None if weights is None else unpack_tensors(weights)[0],
            isolation=self.isolation,
        )

    @property
    def draws(self) -> Draws:
        """Judging draws; one is enough for a deterministic defense."""
        return Draws(self.suite.draws.select, self.suite.draws.report) if self.randomized else Draws(1, 1)

    def towards(self, defense: Defense, x: Tensor, y: Tensor, ids: list[str]) -> Tensor | None:
        """The class that each example has to reach, ``(N,)``; None in an untargeted suite."""
        return classes_to_reach(
            self.suite.towards,
            defense,
            x,
            y,
            ids,
            seed=self.suite.seed,
            draws=self.draws.select,
            name=self.spec.name,
            protocol=self.suite.protocol,
        )


@dataclass(frozen=True)
class Context:
    """A setting brought to life."""

    data: Data
    examples: Split
    defense: Defense
    attacks: dict[str, ResolvedAttack]


_contexts: dict[str, Context] = {}


def select_examples(suite: Suite, data: Data) -> Split:
    """The suite's examples: a fixed selection, the same for every defense."""
    split: Split = getattr(data, suite.split)
    return split if suite.examples is None else split.take(suite.examples)


def defense_key(spec: DefenseSpec, loaded: LoadedDefense) -> DefenseKey:
    """Everything that makes a defense what it is."""
    return DefenseKey(
        name=spec.name,
        version=loaded.version,
        params=spec.params,
        weights=loaded.weights,
        libraries=loaded.libraries,
    )


def open_context(setting: Setting) -> Context:
    """Load data, defense and attacks once per process and setting."""
    parts = setting.suite.model_dump(mode="json"), setting.defense.model_dump(mode="json"), setting.device
    key = digest(*parts, setting.isolation.level)
    if key in _contexts and _is_lost(_contexts[key].defense):
        del _contexts[key]
    if key not in _contexts:
        _contexts.clear()  # one defense in memory at a time
        data = setting.data.take()
        loaded = setting.open(data)
        if (found := defense_key(setting.spec, loaded)) != setting.defense:
            why = "; ".join(differences(setting.defense, found, "defense"))
            raise DiffersHere(f"{setting.spec.name}: is not what was probed: {why}")
        attacks = {entry.name: entry for entry in resolve_attacks(setting.suite, problems=[])}
        examples = select_examples(setting.suite, data)
        _contexts[key] = Context(data, examples, ready(loaded.defense), attacks)
    return _contexts[key]


def forget() -> None:
    """Let go of the data and the defense that this process holds for its next shard."""
    _contexts.clear()


def opens(setting: Setting) -> None:
    """Load data, defense and attacks; raises where the defense is not what was probed."""
    open_context(setting)


def weights_of(setting: Setting) -> bytes:
    """Parameters and buffers of a setting's defense, as a safetensors file."""
    data = setting.data.take()
    loaded = open_defense(
        setting.spec, data.info, training=setting.suite.training(data), isolation=setting.isolation
    )
    defense = loaded.defense
    return pack_tensors(defense.weights() if isinstance(defense, RemoteDefense) else defense.state_dict())


def prepare(setting: Setting, attack_name: str, unfinished: Path) -> bytes:
    """Prepare an attack once. Returns what is to be stored: see :func:`read_prepared`.

    Args:
        unfinished: a folder for what lets it go on where it was interrupted.
    """
    data = setting.data.take()
    (entry,) = resolve_attacks(setting.suite, [attack_name], problems=[])
    if entry.tier == "transfer":
        return _prepare_copy(setting, unfinished)
    assert entry.spec.prepare is not None
    report(0.0, "")
    of_data = entry.spec.prepare_scope == "data"
    defense = None if of_data else open_context(setting).defense
    start = time.perf_counter()
    work = PrepareContext(
        defense=defense,
        info=data.info,
        threat=setting.suite.threat_for(data.info, entry.eps),
        train=data.train,
        device=setting.torch_device,
        validation=data.validation if len(data.validation) else None,
    )
    refusal = ""
    with seeded(setting.suite.seed, "prepare", entry.spec.name, "" if of_data else setting.spec.name):
        try:
            tensors = entry.spec.prepare(work, **entry.params)
        except NotApplicable as reason:  # every shard will say so
            tensors, refusal = {}, str(reason)
    seconds = time.perf_counter() - start
    return pack_tensors(tensors, {"seconds": f"{seconds:.3f}", "refusal": refusal})


def _prepare_copy(setting: Setting, unfinished: Path) -> bytes:
    """A copy's training is its author's code, which runs at the level of its defense, and never sees the test split."""
    data, level = setting.data.take(), setting.isolation.level
    learnt_from = replace(data, test=data.test.take(0))
    work = setting.suite, setting.spec, learnt_from, setting.torch_device
    if level == "none":
        return prepare_copy(*work, unfinished)
    return run_apart(prepare_copy, *work, None, spec=setting.spec, isolation=setting.isolation)


def read_prepared(prepared: Supply[bytes] | None) -> tuple[dict[str, Tensor], float, str]:
    """The tensors of a preparation, the seconds it took, and why it found the attack not applicable, if it did.

    Nothing when the attack needs none.
    """
    if prepared is None:
        return {}, 0.0, ""
    tensors, about = unpack_tensors(prepared.take())
    return tensors, float(about.get("seconds", 0)), about.get("refusal", "")


def empty_record(setting: Setting, piece: Piece, key: Key, **fields: Any) -> ShardRecord:
    """A shard record without rows; ``fields`` say how it ended."""
    filled: dict[str, Any] = {
        "isolation": setting.isolation.level,
        "batch_size": setting.suite.batch_size,
        "seconds": 0.0,
        "rows": [],
        "provenance": provenance.finish(provenance.start(setting.command), setting.device),
        **fields,
    }
    filled["error"] = provenance.without_folders(filled.get("error", ""))
    return ShardRecord(
        key=key,
        shard=piece.number,
        start=piece.start,
        stop=piece.stop,
        **filled,
    )


def _another(setting: Setting, context: Context) -> RemoteDefense:
    """A new server of the same defense, which has seen nothing yet."""
    loaded = setting.open(context.data)
    if loaded.weights != setting.defense.weights:
        raise DiffersHere(f"{setting.spec.name}: its weights differ from one start of its server to the next")
    assert isinstance(loaded.defense, RemoteDefense)
    return loaded.defense


def _is_lost(defense: Defense) -> bool:
    """Whether it was in a server that is gone."""
    return isinstance(defense, RemoteDefense) and not defense.open


def remember(defense: Defense) -> dict[str, Tensor]:
    """Parameters and buffers as they are, for :func:`restore_`; those of a server are remembered there."""
    if isinstance(defense, RemoteDefense):
        defense.mark()
    return {name: value.clone() for name, value in defense.state_dict().items()}


def restore_(defense: Defense, state: dict[str, Tensor]) -> bool:
    """Undo what an attack did to a defense: its mode, parameters and buffers. Returns whether the latter differed."""
    if isinstance(defense, RemoteDefense):
        return defense.open and defense.restore()
    freeze(defense)
    now = defense.state_dict()
    changed = now.keys() != state.keys() or any(not torch.equal(now[name], state[name]) for name in state)
    if changed:
        defense.load_state_dict(state)
    return changed


def run_shard(
    setting: Setting, attack_name: str, piece: Piece, whole: Key, data: DataKey, prepared: Supply[bytes] | None
) -> PackedShard:
    """Attack one shard and judge it. Returns what is to be stored.

    Where memory runs out beyond what the target can help by smaller passes, everything is done again with half the
    batch: the same random numbers, so the same rows of a deterministic defense.

    Args:
        whole: the key of the cell; data: the component that stands for this shard's examples.
    """
    report(0.0, "")  # it has started, which is all that is known of it until it ends
    batch_size = setting.suite.batch_size
    while True:
        try:
            return _run_shard(
                setting, attack_name, piece, whole.model_copy(update={"data": data}), prepared, batch_size
            )
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size = min(batch_size, piece.stop - piece.start) // 2 or 1
            free_memory()


def free_memory() -> None:
    """Give back what passes have left behind: glibc keeps of large inputs as much as the workers need."""
    gc.collect()
    with suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _run_shard(
    setting: Setting, attack_name: str, piece: Piece, key: Key, prepared: Supply[bytes] | None, batch_size: int
) -> PackedShard:
    context = open_context(setting)
    suite, defense = setting.suite, context.defense
    rows = slice(piece.start, piece.stop)
    x = context.examples.at(rows).clone().to(setting.device)  # a defense may write into its input, not into the data
    y = context.examples.y[rows].to(setting.device)
    ids = context.examples.ids[rows]
    entry = None if attack_name == CLEAN else context.attacks[attack_name]
    if entry is not None and key.attack is not None and attack_version(entry.spec) != key.attack.version:
        raise DiffersHere(f"attack {entry.name}: is not the version that was planned ({key.attack.version})")
    stream = key.stream(piece.number)
    clock = provenance.start(setting.command)
    threat = suite.threat_for(context.data.info, None if entry is None else entry.eps)
    tensors, prepare_seconds, refusal = read_prepared(prepared)
    towards = None if entry is None else setting.towards(in_a_crowd(defense, threat), x, y, ids)
    attacked, threshold = defense, setting.threshold
    if entry is not None and entry.tier == "oblivious":
        threshold = None
    elif entry is not None and entry.tier == "transfer" and not refusal:
        attacked, threshold = load_copy(
            setting.spec, context.data.info, tensors, setting.torch_device, setting.isolation
        )
        tensors = {}
    target = Target(
        attacked,
        threat,
        len(x),
        knowledge="decision" if entry is None else entry.knowledge,
        generator=generator(*stream, "attack"),
        randomized=setting.randomized,
        threshold=threshold,
        prepared={name: value.to(setting.device) for name, value in tensors.items()},
        batch_size=batch_size,
        towards=towards,
    )
    if batch_size < suite.batch_size:
        target.counts.notes.add(f"out of memory: batch halved to {batch_size}")
    state = remember(defense)
    start = time.perf_counter()
    x_adv, changed = x, False
    witness = Witness(defense, generator(*stream, "witness"))
    if entry is not None:
        try:
            if refusal:
                raise NotApplicable(refusal)
            if threat.norm not in entry.spec.norms:
                raise NotApplicable(f"{entry.spec.name} has no {threat.norm} version ({', '.join(entry.spec.norms)})")
            if towards is not None and not entry.spec.targeted:
                raise NotApplicable(f"{entry.spec.name} has no targeted form")
            company = Company(x, threat, defense.data.input, generator(*stream, "company"))
            with seeded(*stream, "optimise"), witness, in_company(defense, company):
                x_adv = entry.spec.function(target, x.clone(), y.clone(), **entry.params)
        except NotApplicable as reason:
            record = empty_record(setting, piece, key, status="not-applicable", error=str(reason))
            return pack_shard(record, None)
        finally:
            changed = restore_(defense, state)
        if not isinstance(x_adv, Tensor):
            raise InputError(f"attack {entry.name}: returned {type(x_adv).__name__} instead of a tensor")
    if x.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    notes = sorted(target.counts.notes)
    if changed:
        notes.append("the attack changed parameters or buffers of the defense")
    # What a copy was asked cost the defense nothing.
    counts = target.counts if attacked is defense else no_counts(len(x))
    how = Judging(
        threat,
        setting.draws,
        setting.threshold,
        target.batch_size,
        stream,
        clean=entry is None,
        towards=towards,
        rounding=suite.protocol > 1 and not key.judging.as_returned,
    )
    given = x, y, ids, x_adv.detach().to(x.dtype), counts, how
    if setting.isolation.level == "none":
        judged, again = judge(defense, *given), None
        told = None if changed else witness.compare(defense)
    else:
        with closing(_another(setting, context)) as fresh:
            judged, again = judge_apart(fresh, defense, *given, randomized=setting.randomized)
            told = None if changed else witness.compare(fresh)
    record = empty_record(
        setting,
        piece,
        key,
        status="ok",
        batch_size=target.batch_size,
        notes=notes,
        seconds=seconds,
        prepare_seconds=prepare_seconds,
        provenance=provenance.finish(clock, setting.device),
        rows=judged.rows,
        towards=None if towards is None else towards.tolist(),
        asked_again=again,
        told_attack=told,
    )
    return pack_shard(record, None if entry is None else encode(judged.x_adv, x, context.data.info.input))
