"""What is written to disk, field by field. Everything shown later is computed from these records.

Layout below a results folder::

    <suite>/suite.json                      SuiteRecord: data, examples, threat model, attacks with budgets
    <suite>/<defense>/defense.json          DefenseRecord: what it is, what the probe found, timing
    <suite>/<defense>/<attack>/000.json     ShardRecord: one row per example
    <suite>/<defense>/<attack>/000.safetensors   the shard's x_adv, float32 (N, C, H, W), key "x_adv"
    <suite>/<defense>/gallery.safetensors   a few examples as images (see GalleryEntry)

A study may put files of its own beside these (``bench.studies``).

``bench compact`` makes them small enough to be published: it compresses shards (``000.json.gz``) and keeps of the
adversarial inputs of an example the one of its worst attack.

The attack named ``clean`` is the unattacked input; its shards hold the clean predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from bench.contracts.inputs import Kind
from bench.storing.row import Record, Row

#: Raised when the meaning of a field changes. Readers refuse newer files and say so.
SCHEMA_VERSION = 1

#: The name under which clean predictions are stored beside the attacks.
CLEAN = "clean"


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
    eps: float = Field(description="radius it was given, in units of the [0, 1] pixel scale")
    key: str = Field(description="hash of function, parameters and radius")
    counted: bool = Field(description="False for sanity checks outside the threat model (larger eps)")
    summary: str = Field(default="", description="one line")
    paper: str = Field(default="", description="authors, year, title")
    url: str = Field(default="", description="where to read the paper")

    @property
    def plain(self) -> bool:
        """Whether it takes the gradients of plain automatic differentiation: ``estimator`` is exact or no parameter."""
        estimator = self.params.get("estimator", "exact")
        return self.knowledge == "gradient" and estimator in ("exact", {"exact": {}})


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
    key: str = Field(description="hash of examples, threat model, seed and draws: shards of another key are stale")
    name: str
    description: str = ""
    data: str = Field(description="reference of the data set, e.g. digits or folder:PATH")
    split: str
    shape: tuple[int, ...] = Field(description="shape of one input: (C, H, W) of images")
    low: float = Field(default=0.0, description="the box of the inputs' values: from low")
    high: float = Field(default=1.0, description="to high")
    kind: Kind = Field(default="image", description="how an input is shown: image or waveform")
    class_names: list[str]
    ids: list[str] = Field(description="ids of the evaluated examples, in order")
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
    radii: list[float] = Field(default=[], description="radii of at most eps at which robust accuracy is shown as well")


class ClaimRecord(Record):
    """A number that a defense's paper claims, or that somebody who attacked it found."""

    data: str
    threat: str
    standard: float | None = None
    robust: float
    attack: str = ""
    source: str = ""


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
    approximations: list[str] = Field(description="declared differentiable stand-ins for the transform")
    transforms: bool = Field(description="whether the transform changes its input")
    transform_distance: float | None = Field(
        default=None,
        description="root mean square of E[g(x)] - x over pixels and clean images; None where g changes the size",
    )
    has_detector: bool
    threshold: float | None = Field(description="detector threshold, fixed on clean validation data")
    validation_examples: int = Field(description="clean examples the threshold was set on")


class Timing(Record):
    """Measured alone on the machine, in one run with the reference."""

    training_seconds: float | None = Field(description="wall time of the shipped training run")
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

    Keys there: ``x``, ``x_adv``, ``g_x``, ``g_x_adv``, each float32 (N, C, H', W') in entry order.
    """

    id: str
    attack: str = Field(description="the attack whose x_adv is shown: the worst for this example")
    label: int
    clean_prediction: int
    adversarial_prediction: int


class DefenseRecord(Record):
    """A defense as it was evaluated."""

    schema_version: int = SCHEMA_VERSION
    key: str = Field(description="hash of code, parameters and weights")
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
    provenance: Provenance


class ShardRecord(Record):
    """One defense × attack × slice of the examples: the unit that is scheduled, stored and resumed."""

    schema_version: int = SCHEMA_VERSION
    key: str = Field(description="hash of everything that can change the rows")
    suite_key: str = Field(description="key of the suite it was run in")
    defense_key: str = Field(description="key of the defense it was run against")
    attack_key: str = Field(description="hash of the attack's parameters and radius")
    suite: str
    defense: str
    attack: str
    shard: int
    status: Literal["ok", "failed", "timeout", "out-of-memory", "not-applicable"]
    error: str = Field(default="", description="traceback or reason when status is not ok")
    notes: list[str] = Field(default=[], description="what the target noticed, e.g. a cut graph")
    draws_select: int
    draws_report: int
    batch_size: int = Field(description="rows per judging pass; a randomised defense draws batch by batch")
    seconds: float = Field(description="attack wall time of the shard, judging excluded")
    prepare_seconds: float = Field(default=0.0, description="one-off preparation this attack needed")
    x_adv_sha256: str = Field(default="", description="of the safetensors file beside this one")
    x_adv_rows: list[int] | None = Field(default=None, description="rows whose x_adv is still there; None: all")
    provenance: Provenance
    rows: list[Row]

    @property
    def stored(self) -> Sequence[int]:
        """The rows whose x_adv is still there, in the order of the file's."""
        return range(len(self.rows)) if self.x_adv_rows is None else self.x_adv_rows
