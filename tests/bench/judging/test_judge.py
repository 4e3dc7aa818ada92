"""The judge decides alone: rules of the threat model, detectors, NaN outputs, and fair draws."""

from __future__ import annotations

import pytest
import torch
from stand_ins import Coin, Scripted, ScriptedDetector, linear_defense, picture
from torch import Tensor

from bench.contracts.counting import Counts
from bench.contracts.defense import Defense
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.seeding import seeded
from bench.contracts.threat import Lp
from bench.judging.judge import Draws, Judging, judge, tally
from bench.storing.records import Row

LINF = Lp("linf", 0.3)
ONE = Draws(1, 1)


def no_counts(n: int) -> Counts:
    return Counts(*torch.zeros(4, n, dtype=torch.int64))


def verdict(
    defense: torch.nn.Module,
    x: Tensor,
    x_adv: Tensor,
    y: list[int],
    threat: Lp = LINF,
    draws: Draws = ONE,
    threshold: float | None = None,
    batch_size: int = 64,
    clean: bool = False,
) -> list[Row]:
    return judge(
        defense.eval(),  # type: ignore[arg-type]
        x,
        torch.tensor(y),
        [f"example/{i}" for i in range(len(x))],
        x_adv,
        no_counts(len(x)),
        Judging(threat, draws, threshold, batch_size, ("test", 0), clean),
    ).rows


# -- rules of the threat model ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (0.1 + 0.5, "outside the ball"),
        (0.1 - 0.11, "outside the box"),
        (float("nan"), "not finite"),
        (float("inf"), "not finite"),
    ],
)
def test_a_violation_is_recorded_with_its_reason_and_scored_as_the_clean_input(value: float, reason: str) -> None:
    x = torch.stack([picture(0.1), picture(0.1)])
    x_adv = torch.stack([picture(value), picture(0.35)])  # the second is allowed, and of another class
    bad, good = verdict(Scripted(), x, x_adv, [0, 0])
    assert bad.reason.startswith(reason)
    assert (bad.prediction, bad.report_robust, bad.select_robust) == (0, 1, 1)
    assert (bad.linf, bad.l2, bad.l1, bad.l0) == (0, 0, 0, 0)
    assert good.reason == "ok"
    assert (good.prediction, good.report_robust) == (1, 0)


def test_a_violation_of_a_wrong_clean_input_stays_wrong() -> None:
    (row,) = verdict(Scripted(), picture(0.9)[None], picture(float("nan"))[None], [0])
    assert (row.prediction, row.report_robust) == (3, 0)


@pytest.mark.parametrize("shape", [(2, 1, 1, 2), (2, 2, 2), (1, 1, 2, 2), (2, 3, 2, 2)])
def test_another_shape_is_refused_for_the_whole_shard(shape: tuple[int, ...]) -> None:
    x = torch.full((2, 1, 2, 2), 0.1)
    rows = verdict(Scripted(), x, torch.zeros(shape), [0, 0])
    for row in rows:
        assert row.reason == f"shape {shape} instead of (2, 1, 2, 2)"
        assert row.report_robust == 1


def test_the_ball_has_the_stated_tolerance_and_no_more() -> None:
    eps = LINF.eps
    x = torch.zeros(3, 1, 2, 2)
    x_adv = x.clone()
    for i, distance in enumerate((eps, eps + 1e-6, eps * 1.01)):
        x_adv[i, 0, 0, 0] = distance
    assert [reason.partition(":")[0] for reason in LINF.violations(x, x_adv)] == ["ok", "ok", "outside the ball"]


def test_the_box_has_no_tolerance() -> None:
    x = torch.full((2, 1, 2, 2), 0.9)
    x_adv = x.clone()
    x_adv[0, 0, 0, 0], x_adv[1, 0, 0, 0] = 1.0, 1.0 + 1e-6
    assert [reason.partition(":")[0] for reason in LINF.violations(x, x_adv)] == ["ok", "outside the box"]


@pytest.mark.parametrize(
    ("norm", "eps", "allowed"),
    [
        *[("linf", 0.3, True), ("linf", 0.2, False), ("l2", 0.5, True), ("l2", 0.4, False)],
        *[("l1", 0.75, True), ("l1", 0.7, False), ("l0", 3, True), ("l0", 2, False)],
    ],
)
def test_each_norm_measures_its_own_distance(norm: str, eps: float, allowed: bool) -> None:
    x = torch.zeros(1, 1, 2, 2)
    x_adv = torch.tensor([[[[0.3, 0.2], [0.25, 0.0]]]])  # linf 0.3, l2 0.439, l1 0.75, l0 3
    (reason,) = Lp(norm, eps).violations(x, x_adv)  # type: ignore[arg-type]
    assert (reason == "ok") is allowed


