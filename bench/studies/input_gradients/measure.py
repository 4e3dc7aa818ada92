"""Where a defense can be attacked: mean input gradient per pixel, and PGD confined to some pixels (Hwang et al. 2019).

The paper's claim is that pixels with a large mean gradient are those where perturbations count, and that a defense
can choose them (``defenses.modified_network.prm``). :func:`measure` makes both checkable: the heat map, how far its top
quarter agrees with the designated pixels, and accuracy under PGD that may change all pixels, the designated ones or
the others, at an equal linf and at an equal l2 bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contracts.defense import Defense, DefenseSpec, ready
from bench.contracts.errors import InputError
from bench.contracts.reporting import report
from bench.contracts.seeding import generator, seeded
from bench.contracts.target import Target
from bench.contracts.threat import Lp
from bench.data.load import load_data
from bench.data.splits import Split
from bench.judging.judge import tally
from bench.plugins.resolve import get_attack, load_defense
from bench.running.cell import defense_key, select_examples
from bench.storing import provenance
from bench.storing.store import Store
from bench.studies.input_gradients.record import InputGradients, MaskedPGD, write
from bench.suites.config import Suite

#: Draws of a randomised defense: averaged in the heat map and in each PGD step, and those that accuracy is taken on.
GRADIENT_DRAWS, SCORE_DRAWS = 16, 20


def mean_absolute_gradient(defense: Defense, x: Tensor, y: Tensor, batch_size: int = 256) -> Tensor:
    """Mean over examples and channels of |∂ cross-entropy / ∂x|; ``(H, W)``.

    Of a randomised defense it is the mean over ``GRADIENT_DRAWS`` passes as well; they draw from torch's global
    generator.

    Args:
        defense: in evaluation mode.
        x: ``(N, C, H, W)`` in [0, 1]; y: int64 ``(N,)``.
        batch_size: rows per pass.

    Raises:
        InputError: without examples, or where no gradient reaches the input or all of it is zero.
    """
    if not len(x):
        raise InputError("input gradients: no examples")
    draws = GRADIENT_DRAWS if defense.randomized else 1
    total = torch.zeros(x.shape[2:], dtype=torch.float64, device=x.device)
    for some, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        for _ in range(draws):
            total += _gradient(defense, some, labels).abs().double().mean(1).sum(0)
    if not total.any():
        raise InputError(f"input gradients: that of {type(defense).__name__} is zero everywhere; it hides its gradient")
    return total / (draws * len(x))


def _gradient(defense: Defense, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(defense(x), y, reduction="sum")
        grad = torch.autograd.grad(loss, x, allow_unused=True)[0] if loss.requires_grad else None
    if grad is None:
        raise InputError(f"input gradients: {type(defense).__name__} cuts its graph; there is no gradient to measure")
    return grad


def top_share(heat_map: Tensor, share: float = 0.25) -> Tensor:
    """The ``share`` of the pixels with the largest values, the first of equals; bool, shaped like ``heat_map``.

    Raises:
        InputError: for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise InputError(f"input gradients: share {share} is outside (0, 1]")
    flat = heat_map.flatten()
    chosen = flat.argsort(descending=True, stable=True)[: max(1, round(share * len(flat)))]
    return torch.zeros_like(flat, dtype=torch.bool).scatter(0, chosen, True).view(heat_map.shape)


def intersection_over_union(a: Tensor, b: Tensor) -> float:
    """|a ∩ b| / |a ∪ b| of two bool masks of one shape; 1 when both are empty.

    Raises:
        InputError: for different shapes.
    """
    if a.shape != b.shape:
        raise InputError(f"input gradients: masks of shapes {tuple(a.shape)} and {tuple(b.shape)}")
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def equal_l2(threat: Lp, shape: tuple[int, ...], share: float = 0.25) -> Lp:
    """The l2 bound as long as the largest linf perturbation of a ``share`` of the pixels: eps·√(share·C·H·W)."""
    channels, height, width = shape
    return Lp("l2", threat.eps * (share * channels * height * width) ** 0.5, threat.low, threat.high)


