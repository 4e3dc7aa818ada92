"""Defense-GAN: the nearest image that a generator can make (Samangouei et al. 2018)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from attacks.toolkit.paths import straight_through
from bench.contracts.defense import Approximation, Card, Claim, Defense, freeze
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.nets import classifier_for
from defenses.parts.recipes import natural_training, train_classifier

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

#: Momentum of the latent search, as in the authors' code.
MOMENTUM = 0.7
#: Weight of the critic's gradient penalty (Gulrajani et al. 2017, section 4).
PENALTY = 10.0
#: Added to the diagonal of JᵀJ in the stand-in, as a share of its mean.
DAMPING = 0.01
#: Steps and restarts of the search inside the generator's training.
COVERAGE_STEPS, COVERAGE_RESTARTS = 10, 2


class DefenseGAN(Defense):
    """g replaces an image by the output of a generator nearest to it.

    z* minimises ‖G(z) - x‖² over R random starts of L steps of gradient descent with momentum each, and
    g(x) = G(z*) (the paper's figure 1). The search is outside autograd. Randomised by its starts.

    Two deviations in the training of G, a Wasserstein GAN with gradient penalty as in the paper. Generator and critic
    step together, by a reversed gradient, where the paper's critic takes several steps for one of the generator. And
    the squared error after a short search joins the loss: on a thousand digits the plain GAN leaves out many of them.
    At 16 latent dimensions an undefended classifier knew 63 % of 150 reconstructed validation digits without that
    term and 81 % with it (89 % at 24 dimensions).

    Args:
        data: decides the architectures and the budget.
        steps: L; default 200 as in the paper, below 16 pixels 20.
        restarts: R; default 10 as in the paper, below 16 pixels 4.
        step_size: of the descent on the mean squared error; default 10 as in the authors' code, below 16 pixels 3.
        latent: dimensions of z; default 100, below 16 pixels 24.
        trained_on: what the classifier is trained on: ``reconstructions`` (the paper's Defense-GAN-Rec) or ``images``
            (Defense-GAN-Orig). The default is reconstructions below 16 pixels, else images, for with the paper's
            budget reconstructing every image in every epoch takes days.
        network: of the classifier, another architecture by its name (``defenses.parts.nets``).
    """

    version = 1
    kinds = ("image",)
    trains_in_ball = False
    card = Card(
        title="Defense-GAN",
        summary=(
            "Each image is replaced by the nearest one that a generator can make, found by gradient descent on its "
            "latent vector from several random starts. "
            "A generator of clean images cannot make an adversarial perturbation, so the projection was thought to "
            "remove it. "
            "The search hides the gradient, and its random starts make every pass a little different. "
            "Adversarial examples exist on the generator's own manifold, as Athalye, Carlini and Wagner showed in "
            "2018, and a backward pass that skips the search reaches 45 % of the images of MNIST. "
            "What is left of its robustness is a generator that misses part of the data, which costs clean accuracy "
            "too."
        ),
        paper="Samangouei, Kabkab, Chellappa 2018, "
        "Defense-GAN: Protecting Classifiers Against Adversarial Attacks Using Generative Models",
        url="https://arxiv.org/abs/1805.06605",
        family="purification",
        tags=("randomised", "not differentiable", "inner optimisation", "generative model"),
        breaks=(
            Claim("mnist", "l2 0.005 (root mean square)", None, 55.0, "BPDA", "Athalye et al. 2018, table 1"),
        ),
    )  # fmt: skip
    randomized = True

    def __init__(
        self,
        data: DataInfo,
        steps: int | None = None,
        restarts: int | None = None,
        step_size: float | None = None,
        latent: int | None = None,
        trained_on: Literal["auto", "reconstructions", "images"] = "auto",
        network: str = "auto",
    ) -> None:
        super().__init__(data)
        small = min(data.shape[1:]) < 16
        # Clean validation accuracy on digits at (L, R): 92.9 % at (10, 4), 94.4 at (20, 2), 95.6 at (20, 4), 95.9 at
        # (40, 4). Robustness had no say.
        self.steps = (20 if small else 200) if steps is None else steps
        self.restarts = (4 if small else 10) if restarts is None else restarts
        self.step_size = (3.0 if small else 10.0) if step_size is None else step_size
        self.latent = (24 if small else 100) if latent is None else latent
        for name in ("steps", "restarts", "step_size", "latent"):
            if not getattr(self, name) > 0:
                raise InputError(f"defense-gan: {name} {getattr(self, name)} must be greater than 0")
        if trained_on not in ("auto", "reconstructions", "images"):
            raise InputError(f"defense-gan: trained_on {trained_on} is not auto, reconstructions or images")
        self.trained_on = ("reconstructions" if small else "images") if trained_on == "auto" else trained_on
        self.generator = freeze(generator_for(data.shape, self.latent))
        self.network = network
        self.classifier = classifier_for(data, network)

    def train(self, mode: bool = True) -> DefenseGAN:
        """As usual, except that the generator stays in evaluation mode."""
        super().train(mode)
        self.generator.eval()
        return self

    def transform(self, x: Tensor) -> Tensor:
        """G(z*), ``(N, C, H, W)`` in [0, 1]; the starts come from torch's global generator. Cuts the graph."""
        with torch.no_grad():
            nearest: Tensor = self.generator(self.search(x, self.steps, self.restarts))
        return nearest

    def search(self, x: Tensor, steps: int, restarts: int) -> Tensor:
        """z* of every image, ``(N, latent)``: the best of ``restarts`` descents of ``steps`` steps each."""
        x = x.detach()
        images = x.repeat_interleave(restarts, 0)
        z = torch.randn(len(images), self.latent, device=x.device).to(x)
        velocity = torch.zeros_like(z)
        for _ in range(steps):
            z.requires_grad_()
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(self._error(z, images).sum(), z)
            velocity = MOMENTUM * velocity + grad
            z = z.detach() - self.step_size * velocity
        with torch.no_grad():
            best = self._error(z, images).view(len(x), restarts).argmin(1)
        return z.view(len(x), restarts, self.latent)[torch.arange(len(x), device=x.device), best]

    def _error(self, z: Tensor, x: Tensor) -> Tensor:
        """Mean squared error of every image, ``(N,)``."""
        error: Tensor = (self.generator(z) - x).square().flatten(1).mean(1)
        return error

    def approximations(self) -> dict[str, Approximation]:
        """Two stand-ins.

        ``projection``: the exact value, with the derivative of the nearest point on the generator's manifold by the
        implicit function theorem, its curvature left out: J (JᵀJ)⁻¹ Jᵀ with J = dG/dz at z*. ``identity``: what comes
        out is near to what went in.
        """
        return {
            "projection": Approximation(self._projection, exact_forward=True),
            "identity": Approximation(lambda x: x),
        }

    def _projection(self, x: Tensor) -> Tensor:
        z = self.search(x, self.steps, self.restarts).requires_grad_()
        with torch.enable_grad():
            nearest = self.generator(z)
            # Jᵀu is linear in u, so that its derivative with respect to u gives J column by column.
            u = torch.zeros_like(nearest, requires_grad=True)
            (pulled,) = torch.autograd.grad(nearest, z, u, create_graph=True)
            columns = [torch.autograd.grad(part.sum(), u, retain_graph=True)[0] for part in pulled.unbind(1)]
        jacobian = torch.stack([column.flatten(1) for column in columns], 2)
        gram = jacobian.mT @ jacobian
        damping = DAMPING * gram.diagonal(dim1=1, dim2=2).mean(1) + 1e-12
        gram = gram + damping[:, None, None] * torch.eye(self.latent, device=x.device).to(x)
        moved = jacobian @ torch.linalg.solve(gram, jacobian.mT @ x.flatten(1)[:, :, None])
        return straight_through(nearest, moved.view_as(x))

    def fit(self, run: TrainingRun) -> None:
        """First generator and critic; then the classifier, on reconstructions or on images."""
        critic = critic_for(run.info.shape).to(run.device)
        self.generator.requires_grad_(True)

        def adversarial(x: Tensor, y: Tensor) -> Tensor:
            made = self.generator(torch.randn(len(x), self.latent, device=x.device))
            # The critic separates the two; the reversed gradient makes the generator work against it.
            distance = critic(_Reverse.apply(made)).mean() - critic(x).mean()
            z = self.search(x, COVERAGE_STEPS, COVERAGE_RESTARTS)
            coverage = self._error(z, x).mean() * x[0].numel()
            total: Tensor = distance + PENALTY * _gradient_penalty(critic, x, made.detach()) + coverage
            return total

        epochs = 60 if min(run.info.shape[1:]) < 16 else 100
        run.minimise(
            "generator", nn.ModuleList([self.generator, critic]), adversarial,
            epochs=epochs, batch_size=64, lr=1e-3, milestones=(epochs * 4 // 5,), optimizer="adam",
        )  # fmt: skip
        freeze(self.generator)
        if self.trained_on == "reconstructions":
            train_classifier(run, self, self.network)
        else:
            natural_training(run, self.classifier, "classifier", network=self.network)


def generator_for(shape: tuple[int, ...], latent: int) -> nn.Sequential:
    """z ``(N, latent)`` to images in [0, 1]: linear layers below 16 pixels, else transposed convolutions from 4×4."""
    channels, height, width = shape
    if min(height, width) < 16:
        layers: list[nn.Module] = [nn.Linear(latent, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(128, math.prod(shape)), nn.Unflatten(1, shape), nn.Sigmoid())
    doublings = min(height, width).bit_length() - 3
    rows, columns = -(-height // 2**doublings), -(-width // 2**doublings)
    inputs = 64 * 2 ** (doublings - 1)
    layers = [nn.Linear(latent, inputs * rows * columns), nn.Unflatten(1, (inputs, rows, columns)), nn.ReLU()]
    for left in reversed(range(doublings)):
        outputs = 64 * 2 ** (left - 1) if left else channels
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, padding=1), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers[:-1], _Crop(height, width), nn.Sigmoid())


def critic_for(shape: tuple[int, ...]) -> nn.Sequential:
    """Images to one value each, ``(N, 1)``: linear layers below 16 pixels, else strided convolutions."""
    channels, height, width = shape
    layers: list[nn.Module] = []
    if min(height, width) >= 16:
        for outputs in (64, 128, 256):
            layers += [nn.Conv2d(channels, outputs, 4, 2, padding=1), nn.LeakyReLU(0.2)]
            channels, height, width = outputs, height // 2, width // 2
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 256), nn.LeakyReLU(0.2))
    return nn.Sequential(*layers, *hidden, nn.Linear(256, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1))


class _Crop(nn.Module):
    """The upper left part of an image."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : self.height, : self.width]


class _Reverse(torch.autograd.Function):
    """The identity, with the gradient reversed (Ganin & Lempitsky 2015, eq. 14 and 15)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


def _gradient_penalty(critic: nn.Module, x: Tensor, made: Tensor) -> Tensor:
    """How far the critic's gradient is from norm 1 between real and made images (Gulrajani et al. 2017, eq. 3)."""
    share = torch.rand(len(x), 1, 1, 1, device=x.device)
    between = (share * x + (1 - share) * made).requires_grad_()
    (grad,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    penalty: Tensor = (grad.flatten(1).norm(dim=1) - 1).square().mean()
    return penalty
