"""AutoAttack: a fixed series of parameter-free attacks (Croce & Hein 2020)."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor

from attacks.gradient.apgd import apgd
from attacks.gradient.orthogonal import orthogonal_pgd
from attacks.minimum_norm.fab import fab
from attacks.score.square import square
from attacks.toolkit.composition import Stage, also_in, in_turn
from attacks.toolkit.estimators import (
    EOT,
    Estimator,
    EstimatorLike,
    as_estimator,
    eot,
    estimator_prepares,
    prepare_estimator,
)  # fmt: skip
from attacks.toolkit.spaces import spaces
from bench.contracts.attack import attack
from bench.contracts.target import Target

Version = Literal["standard", "plus", "rand"]
#: Restarts in ``plus``.
_RESTARTS = 5


@attack(
    "autoattack",
    version=1,
    randomised_version=2,
    knowledge="gradient",
    norms=("linf", "l2"),
    targeted=True,
    paper="Croce & Hein 2020, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse "
    "Parameter-free Attacks",
    url="https://arxiv.org/abs/2003.01690",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def autoattack(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    version: Version = "standard",
    steps: Annotated[int, Ge(1)] = 100,
    targets: Annotated[int, Ge(1)] = 9,
    queries: Annotated[int, Ge(1)] = 5000,
    samples: Annotated[int, Ge(1)] = 20,
    estimator: EstimatorLike = "exact",
    rescore: Annotated[int, Ge(1)] = 16,
) -> Tensor:
    """AutoAttack: APGD, FAB and Square in a row, each on what the attacks before it left standing.

    ``standard``: APGD on cross-entropy, APGD-T on the targeted DLR loss, FAB-T, Square. ``plus``: APGD on
    cross-entropy and on DLR, FAB and Square with 5 restarts, APGD-T, FAB-T. ``rand``, for randomised defenses: APGD
    on cross-entropy and on DLR with averaged gradients. With fewer than four classes, where DLR-T is not defined, the
    margin takes its place.

    Where the target has a detector, FAB's boundary is that of the classifier alone, and orthogonal PGD takes its place;
    the others are about the joint objective by themselves. As ``cascade`` does, the series runs in the space that the
    detector dislikes least, all points of the ball or those on whole grey levels, and its first attack in the other of
    the two on what is left.

    On a randomised defense the point that fools most often on fresh draws is kept, and an example leaves when its point
    has fooled on all of ``rescore`` and of 64 more; the authors' code lets it leave at its first success, which counts
    luck as strength.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        version: which series.
        steps: of each run of APGD and FAB.
        targets: classes of APGD-T and FAB-T.
        queries: of Square, whose schedule is not rescaled to them.
        samples: draws per gradient in ``rand``.
        estimator: how APGD and FAB get their gradients (``attacks.toolkit.estimators``).
        rescore: draws on which points for a randomised defense are compared.

    Returns:
        x_adv, shaped like x.
    """
    first, *others = spaces(target, x)
    order = _series(first, version, steps, targets, queries, samples, as_estimator(estimator), rescore)
    found = first.snap(in_turn(first, x, y, order, rescore))
    for other in others:
        found = also_in(target, other, x, y, found, order[:1], rescore)
    return found


def _series(
    target: Target, version: Version, steps: int, targets: int, queries: int, samples: int, of: Estimator, rescore: int
) -> list[Stage]:
    """The attacks in their order."""
    by_margin = "dlr" if target.num_classes >= 4 else "margin"
    climb = partial(apgd, steps=steps, rescore=rescore, estimator=of)
    descend = partial(fab, steps=steps, rescore=rescore, estimator=of)
    search = partial(square, queries=queries, rescale=False)
    if version == "rand":
        averaged = of if isinstance(of, EOT) else eot(of, samples)
        return [Stage(partial(climb, loss=loss, estimator=averaged)) for loss in ("ce", by_margin)]
    nearest, each = Stage(partial(descend, restarts=_RESTARTS)), Stage(partial(descend, targets=targets))
    if target.rejects:
        turns = partial(orthogonal_pgd, steps=steps, rescore=rescore, estimator=of)
        nearest, each = Stage(partial(turns, restarts=_RESTARTS)), Stage(turns)
    towards = [Stage(partial(climb, loss=by_margin, targets=targets)), each]
    if version == "standard":
        return [Stage(partial(climb, loss="ce")), *towards, Stage(search, "score")]
    return [
        Stage(partial(climb, loss="ce", restarts=_RESTARTS)),
        Stage(partial(climb, loss=by_margin, restarts=_RESTARTS)),
        nearest,
        Stage(partial(search, restarts=_RESTARTS), "score"),
        *towards,
    ]
