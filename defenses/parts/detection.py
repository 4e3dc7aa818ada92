"""What recipes of detectors share: examples to learn from, made of the classifier, and the score that is learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.toolkit.losses import Goal, get_loss
from attacks.toolkit.paths import straight_through
from attacks.toolkit.projections import steepest
from bench.contracts.defense import Defense
from bench.contracts.errors import InputError, did_you_mean
from bench.contracts.inputs import DataInfo
from bench.contracts.threat import Lp
from defenses.parts.nets import classifier_for
from defenses.parts.recipes import augmentation_for, schedule_for

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

Source = Literal["ce", "ce_sign", "logit", "m_logit"]
#: The sources of perturbation of Ozbulak et al. 2020 (equations 12 to 15).
SOURCES: tuple[Source, ...] = get_args(Source)
#: κ of the source ``m_logit``, in logits.
KAPPA = 20.0
#: Steps of the attack that a detector learns from.
STEPS = 10
#: Training images of which a logistic regression sees examples.
MOST_EXAMPLES = 2000


def check_source(source: str, others: tuple[str, ...], who: str) -> None:
    """Raise :class:`InputError` unless ``source`` is one of :data:`SOURCES` or of ``others``."""
    if source not in (*SOURCES, *others):
        hint = did_you_mean(source, [*SOURCES, *others])
        raise InputError(f"{who}: loss {source!r} is not one of {', '.join((*SOURCES, *others))}{hint}")


def logits_with_gradient(defense: Defense, x: Tensor) -> Tensor:
    """Logits of f(g(x)) that can be differentiated in x: a transform counts as the identity in the backward pass
    (BPDA-I, Athalye et al. 2018), so that examples can be made of a classifier that hides its gradient."""
    with torch.no_grad():
        value = defense.transform(x)
    logits: Tensor = defense(x) if value is x else defense.classifier(straight_through(value, x))
    return logits


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradient of the sum of ``loss(x) (N,)``."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    return grad


def targeted_examples(defense: Defense, x: Tensor, y: Tensor, threat: Lp, source: str, steps: int = STEPS) -> Tensor:
    """Targeted adversarial examples in the manner of Ozbulak et al. 2020, inside a ball.

    x ← Π(x - α P) with P = ∇ce, sign ∇ce, -∇logit or -∇m_logit of a random class to reach, in their setting of *equal
    perturbation*: α = c/‖P‖, so that a step is as long whatever the source. Here c is the length of a step of
    2.5·eps/steps along the steepest direction of the ball, so that its border can be reached; theirs is unbounded.

    Args:
        defense: of which the examples are, in evaluation mode.
        x: ``(N, …)``; y: int64 ``(N,)``, the classes not to reach.
        threat: an Lp ball, linf or l2.
        source: one of :data:`SOURCES`.
        steps: of the descent.

    Returns:
        x_adv, shaped like x.
    """
    check_ball(threat, "adversarial examples")
    towards = (y + torch.randint_like(y, 1, defense.data.num_classes)) % defense.data.num_classes
    name = "ce" if source == "ce_sign" else source
    goal = Goal(get_loss({"m_logit": {"kappa": KAPPA}} if name == "m_logit" else name), towards, reach=True)
    values = x[0].numel()
    length = 2.5 * threat.eps / steps * (math.sqrt(values) if threat.norm == "linf" else 1.0)
    x_adv = x.clone()
    for _ in range(steps):
        grad = gradient(lambda z: goal(logits_with_gradient(defense, z)), x_adv)
        grad = grad.sign() if source == "ce_sign" else grad
        x_adv = threat.project_(x_adv + length * steepest(grad, "l2"), x)
    return x_adv


def check_ball(threat: Lp, who: str) -> None:
    """Raise :class:`InputError` unless the ball is one of linf or l2."""
    if threat.norm not in ("linf", "l2"):
        raise InputError(f"{who}: norm {threat.norm} is not available (linf, l2)")


def examples_of_pgd(defense: Defense, x: Tensor, y: Tensor, threat: Lp, steps: int = 2 * STEPS) -> Tensor:
    """Untargeted adversarial examples: PGD on cross-entropy from a random point of the ball (Madry et al. 2018)."""
    check_ball(threat, "adversarial examples")
    x_adv = threat.project_(x + threat.eps * (2 * torch.rand_like(x) - 1), x)
    for _ in range(steps):
        grad = gradient(lambda z: F.cross_entropy(logits_with_gradient(defense, z), y, reduction="none"), x_adv)
        x_adv = threat.project_(x_adv + 2.5 * threat.eps / steps * steepest(grad, threat.norm), x)
    return x_adv


@dataclass(frozen=True)
class Examples:
    """Three versions of each of some images: clean, with noise as large as the perturbation, adversarial."""

    clean: Tensor
    noisy: Tensor
    adversarial: Tensor

    @property
    def x(self) -> Tensor:
        """All of them, ``(3N, …)``."""
        return torch.cat([self.clean, self.noisy, self.adversarial])

    @property
    def labels(self) -> Tensor:
        """Int64 ``(3N,)``: 1 for what is adversarial. Noise is not: a detector shall not take it for an attack."""
        return torch.arange(3).repeat_interleave(len(self.clean)).eq(2).long()


def examples_for(run: TrainingRun, defense: Defense, rows: Tensor) -> Examples:
    """Examples of those training images that are classified rightly, and of which PGD finds an adversarial one.

    The noise is each image's own perturbation with its values in another order: equal in every norm, up to the box.
    Where PGD finds nothing at all, all images count.

    Args:
        run: its threat model is the ball; at most :data:`MOST_EXAMPLES` of ``rows`` are taken.
        defense: of which they are.
        rows: of ``run.train``.
    """
    parts = []
    for some in rows[:MOST_EXAMPLES].split(256):
        x, y = run.train.at(some).to(run.device), run.train.y[some].to(run.device)
        x_adv = examples_of_pgd(defense, x, y, run.threat)
        with torch.no_grad():
            fooled = (defense(x).argmax(1) == y) & (defense(x_adv).argmax(1) != y)
        order = torch.rand_like(x).flatten(1).argsort(1)
        noise = (x_adv - x).flatten(1).gather(1, order).view_as(x)
        parts.append((x, run.threat.project_(x + noise, x), x_adv, fooled))
    clean, noisy, adversarial, fooled = (torch.cat(part) for part in zip(*parts, strict=True))
    keep = fooled if fooled.any() else torch.ones_like(fooled)
    return Examples(clean[keep], noisy[keep], adversarial[keep])


def halves(run: TrainingRun) -> tuple[Tensor, Tensor]:
    """Rows of two halves of the training images: what is stored as known, and what a regression learns from.

    Scored on the images it keeps, a density or a distance would say of all of them how close they are to themselves.
    """
    rows = torch.arange(len(run.train))
    return rows[: (len(rows) + 1) // 2], rows[len(rows) // 2 :]


class LogisticScore(nn.Module):
    """Logistic regression on measurements: the log odds that an input is adversarial.

    The log odds, unlike the probability, do not saturate; their order is the same. Fitted by scikit-learn on
    standardised measurements; weights and bias are kept as buffers, for the measurements as they are.

    Args:
        inputs: number of measurements.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(inputs))
        self.register_buffer("bias", torch.zeros(()))

    def forward(self, measured: Tensor) -> Tensor:
        """Log odds ``(N,)`` of measurements ``(N, inputs)``."""
        return measured @ self.weight + self.bias

    def fit_(self, measured: Tensor, labels: Tensor) -> None:
        """Fit to ``measured (M, inputs)`` with ``labels (M,)``, 1 for adversarial; both classes weigh the same."""
        from sklearn.linear_model import LogisticRegression  # half a second, for who trains alone

        values = measured.detach().double().cpu()
        mean, std = values.mean(0), values.std(0, correction=0).clamp_min(1e-12)
        model = LogisticRegression(class_weight="balanced", max_iter=2000)
        model.fit(((values - mean) / std).numpy(), labels.cpu().numpy())
        weight = torch.from_numpy(model.coef_[0]) / std
        self.weight.copy_(weight)
        self.bias.copy_(float(model.intercept_[0]) - weight @ mean)


