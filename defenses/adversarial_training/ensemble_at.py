"""Ensemble adversarial training: one-step examples of other networks (Tramèr et al. 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts.defense import Card, Defense, freeze
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.adversarial_recipes import one_step_examples
from defenses.parts.nets import classifier_for, external_for
from defenses.parts.recipes import augmentation_for, natural_training, schedule_for

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun


class EnsembleAT(Defense):
    """A network trained on clean images and on one-step examples of itself and of fixed, naturally trained networks.

    The fixed networks are, in this order, ``cnn-a``, the VGG-style external network and another one of the defense's
    own architecture (the paper's on MNIST are four small networks A to D). They are not kept after training.

    Args:
        data: decides the architectures.
        sources: number of fixed networks, 1 to 3.
        network: another architecture by its name (``defenses.parts.nets.NETWORKS``).
    """

    version = 1
    kinds = ("image",)
    card = Card(
        title="Ensemble adversarial training",
        summary=(
            "The network is trained on clean images and on one-step examples that are made for it "
            "or for one of several fixed networks, drawn anew for every batch. "
            "Examples of other networks cannot be weakened by bending one's own loss surface, "
            "which is how one-step adversarial training goes wrong. "
            "It was meant against transferred attacks, and won the first round of the NIPS 2017 competition. "
            "Its authors do not claim robustness to white-box attacks of many steps. "
            "Such attacks break it with plain gradients, and later black-box attacks transfer better as well."
        ),
        paper="Tramèr, Kurakin, Papernot, Goodfellow, Boneh, McDaniel 2018, "
        "Ensemble Adversarial Training: Attacks and Defenses",
        url="https://arxiv.org/abs/1705.07204",
        family="adversarial training",
        tags=("deterministic", "differentiable"),
    )

    def __init__(self, data: DataInfo, sources: int = 3, network: str = "auto") -> None:
        super().__init__(data)
        if not 1 <= sources <= 3:
            raise InputError(f"ensemble-at: sources {sources} is outside 1..3")
        self.sources = sources
        self.network = network
        self.classifier = classifier_for(data, network)

    def fit(self, run: TrainingRun) -> None:
        """Natural training of the fixed networks, then the mean cross-entropy of clean and one-step images."""
        if run.threat.norm not in ("linf", "l2"):
            raise InputError(f"ensemble-at: norm {run.threat.norm} is not available (linf, l2)")
        fixed = self._fixed_networks(run)
        of = [self.classifier, *fixed]

        def loss(x: Tensor, y: Tensor) -> Tensor:
            source = of[int(torch.randint(len(of), ()))]
            x_adv = one_step_examples(source, x, y, run.threat, step=1.0, random_start=False)
            logits = self.classifier(torch.cat([x, x_adv]))
            return F.cross_entropy(logits, torch.cat([y, y]))

        run.minimise(
            "ensemble adversarial training",
            self.classifier,
            loss,
            augment=augmentation_for(run.info),
            **schedule_for(run.info, self.network).settings(),
        )

    def _fixed_networks(self, run: TrainingRun) -> list[nn.Module]:
        networks = [classifier_for(run.info, "cnn-a"), external_for(run.info), classifier_for(run.info, self.network)]
        names = ["cnn-a", "auto", self.network]
        fixed = []
        for number in range(self.sources):
            network = networks[number].to(run.device)
            natural_training(run, network, f"fixed network {number + 1}", network=names[number])
            fixed.append(freeze(network))
        return fixed
