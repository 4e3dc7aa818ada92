"""k-winners-take-all activations (Xiao, Zhong & Zheng 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from bench.contracts.defense import Card, Claim, Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.nets import classifier_for, replace
from defenses.parts.recipes import train_classifier

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

_TABLE = "Croce & Hein 2020, table of results published with AutoAttack"


class KWTA(Defense):
    """A network in which every ReLU is replaced by k-winners-take-all.

    There is no transform: the gradient is that of the network itself. It exists almost everywhere and says little
    about the next discontinuity.

    Args:
        data: decides the architecture.
        ratio: γ, the share of a layer's units that stay active, above 0 and at most 1 (the paper: 0.1 and 0.2).
        network: another architecture by its name (``defenses.parts.nets``). The paper's are ``resnet18``, DenseNet-121
            (``torchvision.densenet121``) and a wide ResNet.
    """

    version = 1
    kinds = ("image",)
    trains_in_ball = False
    card = Card(
        title="k-winners-take-all",
        summary=(
            "In every layer the largest activations of an image, a fixed share of all, keep their value, and the "
            "others become zero. "
            "The set of winners changes abruptly with the input, so the network is discontinuous at densely "
            "distributed points. "
            "Its gradient was thought to be useless to an attacker for that reason, while training still succeeds. "
            "Averaging over neighbours of the input, with finite differences or any attack on scores, smooths the "
            "jumps and finds the direction. "
            "AutoAttack, one of whose parts sees nothing but scores, left 18.5 % of the 52.4 % that had been reported "
            "after adversarial training."
        ),
        paper="Xiao, Zhong, Zheng 2020, Enhancing Adversarial Defense by k-Winners-Take-All",
        url="https://arxiv.org/abs/1905.10510",
        family="encoding and activation",
        tags=("deterministic", "differentiable", "gradient masking"),
        claims=(Claim("cifar10", "linf 0.031", 79.28, 52.4, "reported, adversarially trained DenseNet-121", _TABLE),),
        breaks=(Claim("cifar10", "linf 0.031", 79.28, 18.5, "AutoAttack, adversarially trained DenseNet-121", _TABLE),),
    )

    def __init__(self, data: DataInfo, ratio: float = 0.1, network: str = "auto") -> None:
        super().__init__(data)
        if not 0 < ratio <= 1:
            raise InputError(f"k-wta: ratio {ratio} must be above 0 and at most 1")
        self.ratio = ratio
        self.network = network
        self.classifier = replace(classifier_for(data, network), nn.ReLU, lambda _: KWinners(ratio))

    def fit(self, run: TrainingRun) -> None:
        """Cross-entropy on clean images."""
        train_classifier(run, self, self.network)


class KWinners(nn.Module):
    """Keeps the ``ratio`` of an example's values that are largest (one at least), and what equals the smallest of
    them; the others become 0 (eq. 1 of the paper)."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        values = x.flatten(1)
        losers = values.shape[1] - max(1, int(self.ratio * values.shape[1]))
        threshold = values.detach().kthvalue(losers + 1, dim=1, keepdim=True).values
        return (values * (values >= threshold)).view_as(x)
