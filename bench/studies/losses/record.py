"""The record of the study of losses: ``<suite>/<defense>/losses.json`` below a results folder.

Rows and curves, not conclusions: those are drawn from it by ``bench.studies.losses.claims``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bench.storing.keys import DefenseKey
from bench.storing.reading import read_record
from bench.storing.records import SCHEMA_VERSION, Provenance, Record
from bench.storing.store import Store, to_json, write_atomically

FILE = "losses.json"

#: Confidence above which a point counts as classified for sure.
SURE = 0.9
#: Keys of ``Descent.lasting``.
BLURRED, TRANSFERRED = "blurred", "transferred"

Setting = Literal["equal multiplier", "equal perturbation"]
SETTINGS: tuple[Setting, ...] = ("equal multiplier", "equal perturbation")


class Descent(Record):
    """One source of perturbation in one setting: all examples, all iterations."""

    source: str = Field(description="ce, ce_sign, logit or m_logit")
    setting: Setting
    iterations: list[int | None] = Field(description="of each example until the class is reached; null: not reached")
    l2: list[float | None] = Field(description="of each example, where its class is reached for the first time")
    linf: list[float | None]
    seconds: float = Field(description="of all iterations of all examples: CPU time, on a GPU wall time")
    steps: list[int] = Field(description="the iterations at which the curves below are given")
    softmax_initial: list[float] = Field(description="mean over the examples, of the class to leave")
    softmax_target: list[float] = Field(description="of the class to reach")
    logit_initial: list[float]
    logit_target: list[float]
    gradient: list[float] = Field(description="mean l2 length of the perturbation P before it is multiplied")
    vanished: list[float] = Field(description="share of the examples whose P is exactly zero, in float32")
    lasting: dict[str, list[int | None]] = Field(
        default_factory=dict,
        description="of each example, where the descent ends with its class reached: 1 where that is also what is seen "
        "of the blurred image (BLURRED), and by the classifier beside (TRANSFERRED), else 0; null: not reached",
    )


class DetectorCell(Record):
    """A detector's answers to one source of perturbation."""

    attacked_with: str
    accuracy: float = Field(description="share of the adversarial test images that it calls adversarial (log odds > 0)")
    caught: float = Field(description="share above the threshold")
    n: int
    evaded: float = Field(description="share of the adaptive attacks that reach the class and are accepted")
    adaptive_caught: float | None = Field(
        description="share above the threshold of the points that an adaptive attack ends at with the class reached"
    )
    adaptive_l2: float | None = Field(description="median length of those that evade")
    n_adaptive: int


class DetectorRow(Record):
    """A detector, trained on one source of perturbation or on all four jointly."""

    network: str
    depth: int = Field(description="layers with weights, shortcuts apart")
    trained_on: str
    threshold: float = Field(description="at the suite's false-positive rate on clean validation images")
    genuine: float = Field(description="share of the clean test images that it calls genuine (log odds <= 0)")
    false_positives: float = Field(description="share of the clean test images above the threshold")
    seconds: float = Field(description="of its training")
    cells: list[DetectorCell]


class Region(Record):
    """One of the three regions of confidence of Definition IV.1."""

    name: str
    points: int
    ce: float = Field(description="mean l2 length of the gradient")
    logit: float
    m_logit: float


class Underflow(Record):
    """Of the points that are classified as the inner class for sure, where cross-entropy's gradient is exactly zero."""

    scale: float = Field(description="what the logits are multiplied by: the points and their classes stay the same")
    float32: float = Field(description="share of the points")
    float64: float


class Circles(Record):
    """The plane of the two circles: square maps, rows from the lowest second coordinate, columns likewise."""

    low: float
    high: float
    accuracy: float
    hidden: int
    target: list[list[float]] = Field(description="confidence in the inner class, which is the one to reach")
    ce: list[list[float]] = Field(description="length of the gradient of cross-entropy, float32")
    ce_sign: list[list[float]]
    logit: list[list[float]]
    zero_scale: float = Field(description="what the logits are multiplied by in the map that follows")
    zero: list[list[int]] = Field(description="1 where cross-entropy's gradient is exactly zero in float32, else 0")
    underflow: list[Underflow]
    regions: list[Region]


class Losses(Record):
    """What the losses behind gradient attacks do (see ``bench.studies.losses.measure``)."""

    schema_version: int = SCHEMA_VERSION
    defense: DefenseKey | None = Field(default=None, description="what was measured")
    beside: str | None = Field(default=None, description="the classifier that images are transferred to")
    n: int = Field(description="examples of the descents")
    seed: int
    multiplier: float = Field(description="α of equal multiplier")
    step: float = Field(description="c of equal perturbation: the l2 length of every step")
    kappa: float = Field(description="κ of m_logit, in logits")
    false_positive_rate: float = Field(description="asked for, on the validation images")
    epochs: int = Field(description="of the training of a detector")
    adaptive_iterations: int
    train_examples: int = Field(description="genuine images that the detectors learn from")
    descents: list[Descent]
    detectors: list[DetectorRow]
    circles: Circles
    provenance: Provenance | None = None

    def descent(self, source: str, setting: Setting) -> Descent:
        """The descent of one source in one setting."""
        return next(each for each in self.descents if (each.source, each.setting) == (source, setting))


def read(store: Store, defense: str) -> Losses | None:
    """What was measured on a defense; None when nothing was.

    Raises:
        InputError: when the file cannot be read.
    """
    path = store.defense_folder(defense) / FILE
    return read_record(path, Losses) if path.exists() else None


def write(store: Store, defense: str, record: Losses) -> None:
    """Store it beside the defense's results."""
    write_atomically(store.defense_folder(defense) / FILE, to_json(record).encode())
