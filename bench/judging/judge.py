"""The judge: the one place that decides whether an attack succeeded.

An adversarial input counts when the threat model allows it (of an Lp ball: finite, inside the box, inside the ball up
to ``Lp.tolerance``), it is misclassified, and not rejected by the detector at its fixed threshold. An input that breaks
a rule of the threat model is recorded with the reason and scored as the clean input: a failed attack, not an error.
In a targeted suite it has to be classified as the class to reach; any other class, the right one or not, is a failure.

Where the suite's protocol rounds, the grey levels next to a point are judged as well; the one that the defense survives
less counts and is stored, of equals that on the grey levels.

Randomised defenses are judged on fresh draws that the attack never saw, in two disjoint streams: ``select``, on
which the worst attack of an example is chosen later, and ``report``, on which it is scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.contracts.counting import Counts
from bench.contracts.defense import Defense, check_logits
from bench.contracts.levels import Levels
from bench.contracts.seeding import seeded
from bench.contracts.threat import ThreatModel
from bench.storing.records import Row


@dataclass(frozen=True)
class Draws:
    """How often a randomised defense is drawn: to choose the worst attack, and to score it."""

    select: int = 20
    report: int = 100


@dataclass(frozen=True)
class Tally:
    """Outcomes over the draws of one stream, int64 ``(N,)`` each, and the mean detector score."""

    prediction: Tensor
    correct: Tensor
    rejected: Tensor
    caught: Tensor
    score: Tensor | None
    draws: int


@torch.no_grad()
def tally(
    defense: Defense,
    x: Tensor,
    y: Tensor,
    draws: int,
    threshold: float | None,
    batch_size: int,
    *stream: object,
    towards: Tensor | None = None,
) -> Tally:
    """Run ``draws`` passes over ``x`` on the random stream named by ``stream``.

    With ``towards``, int64 ``(N,)``, every class but that one counts as correct.
    """
    n = len(x)
    correct = torch.zeros(n, dtype=torch.int64)
    rejected, caught, prediction = correct.clone(), correct.clone(), correct.clone()
    score_sum = torch.zeros(n, dtype=torch.float64)
    with seeded(*stream):
        for start in range(0, n * draws, batch_size):
            rows = torch.arange(start, min(start + batch_size, n * draws)) % n
            batch, labels = x[rows.to(x.device)], y[rows.to(y.device)]
            logits = defense(batch)
            check_logits(logits, len(batch), defense.data.num_classes)
            guess = torch.where(torch.isfinite(logits).all(1), logits.argmax(1), -1)
            right = guess == labels if towards is None else guess != towards[rows.to(towards.device)]
            refused = torch.zeros_like(right)
            if threshold is not None:
                assert defense.detect is not None
                scores = defense.detect(batch)
                refused = scores > threshold  # a NaN score rejects nothing: a defect must not help the defense
                score_sum.index_add_(0, rows, scores.double().cpu())
            correct.index_add_(0, rows, right.long().cpu())
            rejected.index_add_(0, rows, refused.long().cpu())
            caught.index_add_(0, rows, (refused & ~right).long().cpu())
            if start < n:
                first = rows[: n - start]
                prediction[first] = guess[: len(first)].cpu()
    score = None if threshold is None else score_sum / draws
    return Tally(prediction, correct, rejected, caught, score, draws)


@dataclass(frozen=True)
class Judging:
    """How a shard is judged.

    Attributes:
        threat: the ball and the box that x_adv has to stay in.
        draws: passes per stream; a deterministic defense has ``Draws(1, 1)`` and one shared pass.
        threshold: of the detector, None without one.
        batch_size: rows per pass (a randomised defense draws batch by batch).
        stream: names of the random stream (:meth:`bench.storing.keys.Key.stream`).
        clean: rows of the unattacked input, where a rejection is a failure instead of a success.
        towards: int64 ``(N,)``, the class each x_adv has to reach in a targeted suite; None: any but y.
        rounding: judge the grey levels next to each x_adv as well, and take them unless they are survived more often.
    """

    threat: ThreatModel
    draws: Draws
    threshold: float | None
    batch_size: int
    stream: tuple[object, ...]
    clean: bool = False
    towards: Tensor | None = None
    rounding: bool = False


@dataclass(frozen=True)
class Judged:
    """One row per example, and the inputs that these speak of.

    Attributes:
        x_adv: shaped as the attack returned them; points: with the clean input in place of what is not allowed, which
            is what the defense was asked.
    """

    rows: list[Row]
    x_adv: Tensor
    points: Tensor


def judge(
    defense: Defense, x: Tensor, y: Tensor, ids: list[str], x_adv: Tensor, counts: Counts, how: Judging
) -> Judged:
    """Decide which adversarial inputs count.

    Args:
        x, x_adv: ``(N, …)``; y: int64 ``(N,)``; ids: one per example.
        counts: passes that the attack spent.
    """
    reasons = how.threat.violations(x, x_adv)
    allowed = torch.tensor([reason == "ok" for reason in reasons], device=x.device)
    if x_adv.shape == x.shape:
        judged = torch.where(per_row(allowed, x), x_adv, x)
    else:
        judged = x

    def outcome(points: Tensor, draws: int, purpose: str) -> Tally:
        stream = (*how.stream, purpose)
        return tally(defense, points, y, draws, how.threshold, how.batch_size, *stream, towards=how.towards)

    def survived(found: Tally) -> Tensor:
        if how.clean:  # right and accepted: all rejections that are not of wrong outputs are of right ones
            return found.correct - (found.rejected - found.caught)
        return found.correct + found.caught

    rounded = torch.zeros(len(x), dtype=torch.bool)
    if how.rounding and not how.clean and defense.data.input.levels is not None:
        # Clean images lie on the grey levels of their files, most points of attacks do not: a defense that answers
        # otherwise between the levels gains nothing. The same draws for both, so that the choice is not luck. Of equals
        # the point on the levels counts: it is an image that could be sent, and takes little room.
        on_levels = Levels(defense.data.input, how.threat, x).snapped(judged, None)
        rounded = (on_levels != judged).flatten(1).any(1).cpu()
        if rounded.any():
            as_returned, moved = (survived(outcome(p, how.draws.select, "select")) for p in (judged, on_levels))
            rounded &= moved <= as_returned
        judged = torch.where(per_row(rounded, x), on_levels, judged)
        x_adv = torch.where(per_row(rounded, x), on_levels, x_adv) if x_adv.shape == x.shape else x_adv
    report = outcome(judged, how.draws.report, "report")
    if how.draws.select == how.draws.report == 1:
        select = report
    else:
        select = outcome(judged, how.draws.select, "select")
    away = {norm: values.tolist() for norm, values in how.threat.distances(x, judged).items()}

    columns: dict[str, list[Any]] = {
        "prediction": report.prediction.tolist(),
        "select_correct": select.correct.tolist(),
        "select_robust": survived(select).tolist(),
        "report_robust": survived(report).tolist(),
        "report_correct": report.correct.tolist(),
        "report_rejected": report.rejected.tolist(),
        "report_caught": report.caught.tolist(),
        "detector_score": [None] * len(x) if report.score is None else report.score.tolist(),
        "label": y.tolist(),
        "forward": counts.forward.tolist(),
        "backward": counts.backward.tolist(),
        "rounded": rounded.tolist(),
        "zero_gradient": counts.zero_gradient.tolist(),
        "nonfinite_gradient": counts.nonfinite_gradient.tolist(),
        "l0": [int(v) for v in away["l0"]],
        **{norm: [float(f"{v:.6g}") for v in away[norm]] for norm in ("linf", "l2", "l1")},
    }
    rows = [
        Row(id=ids[i], reason=reasons[i], **{name: values[i] for name, values in columns.items()})
        for i in range(len(x))
    ]
    return Judged(rows, x_adv, judged)


def per_row(values: Tensor, x: Tensor) -> Tensor:
    """One value per row ``(N,)``, to be broadcast over ``x (N, …)``."""
    return values.view(-1, *[1] * (x.ndim - 1)).to(x.device)
