"""``bench.yaml``: the suites. Every field is described where it is defined; the JSON Schema is made from here."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from bench.contracts.errors import InputError, did_you_mean
from bench.contracts.words import Knowledge, Norm, Tier, Towards, format_eps
from bench.storing.keys import PROTOCOL, Protocol
from bench.storing.names import readable
from bench.storing.records import CLEAN
from bench.suites.problems import first_problem
from bench.suites.values import Eps, Name, Whole

if TYPE_CHECKING:  # as these import torch, what makes them imports them: listing suites is to take no seconds
    from bench.contracts.defense import DefenseSpec
    from bench.contracts.inputs import DataInfo
    from bench.contracts.threat import Lp
    from bench.data.splits import Data
    from bench.storing.checkpoints import TrainingSettings


class _Strict(BaseModel):
    """Unknown fields are refused, so that a typo cannot hide."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ThreatModelConfig(_Strict):
    """What an adversarial input may look like."""

    norm: Norm = Field(description="linf, l2, l1 or l0")
    eps: Eps = Field(description='radius in the units of the data, whose images are in [0, 1]; or "8/255"; l0: pixels')
    radii: list[Eps] = Field(
        default=[],
        description="radii up to eps at which robust accuracy is shown as well, from stored distances; attacks get eps",
    )

    @field_validator("radii")
    @classmethod
    def _check_radii(cls, radii: list[float], info: ValidationInfo) -> list[float]:
        eps = info.data.get("eps", math.inf)
        for radius in radii:
            if radius > eps:
                raise ValueError(f"must be at most eps, {format_eps(eps)}: no attack is given more")
        return sorted(set(radii))


class TrainedFor(_Strict):
    """Which weights of a defense a suite evaluates, if not those trained for its own threat model."""

    norm: Norm = Field(description="of the threat model that they were trained for")
    eps: Eps = Field(description="its radius")
    seed: Whole | None = Field(
        default=None, ge=0, description="of the training; null: the suite's, or the only one that there is"
    )


class Draws(_Strict):
    """How often a randomised defense is asked per input. A deterministic one is asked once."""

    select: Whole = Field(default=20, ge=1, description="draws on which the worst attack of an example is chosen")
    report: Whole = Field(default=100, ge=1, description="fresh draws on which it is then scored")


class AttackEntry(BaseModel):
    """An attack of a suite. Fields other than these are parameters of the attack: its budget."""

    model_config = ConfigDict(extra="allow", frozen=True)

    attack: str | None = Field(
        default=None, description="the attack behind this entry: a registered name; default: the entry's own name"
    )
    eps: Eps | None = Field(
        default=None,
        description="another radius than the threat model's; a larger one makes it a sanity check, shown, not counted",
    )
    knowledge: Knowledge | None = Field(
        default=None, description="less knowledge than the attack may have: the target then refuses the rest"
    )
    examples: Whole | None = Field(
        default=None, ge=1, description="run on the suite's first so many examples, for costly attacks; null: on all"
    )
    tier: Tier = Field(
        default="adaptive",
        description="what it is shown of a detector: adaptive (all), transfer (that of a copy with another seed, on "
        "which its points are made) or oblivious (nothing); the latter two do not apply to a defense without one",
    )

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the attack, as written."""
        return dict(self.model_extra or {})

    def on_at_most(self, examples: int | None) -> AttackEntry:
        """The same entry in a suite of so many examples."""
        fewer = examples is not None and self.examples is not None and self.examples >= examples
        return self.model_copy(update={"examples": None}) if fewer else self


#: The origin of the suites in this package.
SHIPPED = "shipped"


def _empty_if_none(value: object) -> object:
    return {} if value is None else value


Entry = Annotated[AttackEntry, BeforeValidator(_empty_if_none)]


class Variant(_Strict):
    """One setting of a study's defense."""

    label: str = Field(description="how the variant is called in the study's table and plot")
    set: dict[str, Any] = Field(default={}, description="parameters of the defense; the others keep their defaults")
    published: dict[str, float] = Field(
        default={}, description="the paper's numbers in per cent, by attack of this suite; clean: standard accuracy"
    )


class Study(_Strict):
    """Variants of one defense, side by side: `bench train --all` and `bench evaluate --all` take these."""

    defense: str = Field(description="the defense, on whose page the study is shown")
    title: str = Field(description="what is compared")
    axis: str = Field(description="what changes from variant to variant")
    source: str = Field(default="", description="the paper and table whose comparison this repeats")
    variants: list[Variant] = Field(min_length=1, description="in the order in which they are shown")


