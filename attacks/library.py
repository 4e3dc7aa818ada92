"""Any attack on any model, without the harness: ``attacks.run("pgd", model, x, y, norm="linf", eps=8/255)``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.contracts.answers import predictions
from bench.contracts.attack import AttackSpec
from bench.contracts.defense import BareModel, Defense, Function, as_logits, as_module, in_training_mode
from bench.contracts.errors import InputError, NotApplicable, in_one_line
from bench.contracts.inputs import DataInfo, InputSpec, as_inputs, as_labels, check_inputs, check_labels
from bench.contracts.seeding import seeded
from bench.contracts.target import Target
from bench.contracts.threat import Lp
from bench.contracts.words import as_eps
from bench.plugins.resolve import get_attack

#: What inputs and labels may come in.
Given = Tensor | NDArray[np.generic] | Sequence[Any]


@dataclass(frozen=True)
class Result:
    """What an attack achieved.

    Attributes:
        x_adv: shaped like x, inside the ball and the box wherever ``success``.
        success: bool ``(N,)``: misclassified (classified as its target) in one fresh pass, finite and inside the
            threat model, and accepted where there is a ``threshold``.
        forward: forward passes of the model per example, int64 ``(N,)``; backward: likewise.
        notes: what was noticed about gradients and logits.
    """

    x_adv: Tensor
    success: Tensor
    forward: Tensor
    backward: Tensor
    notes: tuple[str, ...]


def run(
    name: str,
    model: nn.Module | Callable[[Tensor], Any],
    x: Given,
    y: Given,
    *,
    norm: str = "linf",
    eps: float | str | None = None,
    towards: Given | None = None,
    seed: int = 0,
    low: float | None = None,
    high: float | None = None,
    randomized: bool | None = None,
    threshold: float | None = None,
    batch_size: int = 512,
    **params: Any,
) -> Result:
    """Run one attack on one batch.

    Args:
        name: a registered attack, ``file.py:function`` or ``module:function``.
        model: maps inputs in [low, high] to logits ``(N, K)``: a module in evaluation mode, or a plain function; a
            :class:`Defense` is attacked as what it declares itself to be.
        x: floating-point ``(N, C, H, W)``, ``(N, C, T)`` or ``(N, D)`` in [low, high], in the model's dtype and on its
            device; y: int64 ``(N,)``. NumPy arrays and lists are converted to that dtype and device (floating-point
            ones, and for y integers).
        norm: ``linf``, ``l2``, ``l1`` or ``l0``; eps: radius in the units of x (a number of pixels or times
            in l0), a number or a fraction such as ``"8/255"``. None, for minimum-norm attacks: the whole box is
            allowed, and the attack shortens the perturbation as far as its budget takes it.
        towards: int64 ``(N,)``, the class each example has to reach; None: any class but y will do.
        seed: decides every random number; global random states are left as they were.
        low, high: the box of the values (default: what a :class:`Defense` says, else [0, 1]).
        randomized: whether two passes may differ (default: what a :class:`Defense` says, else False).
        threshold: of the detector of a :class:`Defense` (``detect``): inputs with a score above it are rejected, which
            is no success, and the attack is shown so. None: as if there were no detector.
        batch_size: rows per pass; changes nothing but float noise for a deterministic model.
        **params: parameters of the attack (``bench list attacks``).

    Raises:
        InputError: for inputs outside [low, high] or in bytes, labels of the wrong type or range, a model in training
            mode, logits of the wrong shape or not finite, an unknown attack or parameter, a threshold where there is no
            detector.
        NotApplicable: when the attack lacks the norm, a targeted form, or a form without eps.
    """
    spec = get_attack(name)
    module = as_module(model)
    x = as_inputs(x, _sample(module))
    given = _input_spec(module, x, low, high)
    check_inputs(x, given, "x")
    if not len(x):
        raise InputError("x: holds no inputs")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size: {batch_size!r} must be a whole number of at least 1")
    if eps is None:
        if not spec.minimum_norm:
            raise NotApplicable(f"{spec.name}: needs eps, being no minimum-norm attack")
        params = {"stop_inside": False, **params}
    radius = _whole_box(norm, given) if eps is None else as_eps(eps)
    threat = Lp(norm, radius, given.low, given.high)  # type: ignore[arg-type]
    defense = _as_defense(module, x, given)
    y = as_labels(y, x.device)
    if threshold is not None and (defense.detect is None or not math.isfinite(threshold)):
        why = "is not finite" if defense.detect is not None else f"{type(module).__name__} has no detector (detect)"
        raise InputError(f"threshold {threshold}: {why}")
    check_labels(y, defense.data.num_classes, "y")
    if len(y) != len(x):
        raise InputError(f"y: {len(y)} labels for {len(x)} inputs")
    if towards is not None:
        if not spec.targeted:
            raise NotApplicable(f"{spec.name} has no targeted form")
        towards = as_labels(towards, x.device, "towards")
        check_labels(towards, defense.data.num_classes, "towards")
        if towards.shape != y.shape or (towards == y).any():
            raise InputError("towards: expected one class other than y per image")
    checked = _checked(spec, threat, params)
    random = defense.randomized if randomized is None else randomized
    generator = torch.Generator().manual_seed(seed)
    target = Target(
        defense,
        threat,
        len(x),
        knowledge=spec.knowledge,
        generator=generator,
        randomized=random,
        threshold=threshold,
        batch_size=batch_size,
        towards=towards,
    )
    x = x.detach().contiguous()
    with seeded(seed, "optimise"):
        x_adv = spec.function(target, x, y, **checked).detach()
    allowed = torch.tensor([reason == "ok" for reason in threat.violations(x, x_adv)], device=x.device)
    with seeded(seed, "report"), torch.no_grad():
        logits = torch.cat([defense(part) for part in x_adv.split(batch_size)])
        rejected = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        if threshold is not None and defense.detect is not None:
            rejected = torch.cat([defense.detect(part) for part in x_adv.split(batch_size)]) > threshold
    guess = predictions(logits)
    success = allowed & ~rejected & (guess != y if towards is None else guess == towards)
    counts = target.counts
    broken = int((~torch.isfinite(logits).all(1)).sum())
    if broken:
        counts.notes.add(f"{broken} of {len(x)} adversarial images give NaN or infinity, which counts as misclassified")
    return Result(x_adv, success, counts.forward, counts.backward, tuple(sorted(counts.notes)))


def _sample(model: nn.Module) -> Tensor:
    """A tensor of the model's dtype and on its device: its first floating-point one, else float32 on the CPU."""
    held = (tensor for tensors in (model.parameters(), model.buffers()) for tensor in tensors)
    return next((tensor.detach() for tensor in held if tensor.is_floating_point()), torch.empty(0))


