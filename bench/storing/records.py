"""What is written to disk, field by field. Everything shown later is computed from these records.

Layout below a results folder::

    <suite>/suite.json                      SuiteRecord: data, examples, threat model, attacks with budgets
    <suite>/<defense>/defense.json          DefenseRecord: what it is, what the probe found, timing
    <suite>/<defense>/<attack>/000.json     ShardRecord: one row per example
    <suite>/<defense>/<attack>/000.safetensors   the shard's x_adv (see bench.storing.images)
    <suite>/<defense>/gallery.safetensors   a few examples as images (see GalleryEntry)
    <suite>/.prepared, <suite>/.headers     what can be made again and is never published

A study may put files of its own beside these (``bench.studies``).

``bench compact`` makes them small enough to be published: it puts the shards of a cell into one compressed file
(``shards.json.xz``), compresses galleries, and keeps of the adversarial inputs of an example the one of its worst
attack.

The attack named ``clean`` is the unattacked input; its shards hold the clean predictions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from bench.contracts.isolation import Level
from bench.contracts.words import Kind, Seeks, Tier, Towards
from bench.storing.digest import digest
from bench.storing.keys import (
    AWARENESS,
    PROTOCOL,
    AttackKey,
    DataKey,
    DefenseKey,
    JudgingKey,
    Key,
    Protocol,
    Sparse,
    SuiteKey,
)

#: Raised when the meaning of a field changes. Readers refuse newer files and say so.
SCHEMA_VERSION = 2

#: The name under which clean predictions are stored beside the attacks.
CLEAN = "clean"


class Record(BaseModel):
    """Base of all records: unknown fields are refused, so that a typo cannot hide."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(Record):
    """One example under one attack.

    ``robust`` counts draws in which the attack did not get through: right, or rejected by the detector. For
    ``clean`` a draw counts only when it is right *and* accepted. A deterministic defense has one draw.

    Under an attack of a targeted suite every class but the one to reach counts as right.
    """

    id: str
    label: int
    prediction: int = Field(description="first reporting draw; -1 where the output was not finite")
    select_correct: int = Field(description="draws classified rightly, of draws_select")
    select_robust: int = Field(description="draws survived, of draws_select: to choose the worst attack")
    report_robust: int = Field(description="draws survived, of draws_report: to score it")
    report_correct: int = Field(description="draws classified rightly whatever the detector says")
    report_rejected: int = Field(description="draws rejected by the detector")
    report_caught: int = Field(description="draws misclassified and rejected")
    detector_score: float | None = Field(description="mean over the reporting draws")
    linf: float
    l2: float
    l1: float
    l0: int
    forward: int = Field(description="forward passes of the defense spent on this example")
    backward: int = Field(description="backward passes")
    zero_gradient: int = Field(description="gradients that were exactly zero")
    nonfinite_gradient: int = Field(description="gradients with NaN or infinite entries")
    reason: str = Field(description="ok, or why the judge refused x_adv (then the row scores as the clean input)")
    rounded: bool = Field(
        default=False, description="whether x_adv was moved to the data's grey levels, which were no better survived"
    )


class Provenance(Record):
    """Where a file came from."""

    command: str = Field(description="the command line that produced the file")
    started: str = Field(description="start, ISO 8601, UTC")
    ended: str = Field(description="end, ISO 8601, UTC")
    git_commit: str | None = Field(description="commit of the code, None outside a git checkout")
    git_dirty: bool | None = Field(description="whether tracked files differed from that commit")
    versions: dict[str, str] = Field(description="python, torch, torchvision, numpy, worst-case-bench")
    hardware: dict[str, str] = Field(description="cpu, cores, memory, accelerator, platform")