class Standardised(nn.Module):
    """Scores in units of their spread on clean images: ``(score - mean) / std``, both kept as buffers."""

    mean: Tensor
    std: Tensor

    def __init__(self, scores: int = 1) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(scores))
        self.register_buffer("std", torch.ones(scores))

    def forward(self, scores: Tensor) -> Tensor:
        """``scores (N, k)``, standardised."""
        return (scores - self.mean) / self.std

    def fit_(self, scores: Tensor) -> None:
        """Take mean and spread of clean ``scores (M, k)``."""
        self.mean.copy_(scores.mean(0))
        self.std.copy_(scores.std(0, correction=0).clamp_min(1e-6))


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], x: Tensor, size: int = 256) -> Tensor:
    """``function`` of the rows of x, without gradients."""
    return torch.cat([function(part) for part in x.split(size)])


def two_way(data: DataInfo, network: str) -> nn.Module:
    """A network of the same architectures as classifiers, with two logits: genuine and adversarial."""
    return classifier_for(replace(data, num_classes=2), network)


def log_odds(logits: Tensor) -> Tensor:
    """``z_1 - z_0 (N,)`` of two logits, the log odds of the second."""
    return logits[:, 1] - logits[:, 0]


def minimise_detector(
    run: TrainingRun, stage: str, module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], network: str = "auto"
) -> None:
    """Train a detector's network by the schedule that a classifier of that architecture has."""
    settings = schedule_for(run.info, network).settings()
    run.minimise(stage, module, loss, augment=augmentation_for(run.info), **settings)


def binary_loss(logits: Tensor) -> Tensor:
    """Cross-entropy of two logits of as many genuine images as adversarial ones, stacked in this order.

    They are to come from one batch: batch statistics of each half would tell the halves apart in training alone.
    """
    labels = torch.arange(2, device=logits.device).repeat_interleave(len(logits) // 2)
    return F.cross_entropy(logits, labels)


def joint_examples(defense: Defense, x: Tensor, y: Tensor, threat: Lp, source: str) -> Tensor:
    """:func:`targeted_examples` of one source; with ``joint`` every image gets one of the four in turn."""
    if source != "joint":
        return targeted_examples(defense, x, y, threat, source)
    x_adv = x.clone()
    for number, each in enumerate(SOURCES):
        rows = torch.arange(number, len(x), len(SOURCES), device=x.device)
        if len(rows):
            x_adv[rows] = targeted_examples(defense, x[rows], y[rows], threat, each)
    return x_adv
