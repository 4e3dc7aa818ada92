"""Randomised smoothing: the radius against closed forms, abstention, a randomised defense; the command end to end."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from scipy.stats import binom
from stand_ins import TINY, Coin, plugin, run_bench, write_config
from torch import Tensor

from bench.certifying.smoothing import Smoothing, certified_radius, lower_bound, smoothed_row
from bench.contracts.defense import Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.storing.certified import Smoothed
from bench.storing.reading import read_record
from bench.summary.certified import smoothed_accuracy

SIGMA = 0.3


class Half(Defense):
    """Class 1 on one side of a hyperplane; as randomised as it is told, by noise along the normal."""

    trainable = False

    def __init__(self, shape: tuple[int, ...], own_noise: float = 0.0) -> None:
        super().__init__(DataInfo("tiny", InputSpec(shape), 2))
        size = math.prod(shape)
        self.normal = torch.linspace(-1.0, 2.0, size).view(shape) / torch.linspace(-1.0, 2.0, size).norm()
        self.own_noise, self.randomized = own_noise, own_noise > 0

    def forward(self, x: Tensor) -> Tensor:
        over = ((x - 0.5) * self.normal).flatten(1).sum(1) + self.own_noise * torch.randn(len(x))
        return torch.stack([-over, over], 1)

    def at(self, distance: float) -> Tensor:
        """An input at this distance from the hyperplane."""
        return 0.5 + distance * self.normal


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_the_radius_of_a_linear_classifier_nears_its_distance_from_below(shape: tuple[int, ...]) -> None:
    defense, lost = Half(shape), []
    for draws in (100, 1000, 10_000):
        row = smoothed_row(defense, defense.at(0.4), 1, "a", Smoothing(SIGMA, draws), seed=1)
        assert row.predicted == 1 and row.radius is not None and row.radius <= 0.4
        lost.append(0.4 - row.radius)
    assert lost[0] > lost[1] > lost[2] and lost[2] < 0.025


class Mute(Half):
    """Half, which gives no number for inputs of a mean below a half."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).where((x.flatten(1).mean(1) > 0.5)[:, None], torch.nan)


def test_outputs_that_are_no_numbers_are_votes_for_no_class() -> None:
    defense = Mute((1, 8, 8))
    row = smoothed_row(defense, defense.at(0.0) - _along(defense), 0, "a", Smoothing(SIGMA, 200), seed=1)
    assert row.votes < 10 and row.radius is None


def test_noisy_inputs_are_not_clipped_to_the_box() -> None:
    defense = Half((1, 8, 8))  # this input lies outside the box; clipped, it would come closer to the hyperplane
    row = smoothed_row(defense, defense.at(0.5) - 3.0 * _along(defense), 1, "a", Smoothing(SIGMA, 10_000), seed=1)
    assert row.radius == pytest.approx(0.5, abs=0.05)


def _along(defense: Half) -> Tensor:
    """A unit vector in the hyperplane."""
    other = torch.ones_like(defense.normal)
    other -= (other * defense.normal).sum() * defense.normal
    return other / other.norm()


def test_as_many_radii_are_too_large_as_alpha_says() -> None:
    defense, above = Half((1, 2, 2)), 0
    x, truth = defense.at(0.2), 0.2
    for example in range(400):
        row = smoothed_row(defense, x, 1, str(example), Smoothing(SIGMA, 200, 10, alpha=0.1), seed=1)
        above += row.predicted == 1 and row.radius is not None and row.radius > truth
    # Whole votes make the bound a little more careful than alpha; half of alpha would give 20.
    assert binom.ppf(0.001, 400, 0.075) <= above <= binom.ppf(0.999, 400, 0.1)
    careful = [smoothed_row(defense, x, 1, f"{i}", Smoothing(SIGMA, 200, 10), seed=2).radius or 0.0 for i in range(100)]
    assert max(careful) <= truth


def test_a_randomised_classifier_s_own_draws_are_drawn_too() -> None:
    defense = Half((1, 8, 8), own_noise=0.4)  # noise of 0.5 in all along the normal
    row = smoothed_row(defense, defense.at(0.5), 1, "a", Smoothing(SIGMA, 10_000), seed=1)
    assert row.radius == pytest.approx(0.5 * SIGMA / 0.5, abs=0.02)