class AttackRecord(Record):
    """An attack as a suite runs it."""

    name: str = Field(description="its name in the suite")
    function: str = Field(description="the registered attack behind the name")
    knowledge: str = Field(description="transfer, decision, score or gradient")
    params: dict[str, Any] = Field(description="every parameter, defaults included: the budget")
    eps: float = Field(description="radius it was given, in units of the data")
    version: int | str = Field(description="declared by the attack; of a plugin without one a hash of its own files")
    randomised_version: int | None = Field(default=None, description="likewise, of what it does to randomised defenses")
    counted: bool = Field(description="False for sanity checks outside the threat model (larger eps)")
    examples: int | None = Field(default=None, description="run on the suite's first so many examples; None: on all")
    tier: Tier = Field(default="adaptive", description="what it is shown of a detector")
    adapts: bool = Field(default=False, description="looks for other gradients than plain ones by itself")
    seeks: Seeks = Field(default="error", description="an input that is wrong and accepted, or a near one's rejection")
    summary: str = Field(default="", description="one line")
    paper: str = Field(default="", description="authors, year, title")
    url: str = Field(default="", description="where to read the paper")

    @property
    def plain(self) -> bool:
        """Whether it takes the gradients of plain automatic differentiation: ``estimator`` is exact or no parameter.

        An attack that is not shown the detector, or seeks no error, is not: what it leaves says nothing of gradients.
        Neither is one that adapts itself.
        """
        if self.knowledge != "gradient" or self.tier != "adaptive" or self.seeks != "error" or self.adapts:
            return False
        return self.params.get("estimator", "exact") in ("exact", {"exact": {}})

    @property
    def by_plain_gradients_alone(self) -> bool:
        """Whether all it does rests on these gradients: a cascade with ``queries`` too ends in a black-box attack."""
        return self.plain and not self.params.get("queries")

    @property
    def judged_as_returned(self) -> bool:
        """Whether points are made without the detector in mind, or to be rejected: see ``Judging.rounding``.

        They are survived when they are caught. On the grey levels, survived no more often, they would be right instead
        of caught, or too far away for a near input's rejection.
        """
        return self.tier == "oblivious" or self.seeks == "rejection"

    def applies_to(self, detector: bool) -> bool:
        """Whether it is run against a defense with or without a detector.

        Other tiers than adaptive need one, and so does who seeks a rejection.
        """
        return detector or (self.tier == "adaptive" and self.seeks == "error")

    def key(self, detector: bool, randomised: bool = False) -> AttackKey:
        """What tells it from other attacks on a defense with or without a detector, randomised or not."""
        own = {name: getattr(self, name) for name in ("name", "function", "version", "knowledge", "params", "eps")}
        if randomised:
            own["randomised_version"] = self.randomised_version
        if not detector:
            return AttackKey(**own)
        return AttackKey(**own, tier=self.tier, awareness=None if self.tier == "oblivious" else AWARENESS)


class VariantRecord(Record):
    """One variant of a study."""

    label: str
    defense: str = Field(description="its name in the results")
    published: dict[str, float] = Field(default={}, description="the paper's per cent by attack; clean: standard")


class StudyRecord(Record):
    """Variants of one defense, to be shown side by side."""

    defense: str = Field(description="the defense on whose page the study is shown")
    title: str
    axis: str = Field(description="what changes from variant to variant")
    source: str = ""
    variants: list[VariantRecord]


