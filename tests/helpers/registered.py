"""Every registered attack in every norm, with budgets that show behaviour and not strength, on a network by formula."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import torch
from lab import make_target
from torch import Tensor, nn

from attacks.adaptive.candidates import Candidate, searches
from attacks.adaptive.search import FOUND
from attacks.toolkit.surrogates import build
from bench.contracts.attack import AttackSpec
from bench.contracts.defense import BareModel, Defense, Guide
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.target import Target
from bench.plugins.registry import ATTACKS
from bench.plugins.resolve import get_attack

#: An attack without an entry runs with its defaults.
SMALL: dict[str, dict[str, Any]] = {
    "adaptive": {"passes": 50},
    "a3": {"restarts": 3, "first_steps": 3, "last_steps": 5, "initial_steps": 2},
    "alma": {"steps": 10},
    "apgd": {"steps": 10},
    "arc": {"steps": 2, "states": 2, "classes": 2},
    "autoattack": {"steps": 5, "targets": 2, "queries": 20},
    "bim": {"steps": 5},
    "boundary": {"queries": 60},
    "cgba": {"queries": 100},
    "combined-pgd": {"steps": 4, "searches": 3},
    "cw": {"steps": 10, "searches": 2},
    "ddn": {"steps": 10},
    "deepfool": {"steps": 5},
    "fab": {"steps": 5},
    "fmn": {"steps": 10},
    "genattack": {"generations": 10},
    "grid-pgd": {"steps": 5},
    "hijack": {"steps": 3, "classes": 2, "samples": 2},
    "hopskipjump": {"queries": 100},
    "lbfgs": {"steps": 5, "searches": 2},
    "logit-matching": {"steps": 5, "samples": 4, "noise": 0.02},
    "mi-fgsm": {"steps": 5},
    "noise": {"draws": 5},
    "one-pixel": {"population": 10, "generations": 5},
    "orthogonal-pgd": {"steps": 5},
    "pgd": {"steps": 5},
    "pma": {"steps": 6},
    "rays": {"queries": 60},
    "released-bpda": {"steps": 5},
    "rejection": {"steps": 5},
    "spsa": {"queries": 60, "samples": 8},
    "sigma-zero": {"steps": 30},
    "square": {"queries": 30},
    "transfer": {"steps": 5, "surrogates": 2},
    "cascade": {"steps": 3, "targets": 2, "restarts": 1, "halvings": 1, "rounds": 1, "queries": 20},
}
#: Attacks on a detector: :func:`target_of` gives the defense one.
NEED_DETECTOR = {"combined-pgd", "orthogonal-pgd", "rejection"}
#: Attacks on a transform that goes by a network: :func:`target_of` gives the defense one.
NEED_GUIDE = {"hijack"}
#: Attacks on data whose grey levels are known.
NEED_LEVELS = {"grid-pgd"}
#: Attacks that train something on data first.
NEED_DATA = {"adaptive", "transfer"}
#: Radii at which some of the examples of :func:`toy` can be fooled and others cannot, on 64 values.
EPS = {"linf": 0.03, "l2": 0.2, "l1": 0.5, "l0": 3.0}

#: Grey levels of :func:`toy`'s inputs.
LEVELS = 256


@cache
def specs() -> dict[str, AttackSpec]:
    """Every attack that is shipped here, by name."""
    return {name: get_attack(name) for name in ATTACKS.built_in()}


def norm_of(name: str) -> str:
    """linf where the attack has it."""
    norms = specs()[name].norms
    return "linf" if "linf" in norms else norms[0]


#: Attacks on piecewise linear networks, which :class:`Toy` is not: their own tests show the same.
PIECEWISE = {"region"}
#: All other attacks in all their norms.
CASES = [(name, norm) for name, spec in sorted(specs().items()) for norm in spec.norms if name not in PIECEWISE]


def formula(*shape: int, seed: float = 1.0) -> Tensor:
    """Numbers in [-1, 1] without much order, the same on every machine; float64."""
    at = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(seed + 12.9898 * at + 0.78233 * at.square() % 97).view(shape)


class Toy(nn.Module):
    """Two layers with weights by formula: ``(N, …)`` in [0, 1] to logits ``(N, 4)``."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(values, 12), nn.Linear(12, 4)
        with torch.no_grad():
            self.hidden.weight.copy_(4 * formula(12, values) / values**0.5)
            self.hidden.bias.copy_(-0.5 * self.hidden.weight.sum(1))
            self.output.weight.copy_(formula(4, 12, seed=2.0))
            self.output.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.output(self.hidden(x.flatten(1)).tanh())
        return logits