class Suite(_Strict):
    """A data set, examples of it, a threat model, and attacks with their budgets."""

    description: str = Field(default="", description="one line about what the suite is for")
    data: str = Field(description="the data set: digits, cifar10, folder:PATH, …")
    split: Literal["train", "validation", "test"] = Field(default="test", description="the split that is attacked")
    examples: Whole | None = Field(default=None, ge=1, description="how many of its examples; null for all")
    examples_of: dict[str, Annotated[Whole, Field(ge=1)]] = Field(
        default={},
        description="on how many of the suite's first examples a costly defense, by its registered name, and its "
        "variants are run, the unattacked inputs too; the others: on all",
    )
    threat_model: ThreatModelConfig = Field(description="norm and radius of the ball around each input")
    trained_for: TrainedFor | None = Field(
        default=None, description="weights for another threat model or of a certain seed; null: for the suite's own"
    )
    seed: Whole = Field(default=0, ge=0, description="all randomness of a run is derived from it")
    protocol: Protocol = Field(default=PROTOCOL, description="version of judge and random streams")
    shard_size: Whole = Field(default=100, ge=1, description="examples that are scheduled, stored and resumed together")
    draws: Draws = Field(default=Draws(), description="how often a randomised defense is asked per input")
    false_positive_rate: float = Field(
        default=0.05, gt=0, lt=1, description="share of clean validation data that a detector may reject"
    )
    reference: str = Field(default="none", description="the undefended model that timing is relative to")
    batch_size: Whole = Field(default=512, ge=1, description="rows per pass; halved when memory runs out")
    shard_timeout_s: float | None = Field(default=None, gt=0, description="seconds a shard may take; null: no limit")
    study: Study | None = Field(default=None, description="variants of one defense to compare; null: a leaderboard")
    towards: Towards | None = Field(
        default=None,
        description="the class each example has to reach: least-likely (the defense's smallest clean logit), random "
        "or next (label + 1); null: any but its own",
    )
    attacks: dict[Name, Entry] = Field(min_length=1, description="the attacks, by the name used in results")

    _name: str = PrivateAttr(default="")
    _file: Path | None = PrivateAttr(default=None)  # that --config named
    _origin: str = PrivateAttr(default=SHIPPED)
    _replaces: bool = PrivateAttr(default=False)
    _moved: bool = PrivateAttr(default=False)  # to other data than the file says
    _training_seed: int | None = PrivateAttr(default=None)  # where --seed gave the run another one

    @property
    def name(self) -> str:
        """The name under which the suite stands in the file."""
        return self._name

    @property
    def moved(self) -> bool:
        """Whether it is run on other data than the file says."""
        return self._moved

    @property
    def origin(self) -> str:
        """Where it is from: a file, or ``shipped``."""
        return self._origin

    @property
    def replaces(self) -> bool:
        """Whether it takes the place of the shipped suite of its name."""
        return self._replaces

    def numbers(self) -> dict[str, int]:
        """Where less than all of the suite's examples are asked for, by the path of the field below the suite's."""
        of_attacks = {f"attacks.{name}.examples": entry.examples for name, entry in self.attacks.items()}
        of_defenses = {f"examples_of.{name}": number for name, number in self.examples_of.items()}
        return {field: number for field, number in {**of_attacks, **of_defenses}.items() if number is not None}

    def threat_for(self, info: DataInfo, eps: float | None = None) -> Lp:
        """The threat model on this data, in the box of its values; ``eps``: with another radius."""
        from bench.contracts.threat import Lp

        radius = self.threat_model.eps if eps is None else eps
        return Lp(self.threat_model.norm, radius, info.input.low, info.input.high)

    @property
    def weights(self) -> TrainedFor:
        """What the weights that are evaluated were trained for; without a seed any will do, the suite's first."""
        return self.trained_for or TrainedFor(norm=self.threat_model.norm, eps=self.threat_model.eps)

    def training(self, data: Data) -> TrainingSettings:
        """:attr:`weights` on a data set, by which a checkpoint is found; `bench train` on this suite makes it."""
        from bench.contracts.threat import Lp
        from bench.storing.checkpoints import TrainingSettings

        asked, box = self.weights, data.info.input
        options = ["--suite", self._name.partition("@")[0], *(["--data", self.data] if self._moved else [])]
        options += [] if self._file is None else ["--config", str(self._file)]
        return TrainingSettings(
            data=data.info.name,
            data_version=data.version,
            threat=Lp(asked.norm, asked.eps, box.low, box.high),
            seed=next(seed for seed in (asked.seed, self._training_seed, self.seed) if seed is not None),
            any_seed=asked.seed is None,
            options=shlex.join(options),
        )

    def with_(
        self,
        *,
        data: str | None = None,
        norm: str | None = None,
        eps: float | str | None = None,
        examples: int | None = None,
        seed: int | None = None,
    ) -> Suite:
        """The same suite on other or fewer data, in another ball or with another seed, under a name of its own.

        Itself when nothing differs. In another ball, and with another seed, the evaluated weights stay those of this
        suite. In another norm, entries with an ``eps`` of their own are left out, and so are the ``radii``: these
        numbers mean nothing there.

        Args:
            data: reference of a data set.
            norm: of :data:`bench.contracts.words.NORMS`.
            eps: a number, or a fraction such as ``"8/255"``; needed with another norm.
            examples: how many, from the first on.
            seed: of the run's random numbers.

        Raises:
            InputError: for an unknown norm, or a radius that is missing or none.
        """
        update: dict[str, Any] = {}
        marks = [self._name]
        if data not in (None, self.data):
            update["data"] = data
            marks.append(Path(data.rpartition(":")[2]).name)
        threat = self._other_threat(norm, eps)
        if threat != self.threat_model:
            update |= {"threat_model": threat, "trained_for": self.weights}
            marks.append(readable(f"{threat.norm} {format_eps(threat.eps)}"))
        if threat.norm != self.threat_model.norm:
            update["attacks"] = {name: entry for name, entry in self.attacks.items() if entry.eps is None}
            if not update["attacks"]:
                raise InputError(f"norm {norm}: every attack of suite {self._name} has an eps of another norm")
        if examples not in (None, self.examples):
            update["examples"] = examples
            kept = update.get("attacks", self.attacks)
            update["attacks"] = {name: entry.on_at_most(examples) for name, entry in kept.items()}
            if examples is not None:
                update["examples_of"] = {name: n for name, n in self.examples_of.items() if n < examples}
            marks.append(f"{examples}-examples")
        if seed not in (None, self.seed):
            update["seed"] = seed
            marks.append(f"seed-{seed}")
        if not update:
            return self
        other = self.model_copy(update=update)
        other._name, other._moved, other._training_seed = "@".join(marks), "data" in update, self.seed
        return other

    def _other_threat(self, norm: str | None, eps: float | str | None) -> ThreatModelConfig:
        own = self.threat_model
        if norm not in (None, own.norm) and eps is None:
            raise InputError(f"norm {norm}: needs an eps, as the suite's ({format_eps(own.eps)}) is one of {own.norm}")
        wanted = {"norm": norm or own.norm, "eps": own.eps if eps is None else eps}
        try:
            threat = ThreatModelConfig.model_validate(wanted)
        except ValidationError as error:
            raise InputError(first_problem(error, FIELDS)) from None
        kept = [radius for radius in own.radii if radius <= threat.eps and threat.norm == own.norm]
        return threat.model_copy(update={"radii": kept})


