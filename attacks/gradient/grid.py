"""PGD over whole grey levels: what a detector sees that looks at the grid of the data's files."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor

from attacks.gradient.pgd import Schedule, pgd
from attacks.toolkit.estimators import EstimatorLike, estimator_prepares, prepare_estimator
from attacks.toolkit.losses import LossLike
from bench.contracts.attack import attack
from bench.contracts.target import Target


@attack(
    "grid-pgd",
    version=1,
    knowledge="gradient",
    norms=("linf", "l2", "l1"),
    targeted=True,
    paper="this project; projected gradient descent: Madry et al. 2018",
    url="https://arxiv.org/abs/1706.06083",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def grid_pgd(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    steps: Annotated[int, Ge(1)] = 40,
    step_size: Annotated[float, Gt(0)] = 1.0,
    schedule: Schedule = "cosine",
    restarts: Annotated[int, Ge(1)] = 1,
    loss: LossLike = "margin",
    targets: Annotated[int, Ge(0)] = 0,
    estimator: EstimatorLike = "exact",
    rescore: Annotated[int, Ge(1)] = 16,
) -> Tensor:
    """PGD on the points of the ball that are whole grey levels of the data, as its files have them.

    Every point is moved to the nearest levels inside the ball before the defense sees it, and the gradient there is
    followed from where the point was: rounding is the identity to the gradient. What is returned lies on the levels.

    Args:
        target: gradient knowledge, of data whose grey levels are known.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        steps, step_size, schedule, restarts, loss, targets, estimator, rescore: as those of ``pgd``.

    Returns:
        x_adv, shaped like x.

    Raises:
        NotApplicable: where the data's grey levels are not known.
    """
    on_levels = target.on_levels(x)
    points = pgd(
        on_levels, x, y, steps=steps, step_size=step_size, schedule=schedule, restarts=restarts, loss=loss,
        targets=targets, estimator=estimator, rescore=rescore,
    )  # fmt: skip
    return on_levels.snap(points)
