"""What the harness finds out about a defense before attacking it: contract, randomness, gradients, threshold."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contracts.defense import BareModel, Defense, check_logits, freeze, in_training_mode
from bench.contracts.errors import InputError, in_one_line
from bench.contracts.seeding import generator, seeded
from bench.contracts.threat import Lp
from bench.data.splits import Data, Split
from bench.storing.records import Probe

#: Passes compared to find randomness, and examples they are taken on.
PASSES, EXAMPLES = 5, 32
#: What two passes of one score may differ by through rounding alone, as a share of the largest.
_ROUNDING = 1e-5
#: Draws of a randomised transform in each of two means.
DISTANCE_DRAWS = 16


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


@torch.no_grad()
def check_contract(defense: Defense, x: Tensor, num_classes: int) -> Tensor:
    """Logits of a clean batch. Raises :class:`InputError` where they break the contract of ``forward``."""
    logits = defense(x)
    check_logits(logits, len(x), num_classes)
    if not torch.isfinite(logits).all():
        raise InputError("forward: logits of clean images contain NaN or infinity")
    if defense.detect is not None:
        scores = defense.detect(x)
        if not isinstance(scores, Tensor) or tuple(scores.shape) != (len(x),) or not scores.is_floating_point():
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise InputError(f"detect: expected floating-point scores of shape ({len(x)},), got {shape}")
    return logits


@torch.no_grad()
def writes_into_input(defense: Defense, x: Tensor) -> bool:
    """Whether a pass changes the images it is given, and with them the attack that looks at them again."""
    given = x.clone()
    defense(given)
    if defense.detect is not None:
        defense.detect(given)
    return not torch.equal(given, x)


@torch.no_grad()
def is_random(defense: Defense, x: Tensor) -> bool:
    """Whether unit-normalised logits of the same batch differ by more than 1e-4 over five passes, or the detector's
    scores by more than that share of their spread over the batch."""
    draws = torch.stack([F.normalize(defense(x), dim=1) for _ in range(PASSES)])
    if (draws - draws[0]).norm(dim=2).max() > 1e-4:
        return True
    if defense.detect is None:
        return False
    scores = torch.stack([defense.detect(x) for _ in range(PASSES)]).double()
    return bool((scores - scores[0]).abs().max() > 1e-4 * scores[0].std(correction=0) + _ROUNDING * scores.abs().max())


@torch.no_grad()
def depends_on_batch(defense: Defense, x: Tensor) -> bool:
    """Whether the logits of an image change when its batch is permuted or split."""
    order = torch.arange(len(x), device=x.device).flip(0)
    whole, flipped = defense(x), defense(x[order])[order]
    halves = torch.cat([defense(part) for part in x.split(max(1, len(x) // 2))])
    tolerance = 1e-3 * (1 + whole.abs().max())  # far above float noise, far below a batch statistic's effect
    return bool((whole - flipped).abs().max() > tolerance or (whole - halves).abs().max() > tolerance)


def gradient_state(defense: Defense, x: Tensor, y: Tensor, threat: Lp) -> tuple[str, float]:
    """The margin's plain autograd gradient at random points of the ball: a word, and the share of zeros."""
    noise = torch.rand(x.shape, generator=generator("probe", tuple(x.shape))).to(x)
    reach = min(threat.eps, threat.high - threat.low)
    start = (x + reach * (2 * noise - 1)).clamp(threat.low, threat.high).requires_grad_()
    with torch.enable_grad():
        logits = defense(start)
        true = logits.gather(1, y[:, None]).squeeze(1)
        loss = (logits.scatter(1, y[:, None], -torch.inf).amax(1) - true).sum()
        if not loss.requires_grad:
            return "missing", 1.0
        try:
            (grad,) = torch.autograd.grad(loss, start, allow_unused=True)
        except RuntimeError:
            return "missing", 1.0
    if grad is None:
        return "missing", 1.0
    size = grad.flatten(1).abs().sum(1)
    if not torch.isfinite(size).all():
        return "nonfinite", float((size == 0).float().mean())
    share = float((size == 0).float().mean())
    return ("zero" if share > 0 else "ok"), share


