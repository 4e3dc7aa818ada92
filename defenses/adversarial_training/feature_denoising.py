"""Feature denoising: non-local blocks inside an adversarially trained network (Xie et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from bench.contracts.defense import Card, Claim, Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.nets import classifier_for
from defenses.parts.recipes import adversarial_training

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

Similarity = Literal["gaussian", "dot-product"]
_SOURCE = "Xie et al. 2019"
#: Blocks are left out where there are more pixels than this: their memory grows with the square of the number.
MOST_PIXELS = 32 * 32


class FeatureDenoising(Defense):
    """A network with a denoising block at the end of every resolution, trained on PGD examples.

    The paper puts one block after each of the four resolutions of a ResNet-152 on ImageNet; here they go into any
    network that is a row of layers. A resolution of more than MOST_PIXELS places, as the first one is of 64×64 images,
    goes without a block.

    Args:
        data: decides the architecture.
        similarity: how the weights of the non-local mean come about (section 4.1): ``gaussian``, a softmax of
            embedded features, or ``dot-product``.
        steps: of the PGD inside training; the paper takes 30 on ImageNet. 3 at most on the compact network.
        network: another architecture by its name (``defenses.parts.nets.NETWORKS``).
    """

    version = 1
    kinds = ("image",)
    card = Card(
        title="Feature denoising",
        summary=(
            "Blocks inside the network replace every feature by an average over similar ones, "
            "and the whole is trained on PGD examples. "
            "Perturbations were seen to grow into noise in the feature maps, which such an average should remove. "
            "It won the defense track of the CAAD 2018 competition. "
            "Every block is differentiable, so gradients are exact and nothing is hidden. "
            "What robustness there is comes mostly from the adversarial training: "
            "untargeted attacks bring it to the level of other networks trained with PGD."
        ),
        paper="Xie, Wu, van der Maaten, Yuille, He 2019, Feature Denoising for Improving Adversarial Robustness",
        url="https://arxiv.org/abs/1812.03411",
        family="adversarial training",
        tags=("deterministic", "differentiable"),
        claims=(
            Claim("imagenet", "linf 16/255", 65.3, 55.7, "targeted PGD-10", f"{_SOURCE}, abstract and repository"),
            Claim("imagenet", "linf 16/255", 65.3, 42.6, "targeted PGD-2000", f"{_SOURCE}, abstract and repository"),
        ),
        breaks=(
            Claim("cifar10", "linf 0.031", 83.8, 45.2, "worst of all in the paper", "Xiao & Zheng 2020, table 3"),
        ),
    )  # fmt: skip

    def __init__(
        self, data: DataInfo, similarity: Similarity = "gaussian", steps: int = 10, network: str = "auto"
    ) -> None:
        super().__init__(data)
        if similarity not in get_args(Similarity):
            kinds = ", ".join(get_args(Similarity))
            raise InputError(f"feature-denoising: similarity {similarity} is not one of {kinds}")
        if steps < 1:
            raise InputError(f"feature-denoising: steps {steps} must be at least 1")
        self.steps = steps
        self.network = network
        classifier = classifier_for(data, network)
        if not isinstance(classifier, nn.Sequential):
            raise InputError(f"feature-denoising: network {network} is not a row of layers to put blocks between")
        self.classifier = insert_denoising(classifier, data.shape, similarity)

    def fit(self, run: TrainingRun) -> None:
        """PGD adversarial training in the ball of ``run.threat``."""
        adversarial_training(run, self.classifier, steps=self.steps, network=self.network)


class DenoisingBlock(nn.Module):
    """x + BN(Conv1×1(non-local mean of x)) (figure 4): the mean at i is Σ_j w_ij x_j over all pixels j of the image.

    ``gaussian``: w_ij is the softmax over j of θ(x_i)·φ(x_j)/√d, with 1×1 convolutions θ and φ to d = C/2 channels;
    ``dot-product``: w_ij = x_i·x_j / number of pixels. The scale of the batch norm starts at zero, so that the block
    starts as the identity.

    Args:
        channels: C of the features ``(N, C, H, W)``, which keep their shape.
        similarity: see above.
    """

    def __init__(self, channels: int, similarity: Similarity) -> None:
        super().__init__()
        self.theta: nn.Module | None = None
        self.phi: nn.Module | None = None
        if similarity == "gaussian":
            self.theta = nn.Conv2d(channels, max(1, channels // 2), 1)
            self.phi = nn.Conv2d(channels, max(1, channels // 2), 1)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.norm(self.conv(self.non_local_mean(x)))
        return out

    def non_local_mean(self, x: Tensor) -> Tensor:
        """The weighted mean alone, shaped like x."""
        features = x.flatten(2)
        if self.theta is None or self.phi is None:
            # Σ_j (x_i·x_j) x_j = (Σ_j x_j x_jᵀ) x_i: channels by channels instead of pixels by pixels.
            mean = features @ features.mT @ features / features.shape[2]
        else:
            theta, phi = self.theta(x).flatten(2), self.phi(x).flatten(2)
            weights = (theta.mT @ phi / theta.shape[1] ** 0.5).softmax(2)
            mean = features @ weights.mT
        return mean.view_as(x)


def insert_denoising(network: nn.Sequential, shape: tuple[int, ...], similarity: Similarity) -> nn.Sequential:
    """Put a denoising block behind the last layer of every resolution that has a convolution, in place.

    Args:
        network: a row of layers, from images to logits.
        shape: of the images; their resolutions are found with one pass.
        similarity: of the blocks.
    """
    places: dict[tuple[int, int], tuple[int, int]] = {}  # resolution -> last layer, its channels
    convolved = set()
    training = network.training
    network.eval()
    with torch.no_grad():
        x = torch.zeros(1, *shape)
        for number, layer in enumerate(network):
            x = layer(x)
            # Adaptive pooling does not lead to features but to the last layer.
            if x.ndim != 4 or isinstance(layer, nn.AdaptiveAvgPool2d):
                break
            size = (x.shape[2], x.shape[3])
            places[size] = number, x.shape[1]
            if any(isinstance(part, nn.Conv2d) for part in layer.modules()):
                convolved.add(size)
    network.train(training)
    for size, (number, channels) in reversed(places.items()):
        if size in convolved and size[0] * size[1] <= MOST_PIXELS:
            network.insert(number + 1, DenoisingBlock(channels, similarity))
    return network
