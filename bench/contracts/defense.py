"""The defense contract: ``transform`` (the paper's g), then ``classifier`` (the paper's f).

A defense is a ``torch.nn.Module`` whose ``forward(x)`` returns logits. Everything else has a default, and
whatever a defense declares only ever helps the attacker: the harness also attacks with identity, finite
differences, transfer, score and decision attacks that need no declaration, so silence cannot raise a score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from bench.contracts.words import KINDS

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

M = TypeVar("M", bound=nn.Module)

#: Which class of a guide a transform goes by: the one it holds least likely, or most.
Picks = Literal["least-likely", "most-likely"]


@dataclass(frozen=True)
class Claim:
    """A published number, the paper's own or that of somebody who broke it, to be compared with what is measured here.

    ``standard`` and ``robust`` are in per cent, as papers print them.
    """

    data: str
    threat: str
    standard: float | None
    robust: float
    attack: str
    source: str


@dataclass(frozen=True)
class Card:
    """How a defense presents itself on the leaderboard. Every field may stay empty.

    ``claims`` are the numbers of the defense's own paper, ``breaks`` those of the papers that attacked it later.
    """

    title: str = ""
    summary: str = ""
    paper: str = ""
    url: str = ""
    family: str = "unspecified"
    tags: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    breaks: tuple[Claim, ...] = ()


@dataclass(frozen=True)
class Approximation:
    """A differentiable stand-in for ``transform``, used by BPDA.

    ``through(x)`` returns an image batch that autograd can differentiate with respect to ``x``. With
    ``exact_forward`` its *value* is already a draw of ``transform(x)`` (the approximation lives only in the
    backward pass), so the attack need not evaluate ``transform`` as well.
    """

    through: Callable[[Tensor], Tensor]
    exact_forward: bool = False


@dataclass(frozen=True)
class Guide:
    """A network that decides where ``transform`` moves an input, so that whoever steers it steers the transform.

    Attributes:
        logits: the network, ``(N, …) -> (N, K)``; autograd can differentiate it.
        picks: which of its classes at x the transform goes by.
        forced: ``(x, label (N,)) -> `` a draw of ``transform(x)`` with those classes in place of the network's choice.
    """

    logits: Callable[[Tensor], Tensor]
    picks: Picks
    forced: Callable[[Tensor, Tensor], Tensor]


class Defense(nn.Module):
    """Base class of defenses. Subclasses set ``self.classifier`` and usually override ``transform``.

    Args:
        data: the data set's name, what its inputs look like, its class count.
        **params: the variant, e.g. ``random_start=False``; a subclass names its own keyword arguments.

    ``forward`` takes a float batch ``(N, *data.shape)`` in the data's box and returns logits ``(N, num_classes)``.
    """

    card: Card = Card()
    #: True when two forward passes of one input may differ.
    randomized: bool = False
    #: True when the weights come from ``fit``; False for defenses that need no training.
    trainable: ClassVar[bool] = True
    #: Of how it classifies: raised whenever its output, its score, an approximation or what it draws changes. Stored
    #: results belong to one version. None, or a version that only a base class declares: no promise, so a change of any
    #: file of the plugin makes its results stale.
    version: ClassVar[int | None] = None
    #: Of the recipe: raised whenever ``fit`` would give other weights, which are then trained anew under another name.
    recipe_version: int | str = 1
    #: Whether the recipe defends against ``run.threat``. False: the weights are those of every threat model.
    trains_in_ball: bool = True
    #: The defense whose trained weights this one works with, if not its own: a network that exists already, in front
    #: of which it is put. Both have the same tensors; a parameter ``network`` is that of both. May depend on the data.
    weights_of: str | None = None
    #: The kinds of inputs it can be built for.
    kinds: ClassVar[tuple[str, ...]] = KINDS
    #: Distributions whose own version decides the output as well, such as ``pillow`` where a codec of it is used.
    depends: tuple[str, ...] = ()
    #: Detectors override this with a method ``(x) -> (N,)`` float: larger = more likely adversarial.
    detect: Callable[[Tensor], Tensor] | None = None

    #: Gives logits, or what :func:`as_logits` finds them in.
    classifier: nn.Module

    if TYPE_CHECKING:  # torch says Any

        def __call__(self, x: Tensor) -> Tensor: ...

    def __init__(self, data: DataInfo) -> None:
        super().__init__()
        self.data = data

    @property
    def author(self) -> type:
        """The class that a plugin's author wrote: beside its file are its checkpoints."""
        return type(self)

    @property
    def has_recipe(self) -> bool:
        """Whether its weights come from :meth:`fit`."""
        return self.trainable and type(self).fit is not Defense.fit

    def transform(self, x: Tensor) -> Tensor:
        """The pre-processing g; the identity unless overridden. Returns an image batch."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of f(g(x))."""
        return as_logits(self.classifier(self.transform(x)))

    def approximations(self) -> dict[str, Approximation]:
        """Named differentiable stand-ins for ``transform``; empty when there is nothing to approximate."""
        return {}

    def variants(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Named versions of ``transform`` that are easier to attack, such as one of fewer inner steps, or with its
        randomness fixed. What fools one of them is a candidate for the defense. Empty where there is none. One whose
        result carries no graph is differentiated as if it were the identity."""
        return {}

    def guide(self) -> Guide | None:
        """The network that ``transform`` goes by, where there is one."""
        return None

    def fit(self, run: TrainingRun) -> None:
        """Train in place from ``run.train`` (see :class:`bench.training.recipe.TrainingRun`)."""
        raise InputError(f"defense {type(self).__name__} has no training recipe (fit is not implemented)")


class BareModel(Defense):
    """Any ``nn.Module`` that maps inputs in the box of the data to logits, evaluated as it is."""

    trainable = False

    def __init__(self, model: nn.Module, data: DataInfo) -> None:
        super().__init__(data)
        self.classifier = model


class Function(nn.Module):
    """A plain function from inputs to logits as a module; of a module's method it holds that module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        owner = getattr(function, "__self__", None)
        self.owner = owner if isinstance(owner, nn.Module) else None
        self.training = self.owner is not None and self.owner.training

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def as_module(model: object) -> nn.Module:
    """A model that a caller holds: a module as it is, a plain function as a :class:`Function`.

    Raises:
        InputError: for a class, which is no model yet, and what cannot be called.
    """
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, type):
        raise InputError(f"model {model.__name__}: is a class; build it first")
    if not callable(model):
        raise InputError(f"model: expected a torch.nn.Module or a function, got {type(model).__name__}")
    return Function(model)


