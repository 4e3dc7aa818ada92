"""Detectors trained on each source of perturbation and on all jointly, against each source: blind and adaptive.

The detector is the built-in ``adversarial-retraining`` by its name. Unlike its own recipe, and like Ozbulak et al.
2020, the study trains it on one fixed set of unbounded adversarial images of a classifier, which are made once.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts.defense import Defense, DefenseSpec, freeze
from bench.contracts.detection import Detection
from bench.contracts.detector import Detector, WithDetector
from bench.contracts.errors import InputError
from bench.contracts.reporting import listening, report
from bench.contracts.seeding import generator, seeded
from bench.data.splits import Split
from bench.judging.probe import detector_threshold
from bench.plugins.resolve import build_defense
from bench.studies.losses.descent import SOURCES, Reached, Step, descend, other_classes, perturbation
from bench.studies.losses.record import DetectorCell, DetectorRow
from bench.training.recipe import TrainingRun

#: The detector, and what it can be trained on: each source, and all of them.
DETECTOR, JOINT = "adversarial-retraining", "joint"
#: Five depths of network, shallowest first, in place of AlexNet, VGG-16, ResNet-18, ResNet-34 and ResNet-152.
NETWORKS = ("cnn-a", "resnet8", "resnet14", "resnet20", "resnet32")
_BATCH = 256
#: Share of the study that the descents before the detectors take, for its progress.
DESCENTS = 0.1


@dataclass(frozen=True)
class Bench:
    """What all detectors of a study share.

    Attributes:
        classifier: what they stand in front of, in evaluation mode.
        train, validation, test: images that the classifier gets right.
        step: of all descents, adaptive ones too.
        iterations: at most, until the class is reached.
        adaptive_iterations: at most, of an attack on both.
        adaptive_examples: of the test images.
        epochs: of each training.
        rate: of false positives on the validation images, for the threshold.
        seed: decides every draw.
    """

    classifier: Defense
    train: Split
    validation: Split
    test: Split
    step: Step
    iterations: int
    adaptive_iterations: int
    adaptive_examples: int
    epochs: int
    rate: float
    seed: int

    def device(self) -> torch.device:
        return next((p.device for p in self.classifier.parameters()), torch.device("cpu"))

    def towards(self, split: Split, name: str) -> Tensor:
        """The class that each image of a split is to reach, the same for all sources."""
        return other_classes(split.y, self.classifier.data.num_classes, generator(self.seed, "losses", name))


def measure_detectors(bench: Bench, networks: tuple[str, ...] = NETWORKS) -> list[DetectorRow]:
    """Train every network on every source and on all jointly, and attack each with every source."""
    made = {source: _examples(bench, bench.train, "train", source) for source in SOURCES}
    tests = {source: _examples(bench, bench.test, "test", source) for source in SOURCES}
    rows: list[DetectorRow] = []
    kinds = (*SOURCES, JOINT)
    for network in networks:
        for trained_on in kinds:
            done = len(rows) / (len(networks) * len(kinds))
            report(DESCENTS + (1 - DESCENTS) * done, f"detector {network} on {trained_on}")
            learned = _learn(bench, network, trained_on, _mixed(bench, made, trained_on))
            rows.append(_row(bench, learned, tests))
    return rows


def _examples(bench: Bench, split: Split, name: str, source: str) -> Reached:
    device = bench.device()
    return descend(
        bench.classifier,
        split.x.to(device),
        bench.towards(split, name).to(device),
        source,
        bench.step,
        bench.iterations,
    )


def _mixed(bench: Bench, made: dict[str, Reached], trained_on: str) -> Split:
    """Pairs of a genuine image and its adversarial one, ``(N, 2, …)``, of those whose descent reached its class.

    Jointly every image serves one of the sources in turn.

    Raises:
        InputError: where none did.
    """
    x = bench.train.x
    keep, x_adv = torch.zeros(len(x), dtype=torch.bool), x.clone()
    for number, source in enumerate(SOURCES):
        mine = torch.arange(len(x)) % len(SOURCES) == number if trained_on == JOINT else source == trained_on
        rows = made[source].reached.cpu() & torch.as_tensor(mine)
        keep |= rows
        x_adv[rows] = made[source].x_adv.cpu()[rows]
    if not keep.any():
        raise InputError(f"study of losses: no descent along {trained_on} reached its class")
    pairs = torch.stack([x[keep], x_adv[keep]], dim=1)
    return Split(pairs, bench.train.y[keep], [id_ for id_, kept in zip(bench.train.ids, keep, strict=True) if kept])


def _loss(detector: Detector, pairs: Tensor) -> Tensor:
    """Cross-entropy on pairs ``(N, 2, …)``.

    Both images of a pair are in one batch: their difference, all that there is to learn, is a hundredth of what images
    differ by. On CIFAR-10 a detector of shuffled single images learns nothing in fifteen epochs of 2,400.
    """
    scores = detector.detect(torch.cat(pairs.unbind(1)))
    return F.binary_cross_entropy_with_logits(scores, (torch.arange(len(scores)) >= len(pairs)).to(scores))


@dataclass(frozen=True)
class _Learned:
    network: str
    trained_on: str
    guarded: WithDetector
    seconds: float


def _learn(bench: Bench, network: str, trained_on: str, examples: Split) -> _Learned:
    """A detector of an architecture, trained on examples; Adam, whose rate rises and falls once."""
    info, device = bench.classifier.data, bench.device()
    params = {"loss": trained_on, "network": network}
    with seeded(bench.seed, "losses", network, trained_on):
        built = build_defense(DefenseSpec(DETECTOR, params), info)
    assert isinstance(built, WithDetector)
    detector = built.detector.to(device)
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(examples, bench.validation, info, None, bench.seed, device, Path(folder))
        start = time.process_time()
        with listening(lambda _: None):  # the study says itself how far it is
            run.minimise(
                f"{network} on {trained_on}", detector,
                lambda pairs, _: _loss(detector, pairs),
                epochs=bench.epochs, batch_size=64, lr=3e-3, optimizer="adam", policy="one-cycle",
            )  # fmt: skip
    guarded = WithDetector(detector, bench.classifier)
    freeze(guarded)
    return _Learned(network, trained_on, guarded, time.process_time() - start)


def depth_of(module: nn.Module) -> int:
    """Layers with weights on the longest path: convolutions and linear layers, those on shortcuts apart."""
    return sum(
        isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear)) and "shortcut" not in name
        for name, layer in module.named_modules()
    )


def _row(bench: Bench, learned: _Learned, tests: dict[str, Reached]) -> DetectorRow:
    guarded, device = learned.guarded, bench.device()
    threshold = detector_threshold(guarded, bench.validation, bench.rate, device, _BATCH)
    genuine = _scores(guarded, bench.test.x.to(device))
    return DetectorRow(
        network=learned.network,
        depth=depth_of(guarded.detector),
        trained_on=learned.trained_on,
        threshold=float(f"{threshold:.4g}"),
        genuine=_share(genuine <= 0),
        false_positives=_share(genuine > threshold),
        seconds=float(f"{learned.seconds:.3g}"),
        cells=[_cell(bench, guarded, threshold, source, tests[source]) for source in SOURCES],
    )


def _cell(bench: Bench, guarded: WithDetector, threshold: float, source: str, made: Reached) -> DetectorCell:
    scores = _scores(guarded, made.x_adv[made.reached])
    some = bench.test.take(bench.adaptive_examples)
    x, t = some.x.to(bench.device()), bench.towards(bench.test, "test")[: len(some)].to(bench.device())
    x_adv = adaptive(guarded, threshold, x, t, source, bench.step, bench.adaptive_iterations)
    with torch.no_grad():
        fooled, seen = guarded(x_adv).argmax(1) == t, guarded.detect(x_adv)
    evades = fooled & ~(seen > threshold)
    lengths = (x_adv - x).flatten(1).norm(dim=1)[evades]
    return DetectorCell(
        attacked_with=source,
        accuracy=_share(scores > 0),
        caught=_share(scores > threshold),
        n=len(scores),
        evaded=_share(evades),
        adaptive_caught=_share((seen > threshold)[fooled]) if fooled.any() else None,
        adaptive_l2=float(f"{float(lengths.median()):.4g}") if len(lengths) else None,
        n_adaptive=len(x),
    )


def adaptive(
    guarded: WithDetector, threshold: float, x: Tensor, t: Tensor, source: str, step: Step, iterations: int
) -> Tensor:
    """Descend towards t along a source and below the detector's threshold at once, until both are reached.

    The steps are those of every attack that is shown a detector (``bench.contracts.detection``), with the source's P
    for the classifier's half. Arguments as those of ``descent.trace``.
    """
    low, high = guarded.data.input.low, guarded.data.input.high
    x_adv, detection = x.clone(), Detection(threshold, torch.full((len(x),), 0.5))
    rows = torch.arange(len(x), device=x.device)
    for k in range(iterations + 1):
        p, logits = perturbation(guarded, x_adv[rows], t[rows], source)
        score, of_score = _score_gradient(guarded, x_adv[rows])
        reach = t[rows]
        margins = logits.gather(1, reach[:, None]).squeeze(1) - logits.scatter(1, reach[:, None], -torch.inf).amax(1)
        done = (margins > 0) & detection.accepts(score)
        if k == iterations or done.all():
            break
        share = detection.carried(rows.cpu(), detection.share(margins, score))
        uphill = detection.blended(-p, detection.remembered(rows, -of_score), share)
        rows, uphill = rows[~done], uphill[~done]
        x_adv[rows] = (x_adv[rows] + step.along(uphill)).clamp(low, high)
    return x_adv


def _score_gradient(guarded: WithDetector, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        score = guarded.detect(leaf)
        (grad,) = torch.autograd.grad(score.sum(), leaf)
    return score.detach(), grad


@torch.no_grad()
def _scores(guarded: WithDetector, x: Tensor) -> Tensor:
    return torch.cat([guarded.detect(part) for part in x.split(_BATCH)]) if len(x) else x.new_zeros(0)


def _share(flags: Tensor) -> float:
    return round(float(flags.float().mean()), 4) if len(flags) else 0.0
