"""AutoAttack: a fixed series of parameter-free attacks (Croce & Hein 2020)."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor

from attacks.gradient.apgd import apgd
from attacks.minimum_norm.fab import fab
from attacks.score.square import square
from attacks.toolkit.composition import Stage, in_turn
from attacks.toolkit.estimators import EOT, EstimatorLike, as_estimator, eot, estimator_prepares, prepare_estimator
from bench.contracts.attack import attack
from bench.contracts.target import Target

Version = Literal["standard", "plus", "rand"]
#: Restarts in ``plus``.
_RESTARTS = 5


@attack(
    "autoattack",
    version=1,
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

    On a randomised defense every attack sees every example and the point that fools most often on fresh draws is
    kept; the authors' code lets an example leave at its first success, which counts luck as strength.

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
    of = as_estimator(estimator)
    by_margin = "dlr" if target.num_classes >= 4 else "margin"
    climb = partial(apgd, steps=steps, rescore=rescore, estimator=of)
    descend = partial(fab, steps=steps, rescore=rescore, estimator=of)
    search = partial(square, queries=queries, rescale=False)
    if version == "rand":
        averaged = of if isinstance(of, EOT) else eot(of, samples)
        stages = [partial(climb, loss=loss, estimator=averaged) for loss in ("ce", by_margin)]
        return in_turn(target, x, y, [Stage(stage) for stage in stages], rescore)
    towards = [Stage(partial(climb, loss=by_margin, targets=targets)), Stage(partial(descend, targets=targets))]
    if version == "standard":
        order = [Stage(partial(climb, loss="ce")), *towards, Stage(search, "score")]
    else:
        order = [
            Stage(partial(climb, loss="ce", restarts=_RESTARTS)),
            Stage(partial(climb, loss=by_margin, restarts=_RESTARTS)),
            Stage(partial(descend, restarts=_RESTARTS)),
            Stage(partial(search, restarts=_RESTARTS), "score"),
            *towards,
        ]
    return in_turn(target, x, y, order, rescore)
