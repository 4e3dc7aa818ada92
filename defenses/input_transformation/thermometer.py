"""Thermometer encoding (Buckman et al. 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bench.contracts.defense import Approximation, Card, Claim, Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from defenses.parts.nets import classifier_for
from defenses.parts.recipes import adversarial_training, train_classifier

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

_ABSTRACT = "Buckman et al. 2018, abstract"


class Thermometer(Defense):
    """The network sees, for each value and each of L thresholds, whether the value exceeds the threshold.

    g quantises the image to multiples of 1/L; f writes the levels as codes (:class:`ThermometerEncoding`) and
    classifies them. The two together are the paper's encoding.

    Args:
        data: decides the architecture, which has ``levels`` times as many input channels.
        levels: L, at least 2 (the paper, CIFAR-10: 16).
        adversarial: train on adversarial examples that PGD finds by soft encoding, as the paper trains on those of
            its own attack on the codes (LS-PGA).
        network: another architecture by its name (``defenses.parts.nets``). The paper's is a wide ResNet of depth 30
            and width 4; ``wrn-28-10`` is the nearest.
    """

    version = 1
    kinds = ("image",)
    card = Card(
        title="Thermometer encoding",
        summary=(
            "Every value is quantised and written as a bar of ones, as long as the value is large, one input channel "
            "per level. "
            "The encoding is neither linear nor differentiable, and networks were thought to be vulnerable because "
            "they are too linear in their input. "
            "Attacks of the original paper moved the codes themselves, step by step, and left 79 % on CIFAR-10 to the "
            "adversarially trained network. "
            "Athalye and colleagues replaced the steps by ramps in the backward pass and brought the network to 0 % "
            "without and 30 % with adversarial training, less than adversarial training keeps on its own. "
            "Only the gradient was hidden."
        ),
        paper="Buckman, Roy, Raffel, Goodfellow 2018, "
        "Thermometer Encoding: One Hot Way To Resist Adversarial Examples",
        url="https://openreview.net/forum?id=S18Su--CW",
        family="encoding and activation",
        tags=("deterministic", "not differentiable", "gradient masking"),
        claims=(
            Claim("cifar10", "linf 0.031", None, 79.16, "LS-PGA, adversarially trained", _ABSTRACT),
            Claim("mnist", "linf 0.3", None, 94.3, "LS-PGA, adversarially trained", _ABSTRACT),
        ),
        breaks=(
            Claim("cifar10", "linf 0.031", None, 0.0, "BPDA", "Athalye et al. 2018, table 1"),
            Claim("cifar10", "linf 0.031", None, 30.0, "BPDA, adversarially trained",
                  "Athalye et al. 2018, released code (thermometer/README.md)"),
        ),
    )  # fmt: skip

    def __init__(
        self, data: DataInfo, levels: int = 16, adversarial: bool = False, network: str = "auto"
    ) -> None:
        super().__init__(data)
        if not 2 <= levels <= 256:
            raise InputError(f"thermometer: levels {levels} is outside 2..256")
        self.levels, self.trains_in_ball = levels, adversarial
        self.network = network
        channels, height, width = data.shape
        encoded = DataInfo(data.name, InputSpec((levels * channels, height, width)), data.num_classes)
        self.classifier = nn.Sequential(ThermometerEncoding(levels), classifier_for(encoded, network))

    def transform(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` rounded up to multiples of 1/L: as many thresholds l/L are exceeded. Cuts the graph."""
        return (x.detach().clamp(0, 1) * self.levels).ceil() / self.levels

    def approximations(self) -> dict[str, Approximation]:
        """``soft-encoding``: the identity in place of g, so that the ramps of f are the whole backward pass."""
        return {"soft-encoding": Approximation(lambda x: x)}

    def fit(self, run: TrainingRun) -> None:
        """Cross-entropy on codes of clean or, with ``adversarial``, of adversarial images."""
        if self.trains_in_ball:
            adversarial_training(run, _SoftEncoded(self), network=self.network)
        else:
            train_classifier(run, self, self.network)


class ThermometerEncoding(nn.Module):
    """Channel l of each value v is clamp(L·v − l, 0, 1), l = 0 … L−1, of which multiples of 1/L make zeros and ones.

    Backward each channel is the ramp clamp((L·v − l − ½) / WIDTH + ½, 0, 1) around the same middle, in the manner of
    Athalye et al. 2018, section 5.2.1: on the codes themselves the derivative would be that of a kink.

    ``(N, C, H, W)`` to ``(N, C * levels, H, W)``.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        thresholds = torch.arange(self.levels, dtype=x.dtype, device=x.device).view(-1, 1, 1)
        height = self.levels * x[:, :, None] - thresholds
        ramps = ((height - 0.5) / WIDTH + 0.5).clamp(0, 1)
        return (height.detach().clamp(0, 1) + (ramps - ramps.detach())).flatten(1, 2)


#: Width of the ramps in the backward pass, in levels: the least at which codes do not lie on kinks.
WIDTH = 2


class _SoftEncoded(nn.Module):
    """The defense as adversarial training sees it: true codes forward, ramps backward."""

    def __init__(self, defense: Thermometer) -> None:
        super().__init__()
        self.classifier = defense.classifier
        self.quantise = defense.transform

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x + (self.quantise(x) - x).detach())
        return logits