def _input_spec(model: nn.Module, x: Tensor, low: float | None, high: float | None) -> InputSpec:
    """Inputs shaped like x, in the box that is asked for, else that of a :class:`Defense`'s data, else [0, 1]."""
    known = model.data.input if isinstance(model, Defense) else InputSpec((1,))
    box = (known.low if low is None else low, known.high if high is None else high)
    return InputSpec(tuple(x.shape[1:]), *box, kind="image" if x.ndim == 4 else "waveform")


def _whole_box(norm: str, spec: InputSpec) -> float:
    """A radius that no point of the box exceeds."""
    side, values = spec.high - spec.low, math.prod(spec.shape)
    positions = values if len(spec.shape) == 1 else values // spec.shape[0]
    radii: dict[str, float] = {"linf": side, "l2": side * values**0.5, "l1": side * values, "l0": float(positions)}
    return radii.get(norm, side)


def _as_defense(model: nn.Module, x: Tensor, given: InputSpec) -> Defense:
    if in_training_mode(model):
        raise InputError(f"model {_named(model)}: is in training mode; call .eval() first")
    for kind, tensor in (("parameters", next(model.parameters(), x)), ("buffers", next(model.buffers(), x))):
        if tensor.is_floating_point() and (tensor.dtype, tensor.device) != (x.dtype, x.device):
            theirs = f"{tensor.dtype} on {tensor.device}"
            raise InputError(f"x: {x.dtype} on {x.device}, but the model's {kind} are {theirs}")
    called = f"model {_named(model)}"
    with torch.no_grad(), seeded("shape"), in_one_line(f"{called} raised"):
        logits = as_logits(model(x[:1]))
    if logits.ndim != 2 or len(logits) != 1 or not logits.is_floating_point():
        raise InputError(f"{called}: expected floating-point logits of shape (1, K), got {tuple(logits.shape)}")
    if not torch.isfinite(logits).all():
        raise InputError(f"{called}: logits of clean images contain NaN or infinity")
    if isinstance(model, Defense):
        return model
    return BareModel(model, DataInfo("given", given, logits.shape[1])).eval()


def _named(model: nn.Module) -> str:
    name = getattr(model.function, "__name__", "") if isinstance(model, Function) else ""
    return name or type(model).__name__


def _checked(spec: AttackSpec, threat: Lp, params: dict[str, Any]) -> dict[str, Any]:
    if threat.norm not in spec.norms:
        raise NotApplicable(f"{spec.name} has no {threat.norm} version ({', '.join(spec.norms)})")
    checked = spec.check(params, spec.name)
    if spec.prepare is not None and spec.prepares(**checked):
        raise NotApplicable(f"{spec.name}: has to be trained on data first; use bench evaluate")
    return checked