def test_the_row_records_distances_and_the_passes_spent() -> None:
    counts = no_counts(1)
    for what, times in (("forward", 7), ("backward", 5), ("zero_gradient", 2), ("nonfinite_gradient", 1)):
        counts.add(what, None, times=times)
    x, x_adv = torch.zeros(1, 1, 2, 2), torch.tensor([[[[0.3, 0.0], [0.0, 0.1]]]])
    (row,) = judge(
        Scripted().eval(), x, torch.tensor([0]), ["a"], x_adv, counts, Judging(LINF, ONE, None, 8, ("s",))
    ).rows
    assert (row.forward, row.backward, row.zero_gradient, row.nonfinite_gradient) == (7, 5, 2, 1)
    assert (row.linf, row.l1, row.l0) == (0.3, 0.4, 2)
    assert row.l2 == pytest.approx(0.1**0.5, rel=1e-5)


# -- outputs that are not numbers -------------------------------------------------------------------------------


def test_a_nan_output_is_no_prediction_and_never_robust() -> None:
    (row,) = verdict(Scripted(), picture(0.1, nan=0.4)[None], picture(0.1, nan=0.6)[None], [0])
    assert row.reason == "ok"
    assert (row.prediction, row.report_robust, row.report_correct, row.select_robust) == (-1, 0, 0, 0)


# -- detectors --------------------------------------------------------------------------------------------------


def test_with_a_detector_a_misclassified_input_survives_when_it_is_rejected() -> None:
    x = torch.stack([picture(0.1, 0.0)] * 4)
    x_adv = torch.stack([picture(0.1, 0.1), picture(0.1, 0.3), picture(0.4, 0.1), picture(0.4, 0.3)])
    rows = verdict(ScriptedDetector(), x, x_adv, [0] * 4, threshold=0.2)
    assert [row.report_robust for row in rows] == [1, 1, 0, 1]
    assert [row.report_correct for row in rows] == [1, 1, 0, 0]
    assert [row.report_rejected for row in rows] == [0, 1, 0, 1]
    assert [row.report_caught for row in rows] == [0, 0, 0, 1]
    assert [row.detector_score for row in rows] == pytest.approx([0.1, 0.3, 0.1, 0.3])


def test_a_clean_input_counts_only_when_it_is_right_and_accepted() -> None:
    x = torch.stack([picture(0.1, 0.1), picture(0.1, 0.3), picture(0.4, 0.1), picture(0.4, 0.3)])
    rows = verdict(ScriptedDetector(), x, x, [0] * 4, threshold=0.2, clean=True)
    assert [row.report_robust for row in rows] == [1, 0, 0, 0]


def test_a_score_at_the_threshold_is_accepted() -> None:
    (row,) = verdict(ScriptedDetector(), picture(0.1)[None], picture(0.3, 0.25)[None], [0], threshold=0.25)
    assert (row.report_rejected, row.report_robust) == (0, 0)