@dataclass(frozen=True)
class DefenseSpec:
    """How to build one defense again, in any process: a reference and its parameters."""

    reference: str
    params: dict[str, Any] = field(default_factory=dict)
    checkpoints: Path | None = None

    @property
    def name(self) -> str:
        """The name in results: ``ours`` or ``ours(random_start=False)``; a path's stem for a plugin file."""
        base, _, member = self.reference.rpartition(":")
        if not base:
            # A file or folder alone; its only defense is meant.
            label = Path(member).stem if member.endswith(".py") or "/" in member else member
        elif base == "memory":
            label = member
        elif Path(base).suffix == ".py" or "/" in base:
            label = f"{Path(base).stem}.{member}"
        else:
            label = f"{base}.{member}"
        params = ",".join(f"{key}={value}" for key, value in sorted(self.params.items()))
        return f"{label}({params})" if params else label


def as_logits(output: object) -> Tensor:
    """The logits in what a classifier returned, ``(N, num_classes)``.

    Args:
        output: a tensor; an object or a mapping with ``logits``, as Hugging Face models return; a mapping with one
            tensor; or a tuple or list whose first element is the tensor. Half-precision logits become float32.

    Raises:
        InputError: for anything else.
    """
    found: object = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if found is None and isinstance(output, Mapping):
        found = next(iter(output.values())) if len(output) == 1 else output.get("logits")
    elif found is None and isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        keys = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        raise InputError(
            f"forward: expected logits, a tensor (N, classes), or an object, mapping or tuple that holds them as "
            f"`logits` or first; got {type(output).__name__}{keys}"
        )
    return found.float() if found.dtype in (torch.float16, torch.bfloat16) else found


def check_logits(logits: Tensor, n: int, num_classes: int) -> None:
    """Raise :class:`InputError` unless ``logits`` is floating ``(n, num_classes)``."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = getattr(logits, "dtype", type(logits).__name__)
        raise InputError(f"forward: expected floating-point logits, got {kind}")
    if tuple(logits.shape) != (n, num_classes):
        raise InputError(f"forward: expected logits of shape {(n, num_classes)}, got {tuple(logits.shape)}")


def count_parameters(module: nn.Module) -> int:
    """Number of scalar parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def in_training_mode(module: nn.Module) -> list[str]:
    """Names of the submodules left in training mode (the empty string is the module itself)."""
    return [name for name, child in module.named_modules() if child.training]


def freeze(module: M) -> M:
    """Put a module in evaluation mode with parameters that ask for no gradient; returns it."""
    return module.eval().requires_grad_(False)


def ready(defense: Defense) -> Defense:
    """Put a defense in evaluation mode for good, without guessing what the author of a bare model meant.

    Raises:
        InputError: when a bare model comes in training mode, or a defense refuses to leave it.
    """
    for part in defense.modules():  # the whole, or what stands behind a detector
        if isinstance(part, BareModel) and in_training_mode(part.classifier):
            kind = type(part.classifier).__name__
            raise InputError(f"model {kind}: is in training mode; call .eval() before returning it")
    freeze(defense)
    stuck = in_training_mode(defense)
    if stuck:
        raise InputError(f"defense {type(defense).__name__}: {stuck[0] or 'it'} stays in training mode after eval()")
    return defense


__all__ = [
    "Approximation",
    "BareModel",
    "Card",
    "Claim",
    "Defense",
    "DefenseSpec",
    "Function",
    "Guide",
    "as_logits",
    "as_module",
    "check_logits",
    "count_parameters",
    "freeze",
    "in_training_mode",
    "ready",
]