class OncePerBatch(Coin):
    """Tosses one coin for the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        heads = (torch.rand(1) < 0.7).float().expand(len(x))
        return torch.stack([heads, 1 - heads, heads - 2, heads - 2], 1)


def test_draws_for_a_whole_batch_are_not_counted_as_many() -> None:
    row = smoothed_row(OncePerBatch(), torch.zeros(TINY.shape), 0, "a", Smoothing(SIGMA, 2000), seed=1)
    assert row.votes == pytest.approx(1400, abs=80)


def test_an_example_whose_class_is_uncertain_abstains() -> None:
    defense = Half((1, 8, 8))
    row = smoothed_row(defense, defense.at(0.0), 1, "a", Smoothing(SIGMA, 1000), seed=1)
    assert row.radius is None and row.p_lower <= 0.5


def test_the_class_is_chosen_on_draws_of_their_own() -> None:
    """With one selection draw the class at the boundary is that of a coin, whatever the other draws say."""
    defense = Half((1, 8, 8))
    how = Smoothing(SIGMA, 1000, selection_draws=1)
    rows = [smoothed_row(defense, defense.at(0.3), 1, str(i), how, seed=1) for i in range(60)]
    wrong = [row for row in rows if row.predicted == 0]
    assert 0 < len(wrong) < 30 and all(row.radius is None and row.votes < 300 for row in wrong)


@pytest.mark.parametrize(("votes", "draws"), [(100, 100), (99, 100), (600, 1000), (1, 50)])
def test_the_bound_is_where_so_many_votes_have_probability_alpha(votes: int, draws: int) -> None:
    p = lower_bound(votes, draws, 0.001)
    assert binom.sf(votes - 1, draws, p) == pytest.approx(0.001, rel=1e-6)


def test_no_votes_and_all_votes() -> None:
    assert lower_bound(0, 10, 0.001) == 0.0 and certified_radius(0.5, SIGMA) is None
    assert lower_bound(100, 100, 0.001) == pytest.approx(0.001 ** (1 / 100))
    assert certified_radius(0.8413447460685429, SIGMA) == pytest.approx(SIGMA)


@pytest.mark.parametrize(
    "values",
    [{"sigma": 0.0}, {"sigma": math.inf}, {"sigma": math.nan}, {"sigma": 1, "draws": 0}, {"sigma": 1, "alpha": 1.0}],
)
def test_what_is_out_of_range_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(InputError, match="smoothing"):
        Smoothing(**values)  # type: ignore[arg-type]


# -- the command ------------------------------------------------------------------------------------------------


class Command:
    """`bench` on the suite ``tiny`` in a folder."""

    def __init__(self, folder: Path) -> None:
        self.results = folder / "results"
        self.config = write_config(folder / "bench.yaml", {"step": {"attack": plugin("one_step")}})

    def run(self, command: str, *more: object):
        where = ["--suite", "tiny", "--config", self.config, "--results", self.results, "--device", "cpu"]
        return run_bench(command, *where, *more)

    def smooth(self, *more: object, name: str = "Means"):
        return self.run("certify", "--defense", plugin(name), "--smoothing", 0.25, "--draws", 300, *more)

    def stored(self, name: str = "Means") -> Smoothed:
        path = self.results / "tiny" / f"stand_ins.{name}" / "@certified" / "smoothed-0.25.json"
        return read_record(path, Smoothed)


@pytest.fixture
def tiny(tmp_path: Path) -> Command:
    return Command(tmp_path)


def test_the_command_goes_on_where_it_stopped(tiny: Command) -> None:
    assert tiny.smooth("--examples", 4).code == 0
    part = tiny.stored()
    assert len(part.rows) == 4
    ended = tiny.smooth()
    whole = tiny.stored()
    assert ended.code == 0 and len(whole.rows) == 12 and whole.rows[:4] == part.rows  # their seconds as well
    assert "stand_ins.Means, smoothed by noise of sigma 0.25, 300 draws: of 12 examples" in ended.out
    assert tiny.smooth().out == ended.out and tiny.stored() == whole
    tiny.smooth("--alpha", 0.1)
    again = tiny.stored()
    assert [row.votes for row in again.rows] == [row.votes for row in whole.rows]
    assert all(new.p_lower > old.p_lower for new, old in zip(again.rows, whole.rows, strict=True) if old.votes)


def test_json_has_rows_and_accuracies(tiny: Command) -> None:
    (one,) = json.loads(tiny.smooth("--json", "--quiet").out)["smoothed"]
    accuracy = smoothed_accuracy(tiny.stored())
    assert one["defense"] == "stand_ins.Means" and len(one["record"]["rows"]) == 12
    assert one["accuracy"]["sigma"] == 0.25 and list(one["accuracy"]["certified"].values()) == [
        *accuracy.certified.values()
    ]


def test_a_randomised_defense_is_smoothed_and_one_with_a_detector_is_not(tiny: Command) -> None:
    assert tiny.smooth(name="Noisy").code == 0
    assert sum(row.radius is not None for row in tiny.stored("Noisy").rows) > 6
    ended = tiny.smooth(name="Guarded")
    assert ended.code == 1 and "Guarded: not applicable: smoothing is for classifiers" in ended.err


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--smoothing", "0.25", "--eps", "0.1"], "--eps: is not for --smoothing"),
        (["--smoothing", "0.25", "--time-limit", "1"], "--time-limit: is not for --smoothing"),
        (["--smoothing", "much"], "--smoothing: 'much' is not a number or a fraction"),
        (["--smoothing", "-1"], "smoothing: sigma -1 must be above 0"),
        (["--draws", "10"], "--draws: is for --smoothing SIGMA"),
        (["--selection-draws", "10"], "--selection-draws: is for --smoothing SIGMA"),
        (["--smoothing", "1", "--draws", "0"], "Invalid value for '--draws'"),
        (["--smoothing", "1", "--alpha", "1"], "Invalid value for '--alpha'"),
    ],
)
def test_wrong_options_are_named_in_a_line(tiny: Command, options: list[str], line: str) -> None:
    ended = tiny.run("certify", "--defense", plugin("Means"), *options)
    assert ended.code == 2 and line in ended.err and "Traceback" not in ended.err
    assert not list(tiny.results.glob("**/*.json"))


def test_report_site_and_files_show_it_apart_from_bounds_in_linf(tiny: Command, tmp_path: Path) -> None:
    assert tiny.run("evaluate", "--defense", plugin("Means")).code == 0
    before = tiny.run("report").out
    tiny.smooth()
    one = smoothed_accuracy(tiny.stored())
    assert one.text.startswith("l2 0: 91.7, l2 0.125: ") and list(one.certified)[:3] == [0.0, 0.125, 0.25]
    ended = run_bench("report", "--suite", "tiny", "--results", tiny.results)
    line = f"smoothed by noise of sigma 0.25, stand_ins.Means: certified accuracy in % by radius: {one.text}; of 12"
    assert line in ended.out and "certified to attacked" not in ended.out and line not in before
    csv = run_bench("report", "--suite", "tiny", "--results", tiny.results, "--format", "csv").out
    assert f"sigma 0.25: {one.text}" in csv
    site = tmp_path / "site"
    assert run_bench("leaderboard", "--results", tiny.results, "--out", site).code == 0
    shown = [path for path in site.rglob("*.html") if one.text in path.read_text(encoding="utf-8")]
    assert shown and any("Smoothed by noise of σ 0.25" in path.read_text(encoding="utf-8") for path in shown)
    files = [path for path in site.rglob("*.json") if f"sigma 0.25: {one.text}" in path.read_text(encoding="utf-8")]
    assert files


def test_a_file_that_cannot_be_read_is_named(tiny: Command) -> None:
    assert tiny.run("evaluate", "--defense", plugin("Means")).code == 0
    tiny.smooth()
    path = next(tiny.results.glob("**/smoothed-0.25.json"))
    path.write_text("{")
    ended = run_bench("verify", "--suite", "tiny", "--results", tiny.results, "--device", "cpu")
    assert ended.code == 1 and "smoothed-0.25.json" in ended.out