def measure(
    defense: Defense,
    split: Split,
    threat: Lp,
    *,
    designated: Tensor | None = None,
    share: float = 0.25,
    steps: int = 50,
    restarts: int = 1,
    loss: str = "ce",
    seed: int = 1,
    batch_size: int = 256,
) -> InputGradients:
    """Measure the input gradients of a defense and what masked PGD makes of them.

    Args:
        defense: in evaluation mode, differentiable.
        split: the examples; all of them are used (see ``Split.take``).
        threat: the linf bound; the l2 bound is :func:`equal_l2` of it.
        designated: bool ``(H, W)``; default: the attribute ``designated`` of the defense, if it has one.
        share: of the pixels that count as the top of the heat map.
        steps, restarts, loss: of PGD, whose gradients are averaged over draws of a randomised defense.
        seed: decides every draw.
        batch_size: rows per pass.

    Returns:
        The heat map, the agreement with ``designated``, and accuracies: clean; then for both bounds all pixels, the
        designated ones and the others (without any: the top of the heat map and the rest).

    Raises:
        InputError: when the threat model is not linf, no gradient reaches the input, or ``designated`` has the wrong
            shape or leaves nothing on one side.
    """
    if threat.norm != "linf":
        raise InputError(f"input gradients: threat model {threat} must be linf")
    device = next((p.device for p in defense.parameters()), torch.device("cpu"))
    x, y = split.x.to(device), split.y.to(device)
    with seeded(seed, "input gradients", "heat map"):
        heat_map = mean_absolute_gradient(defense, x, y, batch_size)
    top = top_share(heat_map, share)
    chosen: Tensor | None = getattr(defense, "designated", None) if designated is None else designated
    if chosen is not None:
        chosen = _checked(chosen.to(device), heat_map)
    inside, outside = ("top", "rest") if chosen is None else ("designated", "others")
    mask = top if chosen is None else chosen
    everything = torch.ones_like(mask)
    attacker = _Attacker(defense, x, y, steps, restarts, loss, seed, batch_size)
    accuracies = [attacker.clean(threat)]
    for bound in (threat, equal_l2(threat, defense.data.shape, share)):
        for name, pixels in (("all", everything), (inside, mask), (outside, ~mask)):
            report(len(accuracies) / 7, f"PGD on {name} pixels, {bound.norm}")  # of clean and six runs
            accuracies.append(attacker.run(name, pixels, bound))
    return InputGradients(
        heat_map=heat_map.tolist(),
        top=top.int().tolist(),
        designated=None if chosen is None else chosen.int().tolist(),
        iou=None if chosen is None else intersection_over_union(top, chosen),
        chance_iou=None if chosen is None else _chance_iou(share, float(chosen.double().mean())),
        share=share,
        n=len(x),
        gradient_draws=GRADIENT_DRAWS if defense.randomized else 1,
        seed=seed,
        accuracies=accuracies,
    )


def _checked(designated: Tensor, heat_map: Tensor) -> Tensor:
    designated = designated.bool()
    if designated.shape != heat_map.shape:
        raise InputError(
            f"input gradients: designated pixels of shape {tuple(designated.shape)}, images of {tuple(heat_map.shape)}"
        )
    if designated.all() or not designated.any():
        raise InputError("input gradients: all pixels or none are designated; there is nothing to compare")
    return designated


def _chance_iou(a: float, b: float) -> float:
    """IoU of two independent masks that cover shares ``a`` and ``b``: ab / (a + b - ab)."""
    return a * b / (a + b - a * b)


@dataclass(frozen=True)
class _Attacker:
    """PGD with one budget on one set of examples."""

    defense: Defense
    x: Tensor
    y: Tensor
    steps: int
    restarts: int
    loss: str
    seed: int
    batch_size: int

    @property
    def _draws(self) -> int:
        return SCORE_DRAWS if self.defense.randomized else 1

    def clean(self, threat: Lp) -> MaskedPGD:
        return self._entry("none", 0, threat, self.x, 0, 0, "none")

    def run(self, name: str, pixels: Tensor, threat: Lp) -> MaskedPGD:
        randomized = self.defense.randomized
        target = Target(
            self.defense, threat, len(self.x), knowledge="gradient", batch_size=self.batch_size,
            generator=generator(self.seed, "input gradients", name, threat), randomized=randomized,
        )  # fmt: skip
        estimator: Any = {"eot": {"samples": GRADIENT_DRAWS, "of": "exact"}} if randomized else "exact"
        with seeded(self.seed, "input gradients", name, threat):
            x_adv = get_attack("pgd").function(
                target, self.x, self.y, steps=self.steps, restarts=self.restarts, loss=self.loss, mask=pixels,
                estimator=estimator,
            )  # fmt: skip
        broken = [reason for reason in threat.violations(self.x, x_adv) if reason != "ok"]
        if broken or ((x_adv != self.x) & ~pixels).any():
            raise InputError(f"input gradients: PGD on {name} left its bounds: {(broken or ['outside the mask'])[0]}")
        spelled = f"eot {GRADIENT_DRAWS} of exact" if randomized else "exact"
        return self._entry(name, int(pixels.sum()), threat, x_adv, self.steps, self.restarts, spelled)

    def _entry(
        self, name: str, changeable: int, threat: Lp, x: Tensor, steps: int, restarts: int, estimator: str
    ) -> MaskedPGD:
        n, draws = len(x), self._draws
        stream = (self.seed, "input gradients", "score", name, threat)
        right = tally(self.defense, x, self.y, draws, None, self.batch_size, *stream).correct.sum()
        return MaskedPGD(
            pixels=name, changeable=changeable, norm=threat.norm, eps=threat.eps, accuracy=int(right) / (n * draws),
            n=n, draws=draws, steps=steps, restarts=restarts, loss=self.loss, estimator=estimator, seed=self.seed,
        )  # fmt: skip


def measure_and_store(
    store: Store, suite: Suite, spec: DefenseSpec, *, device: str, root: Path | None, command: str
) -> InputGradients:
    """Measure a defense on a suite's examples and store the record beside its results.

    Raises:
        InputError: as :func:`measure`; when the data are no images, the suite has no linf threat model or the defense
            cannot be loaded.
    """
    clock = provenance.start(command)
    data = load_data(suite.data, root)
    if data.info.input.kind != "image":
        raise InputError(f"input gradients: are a study of images; the inputs of {data.info.name} are waveforms")
    loaded = load_defense(spec, data.info, torch.device(device), suite.training(data))
    ready(loaded.defense)
    found = measure(loaded.defense, select_examples(suite, data), suite.threat_for(data.info), seed=suite.seed)
    about = {"defense": defense_key(spec, loaded), "provenance": provenance.finish(clock, torch.device(device))}
    record = found.model_copy(update=about)
    write(store, spec.name, record)
    return record
