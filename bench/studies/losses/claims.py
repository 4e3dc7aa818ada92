"""What Ozbulak et al. 2020 claim of the losses, held against a record: a sentence each, made from its numbers."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.studies.losses.record import (
    BLURRED,
    SETTINGS,
    TRANSFERRED,
    Descent,
    DetectorCell,
    DetectorRow,
    Losses,
    Setting,
)

Verdict = Literal["holds", "does not hold", "cannot be told"]
MULTIPLIER, PERTURBATION = SETTINGS
_K = "mean iterations"
#: How the sources are written.
NAMES = {"ce": "CE", "ce_sign": "CE-sign", "logit": "logit", "m_logit": "M-logit", "joint": "all jointly"}
#: Two means differ where their paired difference is so many standard errors from 0.
_SURE = 2.0
#: Share of the logit's growth that a curve may still make in the second half of the iterations and count as level.
_LEVEL = 0.1
#: By how much a step may cost more than another and count as about as dear.
_DEARER = 0.25


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, what was found here, and whether it holds."""

    claim: str
    found: str
    verdict: Verdict

    @property
    def text(self) -> str:
        """One sentence with both."""
        return f"{self.claim}: {self.found}."


def mean(values: Sequence[float | int | None]) -> float:
    """The mean of what is known; NaN of nothing."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else math.nan


def spread(values: Sequence[float | int | None]) -> float:
    """The standard deviation of what is known."""
    known = [value for value in values if value is not None]
    return statistics.pstdev(known) if known else math.nan


def claims(record: Losses) -> list[Claim]:
    """All of them, in the order of the paper."""
    return [*_of_descents(record), *_of_circles(record), *_of_detectors(record)]


def table(record: Losses) -> list[str]:
    """Table I as lines of text."""
    return [
        f"{each.setting}, {NAMES[each.source]}: {mean(each.iterations):.1f} ± {spread(each.iterations):.1f} iterations "
        f"({sum(k is None for k in each.iterations)} of {record.n} never), {each.seconds:.2f} s, "
        f"l2 {mean(each.l2):.3f}, linf {mean(each.linf):.3f}"
        for each in record.descents
    ]


def below(a: Sequence[float | int | None], b: Sequence[float | int | None]) -> Verdict:
    """Whether ``a`` is smaller than ``b`` on average, over the examples that both know."""
    gaps = [float(y - x) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if len(gaps) < 2:
        return "cannot be told"
    gap, error = statistics.fmean(gaps), statistics.stdev(gaps) / math.sqrt(len(gaps))
    if abs(gap) <= _SURE * error:
        return "cannot be told"
    return "holds" if gap > 0 else "does not hold"


def _together(verdicts: Sequence[Verdict]) -> Verdict:
    if "does not hold" in verdicts:
        return "does not hold"
    return "cannot be told" if "cannot be told" in verdicts else "holds"


def _told(holds: bool) -> Verdict:
    return "holds" if holds else "does not hold"


def _extreme(
    record: Losses, setting: Setting, source: str, of: Callable[[Descent], Sequence[float | int | None]], most: bool
) -> tuple[Verdict, str]:
    """Whether a source has the least (or the ``most``) of something, and the means of all."""
    mine = of(record.descent(source, setting))
    others = [each for each in record.descents if each.setting == setting and each.source != source]
    verdict = _together([below(of(each), mine) if most else below(mine, of(each)) for each in others])
    return verdict, _listed({each.source: mean(of(each)) for each in record.descents if each.setting == setting})


def _listed(values: dict[str, float], form: str = ".3g") -> str:
    return ", ".join(f"{NAMES[source]} {value:{form}}" for source, value in values.items())


def _of_descents(record: Losses) -> list[Claim]:
    def iterations(each: Descent) -> Sequence[float | int | None]:
        return each.iterations

    def l2(each: Descent) -> Sequence[float | int | None]:
        return each.l2

    def linf(each: Descent) -> Sequence[float | int | None]:
        return each.linf

    found = []
    for title, setting, source, of, most, what in (
        ("At an equal multiplier CE-sign needs the fewest iterations", MULTIPLIER, "ce_sign", iterations, False, _K),
        ("At an equal perturbation CE needs the fewest iterations", PERTURBATION, "ce", iterations, False, _K),
        ("At an equal perturbation CE-sign needs the most iterations", PERTURBATION, "ce_sign", iterations, True, _K),
        ("CE needs the smallest l2 perturbation of all", PERTURBATION, "ce", l2, False, "mean l2"),
        ("CE-sign has by far the smallest linf perturbation", PERTURBATION, "ce_sign", linf, False, "mean linf"),
    ):  # fmt: skip
        verdict, numbers = _extreme(record, setting, source, of, most)
        found.append(Claim(title, f"{what} {numbers}", verdict))
    logits = {setting: (record.descent("logit", setting), record.descent("m_logit", setting)) for setting in SETTINGS}
    found.append(
        Claim(
            "M-logit needs more iterations than logit",
            "; ".join(
                f"{mean(b.iterations):.3g} and {mean(a.iterations):.3g} at an {s}" for s, (a, b) in logits.items()
            ),
            _together([below(a.iterations, b.iterations) for a, b in logits.values()]),
        )
    )
    found.append(
        Claim(
            "M-logit needs less l2 perturbation in total than logit",
            "; ".join(f"{mean(b.l2):.3g} and {mean(a.l2):.3g} at an {s}" for s, (a, b) in logits.items()),
            _together([below(b.l2, a.l2) for a, b in logits.values()]),
        )
    )
    found.append(
        Claim(
            "CE-sign needs more l2 perturbation than CE",
            "; ".join(
                f"{mean(record.descent('ce_sign', s).l2):.3g} and {mean(record.descent('ce', s).l2):.3g} at an {s}"
                for s in SETTINGS
            ),
            _together([below(record.descent("ce", s).l2, record.descent("ce_sign", s).l2) for s in SETTINGS]),
        )
    )
    return [*found, *_of_curves(record), *_of_last_images(record)]


def _of_curves(record: Losses) -> list[Claim]:
    largest = {each.source: max(each.gradient) for each in record.descents if each.setting == MULTIPLIER}
    ce = record.descent("ce", MULTIPLIER).gradient
    late = {each.source: _late(each) for each in record.descents if each.setting == PERTURBATION}
    seconds = {each.source: each.seconds for each in record.descents if each.setting == PERTURBATION}
    dearer = seconds["m_logit"] / max(min(seconds.values()), 1e-9) - 1
    return [
        Claim(
            "At an equal multiplier the steps of CE-sign are the longest",
            f"longest mean P {_listed(largest)}",
            _told(max(largest, key=lambda source: largest[source]) == "ce_sign"),
        ),
        Claim(
            "The gradient of CE falls as the descent goes on",
            f"from {ce[0]:.3g} to {ce[-1]:.2g} at an equal multiplier",
            _told(ce[-1] < 0.1 * ce[0]),
        ),
        Claim(
            "The target's logit levels off where the source is CE or CE-sign, and keeps growing where it is a logit",
            f"share of its growth that falls into the second half of the iterations {_listed(late, '.2f')}",
            _told(max(late["ce"], late["ce_sign"]) <= _LEVEL < min(late["logit"], late["m_logit"])),
        ),
        Claim(
            "M-logit takes little more time than the fastest source",
            f"{100 * dearer:+.0f} % at an equal perturbation",
            _told(dearer <= _DEARER),
        ),
    ]  # fmt: skip


def _of_last_images(record: Losses) -> list[Claim]:
    """CE against the two logits, at the ends of all descents, a claim for each setting."""
    titles = {
        BLURRED: "images made with CE are undone by blurring more often than those made with a logit",
        TRANSFERRED: "images made with CE transfer to another classifier less often than those made with a logit",
    }
    found = []
    for (key, title), setting in itertools.product(titles.items(), SETTINGS):
        last = {d.source: d.lasting[key] for d in record.descents if d.setting == setting and key in d.lasting}
        if last:
            by = f"by {record.beside} " if key == TRANSFERRED else ""
            shares = _percent({source: mean(values) for source, values in last.items()})
            found.append(
                Claim(
                    f"At an {setting} {title}",
                    f"after all iterations the class is still seen {by}of {shares}",
                    _together([below(last["ce"], last[other]) for other in ("logit", "m_logit")]),
                )
            )
    return found


def _late(each: Descent) -> float:
    """The share of the growth of the target's logit that falls into the second half of the iterations."""
    curve = each.logit_target
    growth = curve[-1] - curve[0]
    return (curve[-1] - curve[len(curve) // 2]) / growth if growth > 0 else 0.0


def _of_circles(record: Losses) -> list[Claim]:
    first, second, third = record.circles.regions
    under = record.circles.underflow
    return [
        Claim(
            "Far from the target, where another class is sure (S1), CE has a longer gradient than the logit",
            f"{first.ce:.3g} and {first.logit:.3g} on the circles",
            _told(first.ce > first.logit),
        ),
        Claim(
            "Where the target is sure (S3), the gradient of CE dies and that of the logit does not",
            f"CE {third.ce:.2g} after {second.ce:.3g} where no class is sure (S2); "
            f"logit {third.logit:.3g} after {second.logit:.3g}",
            _told(third.ce < 0.1 * second.ce and third.logit > 0.1 * second.logit),
        ),
        Claim(
            "There it becomes exactly zero as soon as it is smaller than a number can be, and its sign with it",
            "in float32 on "
            + ", ".join(
                f"{100 * u.float32:.0f} % (float64: {100 * u.float64:.0f} %) with logits × {u.scale:g}" for u in under
            ),
            _told(max(u.float32 for u in under) > 0),
        ),
    ]  # fmt: skip


def _cells(rows: list[DetectorRow]) -> dict[str, list[DetectorCell]]:
    found: dict[str, list[DetectorCell]] = {}
    for row in rows:
        for cell in row.cells:
            found.setdefault(cell.attacked_with, []).append(cell)
    return found


def balanced(row: DetectorRow, source: str) -> float:
    """Mean of the accuracies on genuine images and on adversarial ones of a source: Table II."""
    return (row.genuine + next(cell.accuracy for cell in row.cells if cell.attacked_with == source)) / 2


def overall(row: DetectorRow) -> float:
    """Mean of the accuracies on genuine images and on adversarial ones of all sources: Table III."""
    return (row.genuine + mean([cell.accuracy for cell in row.cells])) / 2


def _of_detectors(record: Losses) -> list[Claim]:
    rows = record.detectors
    alone = {s: [r for r in rows if r.trained_on == s] for s in ("ce", "ce_sign", "logit", "m_logit")}
    joint = sorted((row for row in rows if row.trained_on == "joint"), key=lambda row: row.depth)
    single = {source: mean([balanced(row, source) for row in mine]) for source, mine in alone.items()}
    jointly = {source: mean([c.accuracy for c in cells]) for source, cells in _cells(joint).items()}
    by_depth = {
        row.depth: mean(
            [balanced(r, r.trained_on) for r in rows if r.network == row.network and r.trained_on != "joint"]
        )
        for row in joint
    }
    depths = sorted(by_depth)
    evaded = [cell.evaded for row in rows for cell in row.cells]
    hardest = sorted(jointly, key=lambda source: jointly[source])[:2]
    return [
        Claim(
            "Trained on one source, a detector finds CE-sign the most easily",
            f"accuracy, mean over the networks, {_percent(single)}",
            _told(max(single, key=lambda s: single[s]) == "ce_sign"),
        ),
        Claim(
            "Trained on all, a detector finds CE-sign the most easily",
            f"share found {_percent(jointly)}",
            _told(max(jointly, key=lambda s: jointly[s]) == "ce_sign"),
        ),
        Claim(
            "Trained on all, a detector finds CE and M-logit the hardest",
            f"share found {_percent(jointly)}",
            _told(set(hardest) == {"ce", "m_logit"}),
        ),
        Claim(
            "A detector of one source is more accurate than one of all jointly",
            f"{100 * mean(list(single.values())):.1f} % and {100 * mean([overall(row) for row in joint]):.1f} %",
            _told(mean(list(single.values())) > mean([overall(row) for row in joint])),
        ),
        Claim(
            "The deeper the network, the better the detector",
            "accuracy on one source " + ", ".join(f"{d} layers {100 * by_depth[d]:.1f} %" for d in depths),
            _told(all(by_depth[a] <= by_depth[b] for a, b in itertools.pairwise(depths))),
        ),
        Claim(
            "Adversarial retraining is an effective way to find adversarial images",
            f"an attack that knows the detector reaches its class unseen on {100 * mean(evaded):.1f} % of the images, "
            f"and on {100 * min(evaded):.1f} % where it does worst (the paper did not try)",
            _told(max(evaded) <= 0.5),
        ),
    ]  # fmt: skip


def _percent(values: dict[str, float]) -> str:
    return _listed({source: 100 * value for source, value in values.items()}, ".1f") + " %"
