"""High-level representation guided denoiser (Liao et al. 2018)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contracts.defense import Card, Claim, Defense, freeze
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.nets import classifier_for
from defenses.parts.recipes import natural_training, pgd_examples, schedule_for
from defenses.parts.unet import UNet, scales_for

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

#: Steps of the attacks that the denoiser is trained on: FGSM and iterated FGSM as in the paper (section 4.1).
ATTACK_STEPS = (1, 2, 4, 8)


class GuidedDenoiser(Defense):
    """g subtracts the noise that a U-Net sees in the image; differentiable.

    The classifier is trained naturally and then fixed. The denoiser is trained on adversarial examples of the
    classifier, so that the logits of the denoised image are those of the clean one (the paper's logits guided
    denoiser, LGD).

    Two deviations: the paper's training set is made once, for several networks; here the examples are made in every
    batch, for the classifier alone, at radii up to the suite's eps. The number of scales follows the image size.

    Args:
        data: decides the architectures.
        width: channels of the U-Net's first scale, doubled once below it; default 16 below 16 pixels, else 64 as in
            the paper.
        network: of the classifier, another architecture by its name (``defenses.parts.nets``). The paper defends
            Inception v3 on 299 pixels.
    """

    version = 1
    kinds = ("image",)
    card = Card(
        title="Guided denoiser",
        summary=(
            "A U-Net estimates the adversarial noise in the image and subtracts it before an unchanged classifier sees "
            "the rest. "
            "It is trained so that the logits of a denoised adversarial example equal those of the clean image, for "
            "small errors of a denoiser that compares pixels are amplified by the layers above. "
            "It won its track of the NIPS 2017 competition, in which the attacker did not know the defense. "
            "Denoiser and classifier are one differentiable network, so plain PGD through both, which Athalye and "
            "Carlini ran in 2018, reaches any target class on ImageNet. "
            "The denoiser has seen examples made for the classifier alone, never ones made against itself."
        ),
        paper="Liao, Liang, Dong, Pang, Hu, Zhu 2018, "
        "Defense against Adversarial Attacks Using High-Level Representation Guided Denoiser",
        url="https://arxiv.org/abs/1712.02976",
        family="purification",
        tags=("deterministic", "differentiable", "input transformation"),
        breaks=(
            Claim("imagenet", "linf 0.0157", None, 0.0, "PGD", "Athalye & Carlini 2018 (arXiv:1804.03286)"),
        ),
    )  # fmt: skip

    def __init__(self, data: DataInfo, width: int | None = None, network: str = "auto") -> None:
        super().__init__(data)
        channels, *size = data.shape
        if width is None:
            width = 16 if min(size) < 16 else 64
        if width < 1:
            raise InputError(f"guided-denoiser: width {width} must be at least 1")
        self.denoiser = UNet(channels, channels, width, scales_for(min(size)))
        self.network = network
        self.classifier = classifier_for(data, network)

    def transform(self, x: Tensor) -> Tensor:
        """x minus the noise estimated in it; ``(N, C, H, W)``. It may leave [0, 1] a little, as in the paper."""
        denoised: Tensor = x - self.denoiser(x)
        return denoised

    def fit(self, run: TrainingRun) -> None:
        """First the classifier on clean images; then the denoiser, with the classifier fixed."""
        natural_training(run, self.classifier, "classifier", network=self.network)
        freeze(self.classifier)

        def guided(x: Tensor, y: Tensor) -> Tensor:
            steps = ATTACK_STEPS[int(torch.randint(len(ATTACK_STEPS), ()))]
            threat = replace(run.threat, eps=max(1e-3, float(torch.rand(()))) * run.threat.eps)
            noisy = pgd_examples(self.classifier, x, y, threat, steps)
            with torch.no_grad():
                clean = self.classifier(x)
            return F.l1_loss(self.classifier(self.transform(noisy)), clean)

        settings = schedule_for(run.info, self.network).settings() | {"lr": 1e-3, "weight_decay": 0.0}
        run.minimise("denoiser", self.denoiser, guided, optimizer="adam", **settings)