class SuiteRecord(Record):
    """The suite that the results below this folder belong to."""

    schema_version: int = SCHEMA_VERSION
    protocol: Protocol = Field(default=PROTOCOL, description="version of judge, random streams and meaning of a row")
    name: str
    description: str = ""
    data: str = Field(description="reference of the data set, e.g. digits or folder:PATH")
    split: str
    data_version: int = Field(description="declared by the data set: decoding, ids, order, splits")
    shape: tuple[int, ...] = Field(description="shape of one input: (C, H, W) of images")
    low: float = Field(default=0.0, description="the box of the inputs' values: from low")
    high: float = Field(default=1.0, description="to high")
    kind: Kind = Field(default="image", description="how an input is shown: image or waveform")
    levels: int | None = Field(default=None, description="grey levels of the data's files; None: not known")
    class_names: list[str]
    ids: list[str] = Field(description="ids of the evaluated examples, in order")
    digests: list[str] = Field(description="hash of each example's input and label, in order")
    norm: str
    eps: float
    seed: int
    shard_size: int
    draws_select: int = Field(description="draws per input on which the worst attack is chosen (randomised only)")
    draws_report: int = Field(description="fresh draws per input on which it is scored (randomised only)")
    false_positive_rate: float = Field(description="share of clean validation data a detector may reject")
    reference: str = Field(description="the undefended model that timing is relative to")
    attacks: list[AttackRecord]
    study: StudyRecord | None = None
    towards: Towards | None = Field(default=None, description="how the class to reach is chosen; None: untargeted")
    radii: list[float] = Field(default=[], description="radii of at most eps at which robust accuracy is shown as well")
    examples_of: dict[str, int] = Field(
        default={}, description="defenses, by their registered names, with all cells on the first so many examples"
    )

    def examples_run(self, attack: AttackRecord | None = None, reference: str = "") -> int:
        """How many of the suite's examples, from the first on, a cell is run on: of two numbers the smaller holds.

        Args:
            attack: None for the unattacked input.
            reference: what a defense is built from, which its variants share; "" for any without a number of its own.
        """
        allowed = [len(self.ids), self.examples_of.get(reference), None if attack is None else attack.examples]
        return min(number for number in allowed if number is not None)

    def data_key(self, start: int, stop: int) -> DataKey:
        """The component that stands for the examples at these positions."""
        examples = tuple(self.ids[start:stop]), tuple(self.digests[start:stop])
        return _data_key(self.data_version, self.split, *examples)

    def whole_key(self, defense: DefenseRecord, attack: AttackRecord | None, *, torch: str, device: str) -> Key:
        """The key of a cell, which lacks only the examples of a shard: see :meth:`data_key`.

        Args:
            attack: None for the unattacked input.
            torch: major.minor; device: its type.
        """
        random = defense.probe.randomized
        return Key(
            protocol=self.protocol,
            suite=SuiteKey(norm=self.norm, eps=self.eps, seed=self.seed, towards=self.towards),
            data=self.data_key(0, 0),
            defense=defense.key,
            # Rows of the first protocol are all of before attacks had a version of their own there.
            attack=None if attack is None else attack.key(defense.probe.has_detector, random and self.protocol > 1),
            judging=JudgingKey(
                draws_select=self.draws_select if random else 1,
                draws_report=self.draws_report if random else 1,
                threshold=defense.probe.threshold,
                as_returned=(
                    self.protocol > 1
                    and defense.probe.has_detector
                    and attack is not None
                    and attack.judged_as_returned
                ),
            ),
            torch=torch,
            device=device,
        )

    def cell_key(
        self, defense: DefenseRecord, attack: AttackRecord | None, *, torch: str, device: str
    ) -> Callable[[int, int], Key]:
        """What the shards of a cell would be made of now: ``(start, stop) -> Key``. Arguments: :meth:`whole_key`."""
        whole = self.whole_key(defense, attack, torch=torch, device=device)
        return lambda start, stop: whole.model_copy(update={"data": self.data_key(start, stop)})


@functools.lru_cache(maxsize=4096)
def _data_key(version: int, split: str, ids: tuple[str, ...], digests: tuple[str, ...]) -> DataKey:
    """Remembered, since every cell of a suite has the same shards."""
    return DataKey(version=version, split=split, examples=digest(ids, digests))


class ClaimRecord(Record):
    """A number that a defense's paper claims, or that somebody who attacked it found."""

    data: str
    threat: str
    standard: float | None = None
    robust: float
    attack: str = ""
    source: str = ""


class Slopes(Record):
    """Differences of the margin beside its gradient by plain autograd, at clean inputs and random points of the ball.

    Both are 1 where the function is smooth and the gradient its own.
    """

    points: int = Field(description="at which there was a gradient to compare")
    along: float = Field(description="difference over a step along the gradient ÷ the one that it predicts, median")
    across: float = Field(description="correlation of differences along random directions with the predicted ones")


