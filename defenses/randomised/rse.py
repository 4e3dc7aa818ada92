"""Random self-ensemble: noise before every convolution (Liu et al. 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from bench.contracts.defense import Card, Claim, Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.nets import classifier_for, replace
from defenses.parts.recipes import natural_training
from defenses.parts.voting import GaussianNoise, Vote

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun


class RandomSelfEnsemble(Defense):
    """A network with Gaussian noise in front of every convolution, in training and at test time.

    The mean probability over several passes decides. g is the identity; the randomness is inside f. The paper's
    network for CIFAR-10 is a VGG-16 (``network=vgg16``).

    Args:
        data: decides the architecture.
        init_noise: standard deviation in front of the first convolution, in pixel units (the paper: 0.2).
        inner_noise: in front of all others (the paper: 0.1).
        samples: passes whose probabilities are averaged (the paper: 10). Default: 10 from 16 pixels on, else 2:
            clean validation accuracy on digits is 98.0, 98.7, 98.9, 99.0 and 99.0 % with 1, 2, 3, 5 and 10, and all
            the time that attacks take grows with them.
        network: another architecture by its name (``defenses.parts.nets``).
    """

    version = 1
    kinds = ("image",)
    trains_in_ball = False
    card = Card(
        title="Random self-ensemble",
        summary=(
            "Gaussian noise is added in front of every convolution, in training as well as at test time, and the "
            "probabilities of several passes are averaged. "
            "An attacker was thought to climb the gradient of one noisy network while an ensemble of infinitely many "
            "decides. "
            "Training with noise also bounds the network's Lipschitz constant, which is a real if modest gain. "
            "Expectation over transformation averages the gradient over the noise and attacks the ensemble itself. "
            "What remains is about what training with noise of that size alone gives."
        ),
        paper="Liu, Cheng, Zhang, Hsieh 2018, Towards Robust Neural Networks via Random Self-ensemble",
        url="https://arxiv.org/abs/1712.00673",
        family="randomised",
        tags=("randomised", "differentiable", "voting", "stochastic network"),
        claims=(
            Claim("cifar10", "within a distortion tolerance", None, 86.0, "C&W", "Liu et al. 2018, abstract"),
        ),
    )  # fmt: skip
    randomized = True

    def __init__(
        self,
        data: DataInfo,
        init_noise: float = 0.2,
        inner_noise: float = 0.1,
        samples: int | None = None,
        network: str = "auto",
    ) -> None:
        super().__init__(data)
        if samples is None:
            samples = 10 if min(data.shape[1:]) >= 16 else 2
        for name, value in {"init_noise": init_noise, "inner_noise": inner_noise}.items():
            if not 0 <= value <= 1:
                raise InputError(f"rse: {name} {value} is outside [0, 1]")
        if init_noise == inner_noise == 0:
            raise InputError(f"rse: init_noise {init_noise} and inner_noise {inner_noise} leave no noise at all")
        if samples < 1:
            raise InputError(f"rse: samples {samples} must be at least 1")
        self.init_noise, self.inner_noise, self.samples, self.network = init_noise, inner_noise, samples, network
        stds = iter([init_noise])

        def noisy(convolution: nn.Module) -> nn.Module:
            return nn.Sequential(GaussianNoise(next(stds, inner_noise)), convolution)

        self.classifier = Vote(replace(classifier_for(data, network), nn.Conv2d, noisy), samples)

    def fit(self, run: TrainingRun) -> None:
        """Cross-entropy on clean images with fresh noise in every pass."""
        natural_training(run, self.classifier, network=self.network)
