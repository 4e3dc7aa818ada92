"""Copies of a defense for attacks of the tier ``transfer``: its own recipe, trained with another seed.

Whoever knows recipe and data, but not the weights, can do no better than to train such a copy and to attack that
(Carlini & Wagner 2017, section 2.2, limited knowledge). One copy serves all attacks of the tier.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bench.contracts.defense import Defense, DefenseSpec, ready
from bench.contracts.detector import WithDetector
from bench.contracts.errors import NotApplicable
from bench.contracts.inputs import DataInfo
from bench.contracts.reporting import report
from bench.contracts.seeding import seeded
from bench.data.splits import Data
from bench.isolation.opening import NONE, Isolation, build_apart
from bench.judging.probe import detector_threshold
from bench.plugins.resolve import behind_detector, has_own_weights, load_defense, trained_as
from bench.storing.store import pack_tensors
from bench.suites.config import Suite
from bench.training.recipe import Progress, train_defense

_WEIGHTS, _THRESHOLD = "weights.", "threshold"


def train_copy(suite: Suite, spec: DefenseSpec, data: Data, device: torch.device, folder: Path) -> dict[str, Tensor]:
    """Train a copy; returns its weights and its own threshold, at the suite's false-positive rate.

    The seed is the one after that of the weights that are evaluated.

    Args:
        folder: where the unfinished training is kept, to be continued after an interruption.

    Raises:
        NotApplicable: for a defense without a recipe, of which no copy can be made.
    """
    settings = suite.training(data)
    evaluated = load_defense(spec, data.info, device, settings)
    if not evaluated.defense.has_recipe:
        raise NotApplicable(f"{spec.name} has no training recipe, so that no copy of it can be made")
    other = replace(settings, seed=evaluated.training["seed"] + 1, any_seed=False)
    parts = [spec]
    if isinstance(evaluated.defense, WithDetector) and evaluated.defense.borrows:
        _, classifier = trained_as(evaluated.defense.defense, behind_detector(spec))
        parts = [classifier, *([spec] if has_own_weights(evaluated.defense) else [])]
    for part in parts:
        train_defense(part, data, other, device=device, folder=folder, progress=_told())
    copy = load_defense(replace(spec, checkpoints=folder), data.info, device, other).defense
    ready(copy)
    with seeded(suite.seed, "threshold of a copy"):
        threshold = detector_threshold(copy, data.validation, suite.false_positive_rate, device, suite.batch_size)
    shutil.rmtree(folder)
    found = {f"{_WEIGHTS}{name}": value for name, value in copy.state_dict().items()}
    return found | {_THRESHOLD: torch.tensor(threshold, dtype=torch.float64)}


def load_copy(
    spec: DefenseSpec, info: DataInfo, tensors: dict[str, Tensor], device: torch.device, isolation: Isolation = NONE
) -> tuple[Defense, float]:
    """The copy that :func:`train_copy` returned the tensors of, and its threshold."""
    weights = {name.removeprefix(_WEIGHTS): value for name, value in tensors.items() if name.startswith(_WEIGHTS)}
    with seeded("copy"):  # weights are drawn here, and replaced at once
        copy = build_apart(spec, info, device, weights, isolation)
    return copy, float(tensors[_THRESHOLD])


def _told() -> Callable[[Progress], None]:
    """What tells the display how far the training is: the share of the present stage."""

    def tell(epoch: Progress) -> None:
        report(epoch.epoch / epoch.epochs, f"copy, {epoch.stage}, epoch {epoch.epoch}/{epoch.epochs}")

    return tell


def prepare_copy(suite: Suite, spec: DefenseSpec, data: Data, device: torch.device, folder: Path | None) -> bytes:
    """Train a copy, and return what is to be stored of it.

    Args:
        folder: see :func:`train_copy`; None where nothing outlasts the process, as in a sandbox.
    """
    folder = folder or Path(tempfile.mkdtemp())
    start = time.perf_counter()
    tensors, refusal = dict[str, Tensor](), ""
    try:
        tensors = train_copy(suite, spec, data, device, folder)
    except NotApplicable as reason:  # every shard will say so
        refusal = str(reason)
    seconds = time.perf_counter() - start
    return pack_tensors(tensors, {"seconds": f"{seconds:.3f}", "refusal": refusal})