class Memory(Record):
    """Right answers to inputs of the suite, and to fresh ones of the same kind."""

    examples: int = Field(description="of the suite's inputs")
    clean: int = Field(description="of these, right as they are")
    near: int = Field(description="right when moved at random by a twentieth of what is allowed")
    moved: int = Field(description="right wherever steps to the edge of the ball lead (gradient, other classes)")
    fresh_examples: int = Field(description="inputs that are neither trained on nor attacked")
    fresh_clean: int
    fresh_near: int
    fresh_moved: int
    made_examples: int = Field(default=0, description="inputs made for this, half way between two of a class; 0: none")
    made_clean: int = 0
    made_moved: int = 0
    made_expected: float | None = Field(
        default=None, description="how many would stay right if they did so as often as the suite's of the same margin"
    )


class Probe(Record):
    """What the harness found out about a defense before attacking it."""

    randomized: bool = Field(description="declared, or two passes of one batch differed")
    declared_randomized: bool
    outputs_are_probabilities: bool = Field(description="all outputs in [0, 1] with rows that sum to 1")
    gradient: Literal["ok", "zero", "missing", "nonfinite"] = Field(
        description="the margin's gradient by plain autograd at random points of the ball"
    )
    zero_gradient_share: float = Field(description="share of probed examples whose gradient is exactly 0")
    batch_dependent: bool = Field(description="logits change when the batch is permuted or split")
    random_at: list[str] | None = Field(default=None, description="places where two passes of one batch differed")
    batch_dependent_at: list[str] | None = Field(default=None, description="places where logits depend on the batch")
    stateful: bool | None = Field(default=None, description="answers change with what was asked before; None: unknown")
    mode_dependent: bool | None = Field(default=None, description="logits differ where a gradient is asked for")
    slopes: Slopes | None = Field(default=None, description="whether the gradient is that of the logits")
    precision_lost: float | None = Field(
        default=None, description="share of probed points where cross-entropy's gradient underflows; None: unknown"
    )
    memory: Memory | None = Field(default=None, description="whether the suite's inputs are known to it")
    approximations: list[str] = Field(description="declared differentiable stand-ins for the transform")
    transforms: bool = Field(description="whether the transform changes its input")
    transform_distance: float | None = Field(
        default=None,
        description="root mean square of E[g(x)] - x over pixels and clean images; None where g changes the size",
    )
    has_detector: bool
    threshold: float | None = Field(description="detector threshold, fixed on clean validation data")
    validation_examples: int = Field(description="clean examples the threshold was set on")


class Afterwards(Record):
    """What a defense said of adversarial inputs when it was asked once more after the attacks."""

    points: int = Field(description="adversarial inputs of all attacks that it was asked about")
    random: bool = Field(description="two passes of one batch of them differed")
    batch_dependent: bool = Field(description="answers change when that batch is permuted or split")
    differing: int = Field(description="right then and wrong now, or the other way round; 0 where it is randomised")


class Timing(Record):
    """Measured alone on the machine, in one run with the reference."""

    training_seconds: float | None = Field(default=None, exclude=True, description="in older files; see training")
    seconds_per_1000: float = Field(description="inference of 1000 examples, median of the repeats")
    reference_seconds_per_1000: float = Field(description="the undefended model, same batches, alternating")
    batch_size: int
    repeats: int
    device: str

    @property
    def ratio(self) -> float:
        """Inference cost relative to the undefended model."""
        return self.seconds_per_1000 / self.reference_seconds_per_1000


class GalleryEntry(Record):
    """One example of the gallery; images are rows of gallery.safetensors.

    Keys there: ``x``, ``x_adv``, ``g_x``, ``g_x_adv``, each float32 (N, C, H', W') in entry order, or uint8 in 255ths
    of the box where ``bench compact`` found whole ones.
    """

    id: str
    attack: str = Field(description="the attack whose x_adv is shown: the worst for this example")
    label: int
    clean_prediction: int
    adversarial_prediction: int


