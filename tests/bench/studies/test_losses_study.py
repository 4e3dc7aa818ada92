"""The study of losses: descents on linear models, whose steps are known, detectors, circles, claims, and its page."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from small_bench import STEP, Bench
from stand_ins import plugin, run_bench
from torch import Tensor, nn

from bench.contracts.defense import Defense, DefenseSpec
from bench.contracts.detector import Detector, WithDetector
from bench.contracts.inputs import DataInfo, InputSpec
from bench.studies.losses.circles import measure_circles
from bench.studies.losses.claims import PERTURBATION, below, claims
from bench.studies.losses.descent import KAPPA, Step, blurred, descend, other_classes, perturbation, trace
from bench.studies.losses.detectors import adaptive
from bench.studies.losses.measure import Budget, measure_and_store
from bench.studies.losses.record import BLURRED, TRANSFERRED, Losses, read, write
from bench.suites.reading import load_config
from leaderboard import build

MULTIPLIER = "equal multiplier"
#: Rows of a linear model of three classes over two values; the box is far away.
W = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])
INFO = DataInfo("plane", InputSpec((2,), -100.0, 100.0, "waveform"), 3)


class Plane(Defense):
    """Logits Wx."""

    trainable = False

    def __init__(self, weights: Tensor = W) -> None:
        super().__init__(INFO)
        self.classifier = nn.Linear(2, len(weights), bias=False)
        self.classifier.weight.data = weights.clone()


class Upper(Detector):
    """Rejects what lies high: the score is the second value."""

    trainable = False

    def detect(self, x: Tensor) -> Tensor:
        return x[:, 1]


def test_the_sources_are_the_gradients_of_their_losses() -> None:
    x, t = torch.tensor([[3.0, 1.0], [0.5, 2.0]]), torch.tensor([1, 0])
    p = (x @ W.T).softmax(1)
    of_ce = p @ W - W[t]
    assert torch.allclose(perturbation(Plane(), x, t, "ce")[0], of_ce, atol=1e-6)
    assert torch.equal(perturbation(Plane(), x, t, "ce_sign")[0], of_ce.sign())
    assert torch.allclose(perturbation(Plane(), x, t, "logit")[0], -W[t])
    best_other = torch.tensor([0, 1])
    assert torch.allclose(perturbation(Plane(), x, t, "m_logit")[0], W[best_other] - W[t])


def test_the_margin_is_of_no_interest_beyond_kappa() -> None:
    x = torch.tensor([[0.0, (KAPPA + 1) / 2]])
    assert perturbation(Plane(), x, torch.tensor([1]), "m_logit")[0].eq(0).all()
    assert perturbation(Plane(), x, torch.tensor([1]), "logit")[0].ne(0).any()


@pytest.mark.parametrize("setting", [MULTIPLIER, PERTURBATION])
def test_a_linear_class_is_reached_after_the_known_number_of_steps(setting: str) -> None:
    """With two classes M-logit closes the margin by ‖w_t - w_y‖ for every unit of the step."""
    weights = W[:2]
    x, y, t = torch.tensor([[3.0, 0.1], [1.0, 0.1]]), torch.tensor([0, 0]), torch.tensor([1, 1])
    slope = (weights[1] - weights[0]).norm()
    size = 0.05
    length = size * (slope if setting == MULTIPLIER else 1.0)
    margin = (x @ (weights[0] - weights[1])) / slope
    found = trace(Plane(weights), x, y, t, "m_logit", Step(setting, size), 80)  # type: ignore[arg-type]
    expected = [math.floor(float(m / length)) + 1 for m in margin]
    assert found.iterations == expected
    assert found.l2 == pytest.approx([k * float(length) for k in expected], rel=1e-3)
    stopped = descend(Plane(weights), x, t, "m_logit", Step(setting, size), 80)  # type: ignore[arg-type]
    assert stopped.reached.all()
    assert (stopped.x_adv - x).norm(dim=1).tolist() == pytest.approx(found.l2, rel=1e-3)


def test_the_curves_are_those_of_the_classes_to_leave_and_to_reach() -> None:
    found = trace(Plane(W[:2]), torch.tensor([[3.0, 0.1]]), torch.tensor([0]), torch.tensor([1]), "ce",
                  Step(PERTURBATION, 0.05), 100)  # fmt: skip
    assert found.steps[0] == 0 and found.steps[-1] == 100
    assert found.logit_initial[0] == pytest.approx(3.0) and found.logit_target[0] == pytest.approx(0.2)
    assert found.softmax_initial[0] > 0.9 and found.softmax_target[-1] > 0.9


def test_a_step_of_equal_perturbation_is_as_long_however_small_the_gradient() -> None:
    tiny = torch.tensor([[3e-30, 4e-30], [3.0, 4.0], [0.0, 0.0]])
    assert Step(PERTURBATION, 0.5).along(tiny).norm(dim=1).tolist() == pytest.approx([0.5, 0.5, 0.0])


def test_the_ends_of_a_descent_are_shown_to_other_judges() -> None:
    """Three steps of 0.1 suffice for the first image alone; the second judge sees the classes the other way round."""
    weights = W[:2]
    x, t = torch.tensor([[3.0, 1.4], [3.0, 0.1]]), torch.tensor([1, 1])
    judges = {"same": Plane(weights), "swapped": Plane(weights.flip(0))}
    found = trace(Plane(weights), x, 1 - t, t, "m_logit", Step(PERTURBATION, 0.1), 3, judges)
    assert found.lasting == {"same": [1, None], "swapped": [0, None]}


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_blurring_keeps_size_brightness_and_borders(shape: tuple[int, ...]) -> None:
    flat, point = torch.full((2, *shape), 0.3), torch.zeros(1, *shape)
    point[..., 4, 4] = 16.0
    assert torch.allclose(blurred(flat), flat)
    expected = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])
    assert torch.equal(blurred(point)[0, 0, 3:6, 3:6], expected) and blurred(point).sum() == 16 * shape[0]


def test_what_never_reaches_its_class_is_told_apart() -> None:
    found = trace(
        Plane(), torch.tensor([[3.0, 0.1]]), torch.tensor([0]), torch.tensor([1]), "ce", Step(PERTURBATION, 0.01), 3
    )
    assert found.iterations == [None] and found.l2 == [None]


def test_the_other_classes_are_all_drawn_and_never_the_own() -> None:
    y = torch.arange(3).repeat(200)
    t = other_classes(y, 3, torch.Generator().manual_seed(0))
    assert (t != y).all() and all((t == k).sum() > 100 for k in range(3))


def test_an_adaptive_descent_ends_where_the_class_is_reached_and_the_detector_accepts() -> None:
    """The class lies upwards, where the detector rejects: the only way is downwards on the other axis."""
    guarded = WithDetector(Upper(INFO), Plane(W[:2]))
    x, t = torch.tensor([[3.0, 0.1]]), torch.tensor([1])
    step = Step(PERTURBATION, 0.1)
    blind = descend(guarded, x, t, "logit", step, 200).x_adv
    assert guarded.detect(blind) > 0.5
    seen = adaptive(guarded, 0.5, x, t, "m_logit", step, 200)
    assert guarded(seen).argmax(1) == t and guarded.detect(seen) <= 0.5


def test_cross_entropy_dies_on_the_circles_and_underflows_with_larger_logits() -> None:
    found = measure_circles(1, size=21, epochs=800)
    assert found.accuracy > 0.99
    first, second, third = found.regions
    assert first.ce > first.logit and third.ce < 0.1 * second.ce and third.logit > 0.1 * second.logit
    assert {sum(map(sum, found.ce_sign)) > 0, len(found.zero) == 21} == {True}
    as_is, *larger = found.underflow
    assert as_is.float32 == 0 and larger[-1].float32 > larger[-1].float64 > 0


def test_a_mean_is_below_another_only_beyond_two_standard_errors() -> None:
    assert below([1, 2, 3, 4], [2, 3, 4, 6]) == "holds"
    assert below([2, 3, 4, 6], [1, 2, 3, 4]) == "does not hold"
    assert below([1, 5, 1, 5], [5, 1, 5, 1.5]) == "cannot be told"
    assert below([1, None], [None, 2]) == "cannot be told"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Losses]:
    bench = Bench(tmp_path_factory.mktemp("losses") / "work").configure({"step": STEP})
    assert bench.evaluate("Means").code == 0
    suite = load_config(bench.folder / "bench.yaml").suite("tiny")
    small = Budget(
        examples=6, iterations=25, train_examples=60, test_examples=30, epochs=2, adaptive_examples=4,
        adaptive_iterations=20, networks=("cnn-a",), circle_epochs=100,
    )  # fmt: skip
    record = measure_and_store(
        bench.store, suite, DefenseSpec(plugin("Means")), small, device="cpu", root=None, command="bench study losses",
        beside=DefenseSpec(plugin("Means")),
    )  # fmt: skip
    return bench, record


def test_the_study_is_stored_with_every_descent_and_every_detector(measured: tuple[Bench, Losses]) -> None:
    bench, record = measured
    assert read(bench.store, "stand_ins.Means") == record
    assert len({(each.source, each.setting) for each in record.descents}) == 8
    for each in record.descents:  # to itself an image transfers
        assert set(each.lasting[TRANSFERRED]) <= {1, None} and len(each.lasting[BLURRED]) == record.n
    assert record.beside == "stand_ins.Means"
    assert [row.trained_on for row in record.detectors] == ["ce", "ce_sign", "logit", "m_logit", "joint"]
    assert all(len(row.cells) == 4 and row.depth == 4 for row in record.detectors)


def test_verdicts_follow_the_numbers(measured: tuple[Bench, Losses]) -> None:
    _, record = measured
    title = "At an equal perturbation CE needs the fewest iterations"

    def told(ce: int) -> str:
        changed = [
            each.model_copy(update={"iterations": [ce + i if each.source == "ce" else 10 + i for i in range(record.n)]})
            for each in record.descents
        ]
        found = claims(record.model_copy(update={"descents": changed}))
        return next(claim.verdict for claim in found if claim.claim == title)

    assert (told(5), told(10), told(15)) == ("holds", "cannot be told", "does not hold")


def test_what_lasts_is_judged_by_the_images_that_both_sources_reach(measured: tuple[Bench, Losses]) -> None:
    _, record = measured

    def told(ce: int, key: str) -> list[str]:
        changed = [
            each.model_copy(update={"lasting": {key: [ce if each.source == "ce" else 1] * record.n}})
            for each in record.descents
        ]
        found = claims(record.model_copy(update={"descents": changed, "beside": "another"}))
        return [claim.verdict for claim in found if "images made with CE" in claim.claim]

    for key in (BLURRED, TRANSFERRED):
        assert (told(0, key), told(1, key)) == (["holds"] * 2, ["cannot be told"] * 2)


def test_the_page_of_the_defense_leads_to_the_study(measured: tuple[Bench, Losses], tmp_path: Path) -> None:
    bench, record = measured
    build(bench.results, tmp_path / "site")
    page = next((tmp_path / "site").rglob("losses/*.html")).read_text()
    assert all(claim.claim in page for claim in claims(record) if "'" not in claim.claim)
    assert "Still seen, blurred" in page and "Still seen by stand_ins.Means" in page
    assert page.count("<svg") == 10 and len(list((tmp_path / "site").rglob("circles-*.png"))) == 5
    assert "/losses/" in next((tmp_path / "site").rglob("defenses/*.html")).read_text()
    other = record.defense.model_copy(update={"weights": "others"})  # type: ignore[union-attr]
    write(bench.store, "stand_ins.Means", record.model_copy(update={"defense": other}))
    try:
        build(bench.results, tmp_path / "again")
        assert not list((tmp_path / "again").rglob("losses/*.html"))
    finally:
        write(bench.store, "stand_ins.Means", record)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("Noisy", [], "draws at random"),
        ("Rounded", ["--step", "0"], "step 0.0 must be above 0"),
    ],
)
def test_what_cannot_be_studied_is_refused(
    measured: tuple[Bench, Losses], name: str, more: list[str], message: str
) -> None:
    bench, _ = measured
    arguments = bench.arguments(name)[1:]
    ended = run_bench("study", "losses", *arguments, *more)
    assert ended.code == 2 and message in ended.err
    assert read(bench.store, f"stand_ins.{name}") is None


def test_the_images_are_transferred_to_a_classifier_with_parameters(measured: tuple[Bench, Losses]) -> None:
    bench, record = measured
    few = ["--images", "2", "--iterations", "2", "--train-images", "8", "--test-images", "4", "--epochs", "1"]
    try:
        ended = run_bench(
            "study", "losses", *bench.arguments("Means")[1:], *few, "--beside", f"{plugin('Means')}(nonsense=1)"
        )
        assert ended.code == 2 and "nonsense" in ended.err
    finally:
        write(bench.store, "stand_ins.Means", record)