@torch.no_grad()
def detector_threshold(defense: Defense, split: Split, rate: float, device: torch.device, batch_size: int) -> float:
    """The smallest validation score that at most a share ``rate`` of clean validation images exceeds."""
    assert defense.detect is not None
    if not len(split):
        raise InputError("its detector's threshold is set on validation images, and the data have none")
    parts = [defense.detect(part.to(device)).double().cpu() for part, _ in split.batches(batch_size)]
    scores = torch.cat(parts).sort(descending=True).values
    if not torch.isfinite(scores).all():
        raise InputError("detect: scores of clean images contain NaN or infinity")
    return float(scores[math.floor(rate * len(scores))])


@torch.no_grad()
def transform_distance(defense: Defense, x: Tensor, randomized: bool) -> float | None:
    """Root mean square of E[g(x)] - x over pixels and images; None where g changes the shape.

    Of a randomised g two independent means are taken: the mean of the product of their distances, unlike the square
    of one, does not grow with the noise that is left in a mean of a few draws.
    """
    if defense.transform(x).shape != x.shape:
        return None
    draws = DISTANCE_DRAWS if randomized else 1
    one, two = (sum(defense.transform(x) for _ in range(draws)) / draws - x for _ in range(2))
    return float((one * two).mean().clamp_min(0).sqrt())


def kind_of(defense: Defense) -> str:
    """``model ResNet`` or ``defense Madry``: what to call it in a message."""
    if isinstance(defense, BareModel):
        return f"model {type(defense.classifier).__name__}"
    return f"defense {type(defense).__name__}"


def why_it_raised(defense: Defense, x: Tensor) -> str:
    """What usually helps where a pass of ``x`` raises: "" where nothing stands out."""
    for tensor in (*defense.parameters(), *defense.buffers()):
        if tensor.is_floating_point() and tensor.dtype != x.dtype:
            theirs, ours = (str(t.dtype).removeprefix("torch.") for t in (tensor, x))
            return f"its weights are {theirs}, inputs are {ours}: call .float() on the model"
    return ""


def probe(defense: Defense, data: Data, threat: Lp, *, rate: float, seed: int, batch_size: int) -> Probe:
    """Probe a defense that is ready (see :func:`ready`) on clean validation data.

    Raises:
        InputError: where the defense breaks its contract, or raises.
    """
    device = next((p.device for p in defense.parameters()), torch.device("cpu"))
    some = data.samples.take(EXAMPLES)
    x, y = some.x.clone().to(device), some.y.to(device)
    raises = in_one_line(f"{kind_of(defense)} raised", lambda: why_it_raised(defense, x))
    with seeded(seed, "probe"), raises:
        if writes_into_input(defense, x):
            raise InputError("forward or detect writes into its input; work on a copy")
        logits = check_contract(defense, x, data.info.num_classes)
        randomized = is_random(defense, x)
        state, zeros = gradient_state(defense, x, y, threat)
        sums_to_one = torch.allclose(logits.sum(1), torch.ones(len(x), device=device), atol=1e-5)
        with torch.no_grad():
            moved = defense.transform(x)
        threshold = None
        if defense.detect is not None:
            threshold = detector_threshold(defense, data.validation, rate, device, batch_size)
        return Probe(
            randomized=randomized or defense.randomized,
            declared_randomized=defense.randomized,
            outputs_are_probabilities=bool((logits >= 0).all() and (logits <= 1).all() and sums_to_one),
            gradient=state,  # type: ignore[arg-type]
            zero_gradient_share=zeros,
            batch_dependent=not randomized and depends_on_batch(defense, x),
            approximations=list(defense.approximations()),
            transform_distance=transform_distance(defense, x, defense.randomized),
            transforms=moved.shape != x.shape or not torch.equal(moved, x),
            has_detector=defense.detect is not None,
            threshold=threshold,
            validation_examples=len(data.validation.ids),
        )