class DefenseRecord(Record):
    """A defense as it was evaluated."""

    schema_version: int = SCHEMA_VERSION
    version: int | str = Field(description="declared by the defense; of a plugin without one a hash of its own files")
    weights: str = Field(description="SHA-256 over parameters and buffers")
    libraries: dict[str, str] = Field(default={}, description="versions of the libraries that it says it depends on")
    name: str
    reference: str = Field(description="what was given to --defense")
    params: dict[str, Any] = Field(default={})
    title: str = ""
    summary: str = ""
    paper: str = ""
    url: str = ""
    family: str = "unspecified"
    tags: list[str] = Field(default=[])
    claims: list[ClaimRecord] = Field(default=[])
    breaks: list[ClaimRecord] = Field(default=[])
    num_parameters: int
    checkpoint_sha256: str | None = Field(default=None, description="of the safetensors file that was loaded")
    training: dict[str, Any] = Field(default={}, description="the checkpoint's training record")
    probe: Probe
    timing: Timing | None = None
    gallery: list[GalleryEntry] = Field(default=[])
    afterwards: Afterwards | None = Field(default=None, description="asked once more about what attacks found")
    provenance: Provenance

    @property
    def key(self) -> DefenseKey:
        """What tells it from other defenses."""
        return DefenseKey(**{name: getattr(self, name) for name in DefenseKey.model_fields})


class AskedAgain(Record):
    """Rows whose inputs were given once more to a defense: to another process of it, or when an attack was over."""

    #: Chance at which an honest randomised defense has a row that differs, in one shard.
    LUCK: ClassVar[float] = 1e-3

    rows: int = Field(description="compared")
    differing: int = Field(description="that came out otherwise, beyond what the defense's declared randomness allows")


class Keyed(Record):
    """A record with judged rows and the key that says what they were made of."""

    key: Key

    @property
    def draws_select(self) -> int:
        """Draws per input on which the worst attack is chosen."""
        return self.key.judging.draws_select

    @property
    def draws_report(self) -> int:
        """Draws per input on which the attack is scored."""
        return self.key.judging.draws_report


class ShardRecord(Sparse, Keyed):
    """One defense × attack × slice of the examples: the unit that is scheduled, stored and resumed."""

    schema_version: int = SCHEMA_VERSION
    key: Key = Field(description="what it was made of")
    shard: int = Field(description="its number, which names the file")
    start: int = Field(description="position of its first example in the suite")
    stop: int = Field(description="position after its last example")
    status: Literal["ok", "failed", "timeout", "out-of-memory", "not-applicable"]
    error: str = Field(default="", description="traceback or reason when status is not ok")
    notes: list[str] = Field(default=[], description="what the target noticed, e.g. a cut graph")
    batch_size: int = Field(description="rows per judging pass; a randomised defense draws batch by batch")
    seconds: float = Field(description="attack wall time of the shard, judging excluded")
    prepare_seconds: float = Field(default=0.0, description="one-off preparation this attack needed")
    x_adv_sha256: str = Field(default="", description="of the safetensors file beside this one")
    x_adv_rows: list[int] | None = Field(default=None, description="rows whose x_adv is still there; None: all")
    towards: list[int] | None = Field(default=None, description="the class each row had to reach; None: untargeted")
    isolation: Level = Field(default="none", description="how far the defense was kept apart from its judge")
    asked_again: AskedAgain | None = Field(default=None, description="None where the defense was not isolated")
    told_attack: AskedAgain | None = Field(
        default=None, description="of some batches of the attack's, what it says of them afterwards; None: not asked"
    )
    provenance: Provenance
    rows: list[Row]

    @property
    def defense(self) -> str:
        """The defense's name."""
        return self.key.defense.name

    @property
    def attack(self) -> str:
        """The attack's name in its suite, ``clean`` for the unattacked input."""
        return CLEAN if self.key.attack is None else self.key.attack.name

    @property
    def stored(self) -> Sequence[int]:
        """The rows whose x_adv is still there, in the order of the file's."""
        return range(len(self.rows)) if self.x_adv_rows is None else self.x_adv_rows
