"""Mahalanobis distances to the nearest class in every layer (Lee et al. 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.contracts.defense import Card, Defense
from bench.contracts.detector import Detector
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.detection import Examples, LogisticScore, examples_for, halves, in_batches
from defenses.parts.features import Features, Layer

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

#: Magnitudes of the input's pre-processing that the paper chooses from.
MAGNITUDES = (0.0, 0.0005, 0.001, 0.0014, 0.002, 0.005, 0.01)
#: What is added to the diagonal of a covariance, as a share of its mean: channels that never fire have no variance.
RIDGE = 1e-3


class Mahalanobis(Detector):
    """The Mahalanobis distance to the nearest class mean in every stage of the network, weighed by logistic regression.

    A stage is the mean of its channels over places; a class is a Gaussian in it, with one covariance for all classes.
    x first takes a step of ``magnitude`` along the sign of the gradient that brings it nearer to the nearest class in
    the stage, which leaves adversarial images further away than clean ones. The regression is fitted on adversarial
    images that PGD finds for the classifier, with clean and noisy ones on the other side, from training images that the
    means do not know.

    Args:
        data: of the images.
        magnitude: of the step, on the scale of the box; -1: the one of the paper's seven that tells the regression's
            examples apart best.
    """

    version = 1
    kinds = ("image",)
    magnitude: Tensor
    card = Card(
        title="Mahalanobis distance",
        summary=(
            "In every layer the features of x are compared with a Gaussian per class of clean images. "
            "A logistic regression on the distances to the nearest class rejects what is far from all. "
            "Adversarial images were thought to be out of the distribution of the features of every class. "
            "The distances are differentiable, so an attack can keep them small while it changes the class. "
            "Nothing but their place in the score stops it."
        ),
        paper="Lee, Lee, Lee, Shin 2018, "
        "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
        url="https://arxiv.org/abs/1807.03888",
        family="detector",
        tags=("deterministic", "differentiable", "rejects inputs"),
    )

    def __init__(self, data: DataInfo, magnitude: float = -1.0) -> None:
        super().__init__(data)
        if not (magnitude == -1 or 0 <= magnitude <= 1):
            raise InputError(f"mahalanobis: magnitude {magnitude} is outside 0..1, and not -1")
        self.wanted = magnitude
        self.register_buffer("magnitude", torch.tensor(max(0.0, magnitude)))

    def guard(self, defense: Defense) -> None:
        """Find the stages and make room for the Gaussians."""
        super().guard(defense)
        self.features = Features(defense)
        for number, stage in enumerate(self.features.stages):
            channels = stage.shape[0]
            self.register_buffer(f"means_{number}", torch.zeros(self.data.num_classes, channels))
            self.register_buffer(f"precision_{number}", torch.eye(channels))
        self.regression = LogisticScore(len(self.features.stages))

    def distances(self, x: Tensor) -> Tensor:
        """Squared distance to the nearest class mean in each stage, ``(N, stages)``; x is not pre-processed."""
        _, each = self.features.read(self.guarded, x, self.features.stages)
        return torch.stack([self._nearest(number, features) for number, features in enumerate(each)], 1)

    def _nearest(self, number: int, features: Tensor) -> Tensor:
        means, precision = self.get_buffer(f"means_{number}"), self.get_buffer(f"precision_{number}")
        return squared_distances(pooled(features), means, precision).amin(1)

    def measured(self, x: Tensor) -> Tensor:
        """Squared distances in each stage after the step of that stage, ``(N, stages)``."""
        if not self.magnitude.item():
            return self.distances(x)
        columns = []
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            of_leaf = self.distances(leaf).sum(0).unbind()
        for number in range(len(self.features.stages)):
            z = x
            if of_leaf[number].requires_grad:  # not where a transform cuts the graph
                # The derivative of a sign is zero wherever it has one, so the step is a constant to an attack as well.
                (grad,) = torch.autograd.grad(of_leaf[number], leaf, retain_graph=True)
                z = x - self.magnitude * grad.sign()
            columns.append(self.distances(z)[:, number])
        return torch.stack(columns, 1)

    def detect(self, x: Tensor) -> Tensor:
        """Log odds of being adversarial; ``(N,)``."""
        odds: Tensor = self.regression(self.measured(x))
        return odds

    def fit(self, run: TrainingRun, classifier: Defense) -> None:
        """Gaussians of one half of the training images; the regression is fitted to PGD's examples of the other."""
        known, rest = halves(run)
        x = run.train.at(known).to(run.device)
        y = run.train.y[known].to(run.device)
        for number, stage in enumerate(self.features.stages):

            def channels(part: Tensor, stage: Layer = stage) -> Tensor:
                return pooled(self.features.read(classifier, part, (stage,))[1][0])

            features = in_batches(channels, x)
            means, precision = gaussians(features, y, self.data.num_classes)
            self.get_buffer(f"means_{number}").copy_(means)
            self.get_buffer(f"precision_{number}").copy_(precision)
        examples = examples_for(run, classifier, rest)
        best = -1.0
        for magnitude in MAGNITUDES if self.wanted < 0 else (self.wanted,):
            best = max(best, self._fit_at(magnitude, examples, best))

    def _fit_at(self, magnitude: float, examples: Examples, best: float) -> float:
        """Fit the regression at a magnitude to half of the examples; kept where it tells the other half apart best."""
        from sklearn.metrics import roc_auc_score  # half a second, for who trains alone

        kept = self.magnitude.clone(), self.regression.weight.clone(), self.regression.bias.clone()
        self.magnitude.fill_(magnitude)
        measured, labels = in_batches(self.measured, examples.x), examples.labels
        number = torch.arange(len(labels)) % len(examples.clean)
        first = number < (len(examples.clean) + 1) // 2
        second = ~first if len(examples.clean) > 1 else first
        self.regression.fit_(measured[first], labels[first])
        score = float(roc_auc_score(labels[second].numpy(), self.regression(measured[second]).cpu().numpy()))
        if score > best:
            self.regression.fit_(measured, labels)
            return score
        self.magnitude.copy_(kept[0])
        self.regression.weight.copy_(kept[1])
        self.regression.bias.copy_(kept[2])
        return score


def pooled(features: Tensor) -> Tensor:
    """The mean over places of ``(N, C, …)``: ``(N, C)``; a vector stays what it is."""
    return features.flatten(2).mean(2) if features.ndim > 2 else features


def squared_distances(x: Tensor, means: Tensor, precision: Tensor) -> Tensor:
    """Squared Mahalanobis distances ``(N, K)`` of ``x (N, d)`` to ``means (K, d)`` under one precision ``(d, d)``."""
    away = x[:, None] - means
    return (away @ precision * away).sum(2)


def gaussians(features: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Class means ``(K, d)`` of ``features (N, d)``, and the inverse of the covariance around them ``(d, d)``.

    A class without examples has the mean of all.
    """
    values = features.double()
    means = torch.stack([values[y == k].mean(0) if (y == k).any() else values.mean(0) for k in range(classes)])
    away = values - means[y]
    covariance = away.T @ away / len(values)
    ridge = RIDGE * covariance.diagonal().mean().clamp_min(1e-6)
    covariance = covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return means.to(features), torch.linalg.inv(covariance).to(features)