def test_a_nan_score_rejects_nothing() -> None:
    class Broken(Scripted):
        def detect(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return torch.full((len(x),), torch.nan)

    (row,) = verdict(Broken(), picture(0.1)[None], picture(0.3)[None], [0], threshold=0.2)
    assert row.report_rejected == 0


def test_without_a_detector_there_is_no_score() -> None:
    (row,) = verdict(Scripted(), picture(0.1)[None], picture(0.3)[None], [0])
    assert row.detector_score is None


# -- draws ------------------------------------------------------------------------------------------------------

PROBABILITIES = [0.0, 0.2, 0.5, 0.8, 1.0]


def coins() -> Tensor:
    return torch.stack([picture(p) for p in PROBABILITIES])


def test_a_deterministic_defense_is_judged_by_one_draw() -> None:
    calls = []

    class Counting(Scripted):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().forward(x)

    verdict(Counting(), torch.zeros(3, 1, 2, 2), torch.zeros(3, 1, 2, 2), [0] * 3)
    assert calls == [3]


def test_a_randomised_defense_is_judged_on_both_streams() -> None:
    rows = verdict(Coin(), coins(), coins(), [0] * 5, draws=Draws(20, 100), batch_size=5)
    # The same, one draw at a time.
    expected = {}
    for stream, draws in (("report", 100), ("select", 20)):
        with seeded("test", 0, stream):
            expected[stream] = sum((Coin()(coins()).argmax(1) == 0).long() for _ in range(draws)).tolist()  # type: ignore[union-attr]
    assert [row.report_robust for row in rows] == [row.report_correct for row in rows] == expected["report"]
    assert [row.select_robust for row in rows] == [row.select_correct for row in rows] == expected["select"]
    assert expected["report"][0] == 0 < expected["report"][1] < expected["report"][3] < expected["report"][4] == 100


def test_the_streams_are_disjoint_and_reproducible() -> None:
    first, second = Coin(), Coin()
    rows = verdict(first, coins(), coins(), [0] * 5, draws=Draws(20, 100))
    again = verdict(second, coins(), coins(), [0] * 5, draws=Draws(20, 100))
    assert rows == again
    assert first.drawn == second.drawn
    assert len(first.drawn) == len(set(first.drawn)) == 5 * 120  # no number serves both streams


def test_the_draws_do_not_depend_on_global_randomness_and_leave_it_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    rows = verdict(Coin(), coins(), coins(), [0] * 5, draws=Draws(2, 3))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert verdict(Coin(), coins(), coins(), [0] * 5, draws=Draws(2, 3)) == rows


def test_equal_numbers_of_draws_are_still_two_streams() -> None:
    rows = verdict(Coin(), coins(), coins(), [0] * 5, draws=Draws(50, 50))
    assert [row.select_robust for row in rows] != [row.report_robust for row in rows]


def test_the_prediction_is_that_of_the_first_reporting_draw() -> None:
    with seeded("test", 0, "report"):
        first = Coin()(coins()).argmax(1).tolist()
    rows = verdict(Coin(), coins(), coins(), [0] * 5, draws=Draws(2, 3), batch_size=5)
    assert [row.prediction for row in rows] == first


@pytest.mark.parametrize("draws", [ONE, Draws(3, 7)])
def test_the_batch_size_does_not_change_the_rows_of_a_deterministic_defense(draws: Draws) -> None:
    x = torch.rand(7, 1, 2, 2)
    y = [0, 1, 2, 3, 0, 1, 2]
    rows = [verdict(linear_defense(), x, x, y, draws=draws, batch_size=size) for size in (1, 3, 7, 1000)]
    assert rows[0] == rows[1] == rows[2] == rows[3]
    assert {row.report_correct for row in rows[0]} == {0, draws.report}


def test_tally_of_several_batches_sums_over_all_draws() -> None:
    x = torch.stack([picture(0.1), picture(0.4), picture(0.9)])
    outcome = tally(Scripted().eval(), x, torch.tensor([0, 0, 3]), 10, None, 4, "s")
    assert outcome.correct.tolist() == [10, 0, 10]
    assert outcome.prediction.tolist() == [0, 1, 3]
    assert outcome.rejected.tolist() == outcome.caught.tolist() == [0, 0, 0]


# -- grey levels ------------------------------------------------------------------------------------------------


class _OffLevelsOnly(Defense):
    """Right wherever a value lies between the grey levels 0, ½ and 1; else class 1 above a quarter."""

    def forward(self, x: Tensor) -> Tensor:
        value = x[:, 0, 0, 0]
        between = (2 * value - (2 * value).round()).abs() > 1e-3
        return torch.stack([torch.where(between, 1.0, 0.25), torch.where(between, 0.0, value)], 1)


def _on_three_levels(value: float, rounding: bool) -> tuple[Row, Tensor]:
    data = DataInfo("three-levels", InputSpec((1, 1, 1), levels=3), 2)
    x, zeros = torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.int64)
    how = Judging(Lp("linf", 0.6), ONE, None, 8, ("s",), rounding=rounding)
    found = judge(_OffLevelsOnly(data).eval(), x, zeros, ["a"], torch.full_like(x, value), no_counts(1), how)
    return found.rows[0], found.x_adv


@pytest.mark.parametrize(("rounding", "robust", "kept"), [(False, 1, 0.4), (True, 0, 0.5)])
def test_a_point_is_judged_on_the_grey_levels_next_to_it_as_well(rounding: bool, robust: int, kept: float) -> None:
    row, x_adv = _on_three_levels(0.4, rounding)
    assert (row.report_robust, row.rounded, x_adv.item()) == (robust, rounding, pytest.approx(kept))


@pytest.mark.parametrize(("value", "kept"), [(0.1, 0.0), (0.6, 0.5)])
def test_of_equals_the_point_on_the_grey_levels_counts(value: float, kept: float) -> None:
    x = torch.zeros(1, 1, 2, 2)
    how = Judging(Lp("linf", 0.6), ONE, None, 8, ("s",), rounding=True)
    defense = Scripted(DataInfo("three-levels", InputSpec((1, 2, 2), levels=3), 4)).eval()
    found = judge(defense, x, torch.zeros(1, dtype=torch.int64), ["a"], picture(value)[None], no_counts(1), how)
    assert (found.rows[0].rounded, found.x_adv[0, 0, 0, 0].item()) == (True, pytest.approx(kept))