class Config(_Strict):
    """The whole of ``bench.yaml``."""

    suites: dict[Name, Suite] = Field(min_length=1, description="the suites, by name")

    @model_validator(mode="after")
    def _check_names(self) -> Config:
        for name, suite in self.suites.items():
            suite._name = name
            if CLEAN in suite.attacks:
                raise ValueError(f"suites.{name}.attacks: {CLEAN!r} is the name of the unattacked input")
            for field, number in suite.numbers().items():
                if suite.examples is not None and number > suite.examples:
                    rule = f"{number} must be at most the suite's own, {suite.examples}"
                    raise ValueError(f"suites.{name}.{field}: {rule}")
            for variant in suite.study.variants if suite.study else []:
                for attack in variant.published:
                    if attack not in (CLEAN, *suite.attacks):
                        raise ValueError(f"suites.{name}.study: the suite has no attack {attack!r}")
        return self

    def joined(self, other: Config, file: Path, named: bool) -> Config:
        """These suites and those of a file, which win where both have a name.

        Args:
            named: whether ``--config`` names the file: what its suites say to type then names it too.
        """
        for name, suite in other.suites.items():
            suite._file, suite._origin = file if named else None, str(file)
            suite._replaces = name in self.suites and suite.model_dump() != self.suites[name].model_dump()
        return self.model_copy(update={"suites": self.suites | other.suites})

    def suite(self, name: str) -> Suite:
        """The suite of that name. Raises :class:`InputError` with a suggestion when there is none."""
        if name not in self.suites:
            files = list(dict.fromkeys(suite.origin for suite in self.suites.values() if suite.origin != SHIPPED))
            where = f", neither shipped nor in {files[0]}" if files else ""
            raise InputError(f"suite {name!r} does not exist{where}{did_you_mean(name, self.suites)}")
        return self.suites[name]


def variants_of(suite: Suite, checkpoints: Path | None = None) -> list[DefenseSpec]:
    """The defenses that a study compares; none for another suite."""
    if suite.study is None:
        return []
    from bench.contracts.defense import DefenseSpec

    name = suite.study.defense
    written = [{key: str(value) for key, value in variant.set.items()} for variant in suite.study.variants]
    return [DefenseSpec(name, params, checkpoints) for params in written]


#: The fields that a typo may have meant, by the field they stand below (see ``problems.first_problem``).
FIELDS = {
    "": Config.model_fields,
    "*": [*Suite.model_fields, "extends", "without"],
    "threat_model": ThreatModelConfig.model_fields,
    "trained_for": TrainedFor.model_fields,
    "draws": Draws.model_fields,
}
