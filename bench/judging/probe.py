"""What the harness finds out about a defense before attacking it: contract, randomness, gradients, threshold."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.contracts.defense import BareModel, Defense, check_logits
from bench.contracts.errors import InputError, in_one_line
from bench.contracts.seeding import generator, seeded
from bench.contracts.threat import Lp
from bench.data.splits import Data, Split
from bench.isolation.remote import RemoteDefense
from bench.judging.behaviour import check_size, depends_on_batch, is_random
from bench.judging.elsewhere import behaviour
from bench.judging.memory import memory
from bench.judging.places import CLEAN_PLACE, margin_gradient
from bench.judging.precision import precision_lost
from bench.storing.records import Probe

#: Clean inputs that are looked at.
EXAMPLES = 32
#: Draws of a randomised transform in each of two means.
DISTANCE_DRAWS = 16


@torch.no_grad()
def check_contract(defense: Defense, x: Tensor, num_classes: int) -> Tensor:
    """Logits of a clean batch. Raises :class:`InputError` where they break the contract of ``forward``."""
    logits = defense(x)
    check_logits(logits, len(x), num_classes)
    if not torch.isfinite(logits).all():
        raise InputError("forward: logits of clean images contain NaN or infinity")
    check_size(logits)
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


def gradient_state(defense: Defense, x: Tensor, y: Tensor, threat: Lp) -> tuple[str, float]:
    """The margin's plain autograd gradient at random points of the ball: a word, and the share of zeros."""
    noise = torch.rand(x.shape, generator=generator("probe", tuple(x.shape))).to(x)
    reach = min(threat.eps, threat.high - threat.low)
    grad, _ = margin_gradient(defense, (x + reach * (2 * noise - 1)).clamp(threat.low, threat.high), y)
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
    if isinstance(defense, RemoteDefense):
        return defense.about.kind
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


def probe(
    defense: Defense,
    data: Data,
    threat: Lp,
    *,
    rate: float,
    seed: int,
    batch_size: int,
    attacked: Split | None = None,
) -> Probe:
    """Probe a defense that is ready (``bench.contracts.defense``) on validation data, and in the ball around these.

    Args:
        attacked: the inputs of the suite, to be compared with fresh ones; None: they are not.

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
        clean_random = is_random(defense, x)
        state, zeros = gradient_state(defense, x, y, threat)
        sums_to_one = torch.allclose(logits.sum(1), torch.ones(len(x), device=device), atol=1e-5)
        with torch.no_grad():
            moved = defense.transform(x)
        threshold = None
        if defense.detect is not None:
            threshold = detector_threshold(defense, data.validation, rate, device, batch_size)
        distance = transform_distance(defense, x, defense.randomized)
        clean_batch = not clean_random and depends_on_batch(defense, x)
        unseen = slice(EXAMPLES, 2 * EXAMPLES) if len(data.samples) > EXAMPLES else slice(EXAMPLES)
        around = torch.cat([x, threat.sample(x, generator("probe", "precision", seed))])
        lost = precision_lost(defense, around, y.repeat(2), seed, "probe", "precision")
        elsewhere = behaviour(defense, data, unseen, threat, seed, clean_random or defense.randomized)
        known = None
        if attacked is not None:
            with seeded(seed, "probe", "memory"):
                known = memory(defense, data, attacked, threat, batch_size)
        random_at = [*([CLEAN_PLACE] if clean_random else []), *elsewhere.random]
        batch_at = [*([CLEAN_PLACE] if clean_batch else []), *elsewhere.batch]
        return Probe(
            randomized=bool(random_at) or defense.randomized,
            declared_randomized=defense.randomized,
            random_at=random_at,
            outputs_are_probabilities=bool((logits >= 0).all() and (logits <= 1).all() and sums_to_one),
            gradient=state,  # type: ignore[arg-type]
            zero_gradient_share=zeros,
            slopes=elsewhere.slopes,
            precision_lost=lost,
            batch_dependent=bool(batch_at),
            batch_dependent_at=batch_at,
            stateful=elsewhere.past,
            mode_dependent=elsewhere.mode,
            memory=known,
            approximations=list(defense.approximations()),
            transform_distance=distance,
            transforms=moved.shape != x.shape or not torch.equal(moved, x),
            has_detector=defense.detect is not None,
            threshold=threshold,
            validation_examples=len(data.validation.ids),
        )
