"""Bit-depth reduction as an input transformation (Xu et al. 2018; Guo et al. 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from bench.contracts.defense import Approximation, Card, Claim, Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.nets import classifier_for
from defenses.parts.recipes import existing_classifier, train_classifier

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun


class BitDepth(Defense):
    """g rounds every value to ``2**bits`` levels, of which the lowest is 0 and the highest 1.

    Rounding runs outside autograd, so plain automatic differentiation yields no gradient at all.

    Args:
        data: decides the architecture.
        bits: per value, 1 to 8. Default: 3 from 16 pixels on (Guo et al. 2018), below that SMALL_BITS.
        network: another architecture by its name (``defenses.parts.nets``). Guo et al. use
            ``torchvision.resnet50``.
    """

    version = 1
    kinds = ("image",)
    trains_in_ball = False
    card = Card(
        title="Bit-depth reduction",
        summary=(
            "Every value of the image is rounded to one of a few levels before it is classified. "
            "Changes smaller than half a level vanish, which was thought to remove the perturbation and to leave "
            "the content. "
            "Rounding has no derivative, so naive gradient attacks see nothing. "
            "Backward pass differentiable approximation with the identity breaks it, because rounding moves no value "
            "far: Athalye and colleagues brought the transformations of Guo and colleagues to 0 %. "
            "Where a value lies near a threshold, rounding makes the perturbation larger rather than smaller."
        ),
        paper="Guo, Rana, Cisse, van der Maaten 2018, Countering Adversarial Images using Input Transformations",
        url="https://arxiv.org/abs/1711.00117",
        family="input transformation",
        tags=("deterministic", "not differentiable", "input transformation"),
        breaks=(Claim("imagenet", "l2 0.05", None, 0.0, "BPDA", "Athalye et al. 2018, table 1"),),
    )

    def __init__(self, data: DataInfo, bits: int | None = None, network: str = "auto") -> None:
        super().__init__(data)
        self.weights_of = existing_classifier(data)
        if bits is None:
            bits = 3 if min(data.shape[1:]) >= 16 else SMALL_BITS
        if not 1 <= bits <= 8:
            raise InputError(f"bit-depth: bits {bits} is outside 1..8")
        self.bits = bits
        self.network = network
        self.classifier = classifier_for(data, network)

    def transform(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` rounded to multiples of 1 / (2**bits - 1). Cuts the graph."""
        steps = 2**self.bits - 1
        rounded: Tensor = (x.detach().clamp(0, 1) * steps).round() / steps
        return rounded

    def approximations(self) -> dict[str, Approximation]:
        """``identity``: what rounding is, up to half a level."""
        return {"identity": Approximation(lambda x: x)}

    def fit(self, run: TrainingRun) -> None:
        """Cross-entropy on rounded images."""
        train_classifier(run, self, self.network)


#: Bits below 16 pixels: of 1, 2 and 3 those with the best clean validation accuracy on digits (97.9, 99.1 and
#: 98.5 %). Robustness had no say.
SMALL_BITS = 2