def toy(shape: tuple[int, ...], n: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Defense, Tensor, Tensor]:
    """A network, inputs of which a fifth of the values lie on an edge of the box, and the classes it gives them."""
    model = Toy(torch.Size(shape).numel()).to(dtype).eval().requires_grad_(False)
    defense = BareModel(model, DataInfo("toy", InputSpec(shape, levels=LEVELS), 4)).eval()
    x = (0.5 + 0.55 * formula(n, *shape, seed=3.0)).clamp(0, 1).to(dtype)
    return defense, x, defense(x).argmax(1)


@cache
def surrogates(shape: tuple[int, ...], count: int = 2) -> dict[str, Tensor]:
    """Weights of the transfer attack's surrogates, by formula instead of by training."""
    weights = {}
    for number in range(count):
        with torch.random.fork_rng(devices=[]):
            model = build(number, DataInfo("toy", InputSpec(shape), 4))
        for place, (name, tensor) in enumerate(model.state_dict().items()):
            scale = max(1, tensor[0].numel()) ** -0.5
            weights[f"{number}.{name}"] = (scale * formula(*tensor.shape, seed=float(place))).float()
    return weights


def radius(norm: str, shape: tuple[int, ...]) -> float:
    """:data:`EPS` for inputs of another size: perturbations of as much use to a random linear model."""
    times = torch.Size(shape).numel() / 64
    factors: dict[str, float] = {"linf": times**-0.5, "l2": 1.0, "l1": times**0.5, "l0": 1.0}
    return EPS[norm] * factors[norm]


def _shadow(x: Tensor) -> Tensor:
    """A detector's score, the same for all networks: the sum of the values, weighed by formula."""
    values = x.flatten(1)
    score: Tensor = values @ formula(values.shape[1], seed=4.0).to(values) / values.shape[1] ** 0.5
    return score


def finding() -> dict[str, Tensor]:
    """What `adaptive` could have found on validation images."""
    best = [Candidate("identity", "margin", "apgd", 1), Candidate("exact", "ce", "momentum", 1), *searches(1)]
    text = json.dumps({"best": [vars(candidate) for candidate in best], "says": "by formula"})
    return {FOUND: torch.tensor(list(text.encode()), dtype=torch.uint8)}


def _moved(x: Tensor, label: Tensor) -> Tensor:
    """Where a transform moves inputs that goes by these classes."""
    return x + 0.02 * (label.to(x) - 1.5).view(-1, *[1] * (x.ndim - 1))


def target_of(name: str, norm: str, defense: Defense, n: int, *, eps: float | None = None, **settings: Any) -> Target:
    """A target for one of :data:`CASES`, with surrogates where it needs them."""
    shape = defense.data.shape
    if name == "transfer":
        settings["prepared"] = surrogates(shape)
    if name in NEED_DETECTOR:
        defense.detect = _shadow
        settings.setdefault("threshold", 0.2)
    if name == "adaptive":
        settings["prepared"] = finding()
    if name in NEED_GUIDE:
        guide = Guide(defense.classifier, "least-likely", _moved)
        defense.guide = lambda: guide  # type: ignore[method-assign]
    knowledge = settings.pop("knowledge", specs()[name].knowledge)
    return make_target(defense, n, knowledge, norm=norm, eps=radius(norm, shape) if eps is None else eps, **settings)


def run(name: str, target: Target, x: Tensor, y: Tensor) -> Tensor:
    """The attack with its small budget."""
    spec = specs()[name]
    return spec.function(target, x, y, **spec.check(SMALL.get(name, {}), name))
