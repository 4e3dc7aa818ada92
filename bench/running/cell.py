"""The work of one shard, done in a worker process: load, attack, judge, store."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from bench.contracts.attack import PrepareContext
from bench.contracts.defense import Defense, DefenseSpec, freeze
from bench.contracts.errors import InputError, NotApplicable
from bench.contracts.reporting import report
from bench.contracts.seeding import generator, seeded
from bench.contracts.target import Target, no_counts
from bench.data.load import load_data
from bench.data.splits import Data, Split
from bench.judging.judge import Draws, Judging, judge
from bench.judging.probe import ready
from bench.judging.towards import classes_to_reach
from bench.plugins.resolve import LoadedDefense, load_defense
from bench.running.copies import load_copy, prepare_copy
from bench.storing import provenance
from bench.storing.current import Piece
from bench.storing.digest import digest, state_digest
from bench.storing.keys import DefenseKey, Key
from bench.storing.records import CLEAN, ShardRecord
from bench.storing.store import Store
from bench.suites.attacks import ResolvedAttack, resolve_attacks
from bench.suites.config import Suite


@dataclass(frozen=True)
class Setting:
    """Everything a worker needs to set up one defense in one suite again."""

    suite: Suite
    spec: DefenseSpec
    device: str
    results: Path
    data_root: Path | None
    defense: DefenseKey
    randomized: bool
    threshold: float | None
    command: str

    @property
    def store(self) -> Store:
        return Store(self.results, self.suite.name)

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def draws(self) -> Draws:
        """Judging draws; one is enough for a deterministic defense."""
        return Draws(self.suite.draws.select, self.suite.draws.report) if self.randomized else Draws(1, 1)

    def towards(self, defense: Defense, x: Tensor, y: Tensor, ids: list[str]) -> Tensor | None:
        """The class that each example has to reach, ``(N,)``; None in an untargeted suite."""
        seed, draws = self.suite.seed, self.draws.select
        return classes_to_reach(self.suite.towards, defense, x, y, ids, seed=seed, draws=draws, name=self.spec.name)


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
        weights=state_digest(loaded.defense),
        libraries=loaded.libraries,
    )


def open_context(setting: Setting) -> Context:
    """Load data, defense and attacks once per process and setting."""
    key = digest(setting.suite.model_dump(mode="json"), setting.defense.model_dump(mode="json"), setting.device)
    if key not in _contexts:
        _contexts.clear()  # one defense in memory at a time
        data = load_data(setting.suite.data, setting.data_root)
        loaded = load_defense(setting.spec, data.info, torch.device(setting.device), setting.suite.training(data))
        if defense_key(setting.spec, loaded) != setting.defense:
            raise InputError(f"{setting.spec.name}: version or weights differ from those probed; bench check says why")
        attacks = {entry.name: entry for entry in resolve_attacks(setting.suite, problems=[])}
        examples = select_examples(setting.suite, data)
        _contexts[key] = Context(data, examples, ready(loaded.defense), attacks)
    return _contexts[key]


def prepare(setting: Setting, attack_name: str, path: Path) -> float:
    """Prepare an attack once, store what it returns, and give back the seconds it took."""
    data = load_data(setting.suite.data, setting.data_root)
    (entry,) = resolve_attacks(setting.suite, [attack_name], problems=[])
    if entry.tier == "transfer":
        return prepare_copy(setting.suite, setting.spec, data, setting.torch_device, setting.store, path)
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
    )
    refusal = ""
    with seeded(setting.suite.seed, "prepare", entry.spec.name, "" if of_data else setting.spec.name):
        try:
            tensors = entry.spec.prepare(work, **entry.params)
        except NotApplicable as reason:  # every shard will say so
            tensors, refusal = {}, str(reason)
    seconds = time.perf_counter() - start
    setting.store.write_tensors(path, tensors, {"seconds": f"{seconds:.3f}", "refusal": refusal})
    return seconds


def read_prepared(path: Path | None) -> tuple[dict[str, Tensor], float, str]:
    """The tensors of a preparation, the seconds it took, and why it found the attack not applicable, if it did.

    Nothing when the attack needs none.
    """
    if path is None:
        return {}, 0.0, ""
    with safetensors.safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, float(about.get("seconds", 0)), about.get("refusal", "")


def empty_record(setting: Setting, piece: Piece, key: Key, **fields: Any) -> ShardRecord:
    """A shard record without rows; ``fields`` say how it ended."""
    filled: dict[str, Any] = {
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


def restore_(defense: Defense, state: dict[str, Tensor]) -> bool:
    """Undo what an attack did to a defense: its mode, parameters and buffers. Returns whether the latter differed."""
    freeze(defense)
    now = defense.state_dict()
    changed = now.keys() != state.keys() or any(not torch.equal(now[name], state[name]) for name in state)
    if changed:
        defense.load_state_dict(state)
    return changed


def run_shard(setting: Setting, attack_name: str, piece: Piece, key: Key, prepared: Path | None) -> str:
    """Attack one shard, judge it and store it. Returns the status of the stored record."""
    report(0.0, "")  # it has started, which is all that is known of it until it ends
    context = open_context(setting)
    suite, defense = setting.suite, context.defense
    rows = slice(piece.start, piece.stop)
    x = context.examples.at(rows).to(setting.device)
    y = context.examples.y[rows].to(setting.device)
    ids = context.examples.ids[rows]
    entry = None if attack_name == CLEAN else context.attacks[attack_name]
    stream = (suite.seed, setting.spec.name, attack_name, piece.number)
    clock = provenance.start(setting.command)
    threat = suite.threat_for(context.data.info, None if entry is None else entry.eps)
    tensors, prepare_seconds, refusal = read_prepared(prepared)
    towards = None if entry is None else setting.towards(defense, x, y, ids)
    attacked, threshold = defense, setting.threshold
    if entry is not None and entry.tier == "oblivious":
        threshold = None
    elif entry is not None and entry.tier == "transfer" and not refusal:
        attacked, threshold = load_copy(setting.spec, context.data.info, tensors, setting.torch_device)
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
        batch_size=suite.batch_size,
        towards=towards,
    )
    state = {name: value.clone() for name, value in defense.state_dict().items()}
    start = time.perf_counter()
    x_adv, changed = x, False
    if entry is not None:
        try:
            if refusal:
                raise NotApplicable(refusal)
            if threat.norm not in entry.spec.norms:
                raise NotApplicable(f"{entry.spec.name} has no {threat.norm} version ({', '.join(entry.spec.norms)})")
            if towards is not None and not entry.spec.targeted:
                raise NotApplicable(f"{entry.spec.name} has no targeted form")
            with seeded(*stream, "optimise"):
                x_adv = entry.spec.function(target, x.clone(), y.clone(), **entry.params)
        except NotApplicable as reason:
            record = empty_record(setting, piece, key, status="not-applicable", error=str(reason))
            setting.store.write_shard(record, None)
            return record.status
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
    judged = judge(
        defense,
        x,
        y,
        ids,
        x_adv.detach().to(x.dtype),
        # What a copy was asked cost the defense nothing.
        target.counts if attacked is defense else no_counts(len(x)),
        Judging(threat, setting.draws, setting.threshold, target.batch_size, stream, entry is None, towards),
    )
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
        rows=judged,
        towards=None if towards is None else towards.tolist(),
    )
    setting.store.write_shard(record, None if entry is None else x_adv)
    return record.status
