"""Defensive distillation (Papernot et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts.defense import Card, Claim, Defense, freeze
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.nets import classifier_for
from defenses.parts.recipes import augmentation_for, schedule_for

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

_BREAK = "Carlini & Wagner 2017, abstract"


class Distillation(Defense):
    """A student trained on a teacher's probabilities, both at temperature T, and used at T = 1.

    Trained with softmax(z/T), the student's logits z grow T times as large as usual. At T = 1 its probabilities are
    then 0 and 1 in float32, and the gradient of cross-entropy vanishes.

    Args:
        data: decides the architecture, which teacher and student share.
        temperature: T; the paper's main one is 100.
        network: another architecture by its name (``defenses.parts.nets.NETWORKS``).
    """

    version = 1
    kinds = ("image",)
    trains_in_ball = False
    card = Card(
        title="Defensive distillation",
        summary=(
            "A teacher is trained with a softmax at a high temperature, a student of the same architecture "
            "on the teacher's soft labels at that temperature, and the student is used at temperature 1. "
            "The soft labels were thought to smooth the network around the training images. "
            "In fact the logits grow by the temperature, the softmax saturates, "
            "and the gradient of cross-entropy vanishes in float32. "
            "An attack on the logits (a margin, or logits divided by the temperature) does not notice, "
            "and Carlini & Wagner 2017 succeeded on every image. "
            "Attacks that compare logits or only see labels break it as well."
        ),
        paper="Papernot, McDaniel, Wu, Jha, Swami 2016, "
        "Distillation as a Defense to Adversarial Perturbations against Deep Neural Networks",
        url="https://arxiv.org/abs/1511.04508",
        family="distillation",
        tags=("deterministic", "differentiable", "gradient masking"),
        claims=(
            Claim("mnist", "l0", None, 99.5, "JSMA", "Papernot et al. 2016, abstract"),
        ),
        breaks=(
            Claim("mnist", "smallest l0, l2 or linf", None, 0.0, "C&W", _BREAK),
            Claim("cifar10", "smallest l0, l2 or linf", None, 0.0, "C&W", _BREAK),
        ),
    )  # fmt: skip

    def __init__(self, data: DataInfo, temperature: float = 100.0, network: str = "auto") -> None:
        super().__init__(data)
        if not temperature >= 1:
            raise InputError(f"distillation: temperature {temperature} must be at least 1")
        self.temperature = temperature
        self.network = network
        self.classifier = classifier_for(data, network)

    def fit(self, run: TrainingRun) -> None:
        """The teacher on the labels, then the student on the teacher's probabilities."""
        teacher = classifier_for(run.info, self.network).to(run.device)

        def labels(x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(teacher(x) / self.temperature, y)

        def soft_labels(x: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                probabilities = (teacher(x) / self.temperature).softmax(1)
            return F.cross_entropy(self.classifier(x) / self.temperature, probabilities)

        self._descend(run, "teacher", teacher, labels)
        freeze(teacher)
        self._descend(run, "student", self.classifier, soft_labels)

    def _descend(
        self, run: TrainingRun, stage: str, module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        # z/T makes every gradient T times smaller while weights have to grow: Adam does not mind the scale, and
        # weight decay, which would outweigh such gradients, is left out.
        settings = schedule_for(run.info, self.network).settings()
        settings |= {"optimizer": "adam", "lr": 0.003, "weight_decay": 0.0}
        run.minimise(stage, module, loss, augment=augmentation_for(run.info), **settings)
