"""What the harness finds out about a defense before it attacks it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from stand_ins import Guarded, Means, Noisy, Probabilities, Rounded, Undeclared
from torch import Tensor, nn

from bench.contracts.defense import Approximation, BareModel, Defense, ready
from bench.contracts.errors import InputError
from bench.contracts.threat import Lp
from bench.data.load import load_data
from bench.judging.probe import check_contract, detector_threshold, probe
from bench.storing.records import Probe

DATA = load_data("digits")
LINF = Lp("linf", 0.2)
CPU = torch.device("cpu")


def probed(defense: Defense, rate: float = 0.05, seed: int = 0, batch_size: int = 64) -> Probe:
    return probe(ready(defense), DATA, LINF, rate=rate, seed=seed, batch_size=batch_size)


def means(forward: Callable[[Defense, Tensor], Tensor]) -> Means:
    """:class:`Means` with another forward pass."""
    cls = type("Changed", (Means,), {"forward": forward})
    return cls(DATA.info)  # type: ignore[no-any-return]


def plain(self: Defense, x: Tensor) -> Tensor:
    return self.classifier(x)


# -- findings ---------------------------------------------------------------------------------------------------


def test_nothing_to_find_about_a_plain_network() -> None:
    found = probed(Means(DATA.info))
    assert found.slopes is not None and found.slopes.along == pytest.approx(1, abs=0.1)
    assert found == Probe(
        randomized=False,
        declared_randomized=False,
        random_at=[],
        batch_dependent_at=[],
        stateful=False,
        mode_dependent=False,
        slopes=found.slopes,
        precision_lost=found.precision_lost,
        outputs_are_probabilities=False,
        gradient="ok",
        zero_gradient_share=0.0,
        batch_dependent=False,
        approximations=[],
        transforms=False,
        transform_distance=0.0,
        has_detector=False,
        threshold=None,
        validation_examples=len(DATA.validation),
    )


@pytest.mark.parametrize(("scale", "lost"), [(0.05, False), (5.0, True)])
def test_a_gradient_that_only_float64_can_hold_is_found(scale: float, lost: bool) -> None:
    """The same points have one in double precision, so that the classifier itself is not what is flat."""
    defense = ready(means(lambda self, x: scale * self.classifier(x)))
    x, y = DATA.samples.take(64).x, DATA.samples.take(64).y

    def zeros(model: Defense, at: Tensor) -> int:
        at = at.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(at), y, reduction="sum"), at)
        return int((grad == 0).flatten(1).all(1).sum())

    assert (zeros(defense, x) > 0) == lost
    found = probed(defense).precision_lost
    assert found is not None and (found > 0.05 if lost else found == 0)
    assert zeros(copy.deepcopy(defense).double(), x.double()) == 0


def test_randomness_is_measured_whether_or_not_it_is_declared() -> None:
    for cls, declared in ((Noisy, True), (Undeclared, False)):
        found = probed(cls(DATA.info))
        assert (found.randomized, found.declared_randomized) == (True, declared)
        assert not found.batch_dependent  # two passes differ anyway
        assert found.transforms


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_random_score_is_found_whether_or_not_it_is_declared(scale: float) -> None:
    class Scored(Guarded):
        noise = 0.0

        def detect(self, x: Tensor) -> Tensor:
            score = super().detect(x)
            return scale * (score + self.noise * torch.randn_like(score))

    class Lucky(Scored):
        noise = 0.01

    assert probed(Lucky(DATA.info)).randomized and not probed(Lucky(DATA.info)).declared_randomized
    assert not probed(Scored(DATA.info)).randomized


def test_a_declaration_is_believed_without_evidence() -> None:
    class Quiet(Means):
        randomized = True

    assert probed(Quiet(DATA.info)).randomized


def test_float_noise_is_no_randomness() -> None:
    found = probed(means(lambda self, x: plain(self, x) * (1 + 1e-6 * torch.rand(1))))
    assert not found.randomized


def test_probabilities_are_recognised() -> None:
    assert probed(Probabilities(DATA.info)).outputs_are_probabilities
    assert not probed(means(lambda self, x: plain(self, x).sigmoid())).outputs_are_probabilities


@pytest.mark.parametrize(
    ("forward", "state", "share"),
    [
        (lambda self, x: plain(self, x.detach()), "missing", 1.0),
        (lambda self, x: plain(self, x.round()), "zero", 1.0),
        (lambda self, x: plain(self, x * (x.mean((1, 2, 3)) > 0.35)[:, None, None, None]), "zero", None),
        (lambda self, x: plain(self, x) + (x * 0).sum((1, 2, 3)).sqrt()[:, None], "nonfinite", 0.0),
    ],
)
def test_the_state_of_the_gradient(forward: Any, state: str, share: float | None) -> None:
    found = probed(means(forward))
    assert found.gradient == state
    if share is None:
        assert 0 < found.zero_gradient_share < 1
    else:
        assert found.zero_gradient_share == share


def test_weights_that_ask_for_a_gradient_do_not_hide_a_cut_graph() -> None:
    class Cut(Means):
        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(x.detach()) * self.scale

        scale = torch.ones((), requires_grad=True)

    assert probed(Cut(DATA.info)).gradient == "missing"


def test_logits_that_depend_on_the_other_images_are_noticed() -> None:
    assert probed(means(lambda self, x: plain(self, x - x.mean(0)))).batch_dependent
    assert probed(means(lambda self, x: plain(self, x) + torch.arange(len(x))[:, None])).batch_dependent


def test_approximations_and_transforms_are_listed() -> None:
    class Declares(Rounded):
        def approximations(self) -> dict[str, Approximation]:
            return {"soft": Approximation(lambda x: x), "hard": Approximation(lambda x: x)}

    found = probed(Declares(DATA.info))
    assert found.approximations == ["soft", "hard"]
    assert found.transforms
    assert probed(means(plain)).transforms is False


def test_the_distance_of_a_transform_is_that_of_its_expectation() -> None:
    class Shifted(Means):
        def transform(self, x: Tensor) -> Tensor:
            return x + 0.25

    class Jittered(Shifted):
        randomized = True

        def transform(self, x: Tensor) -> Tensor:
            return x + 0.25 + torch.randn_like(x)

    assert probed(Means(DATA.info)).transform_distance == 0
    assert probed(Shifted(DATA.info)).transform_distance == pytest.approx(0.25, abs=1e-6)
    # One mean of 16 draws alone would give sqrt(0.25² + 1/16) = 0.35.
    assert probed(Jittered(DATA.info)).transform_distance == pytest.approx(0.25, abs=0.02)


def test_a_transform_that_changes_the_size_transforms() -> None:
    class Larger(Means):
        def transform(self, x: Tensor) -> Tensor:
            return F.interpolate(x, scale_factor=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(F.avg_pool2d(self.transform(x), 2))

    found = probed(Larger(DATA.info))
    assert found.transforms
    assert found.transform_distance is None


def test_probing_is_reproducible_and_leaves_global_randomness_alone() -> None:
    defense = Noisy(DATA.info)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = probed(defense)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert probed(defense) == first


# -- the detector's threshold -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("batch_size", [7, 1000])
def test_at_most_the_stated_share_of_validation_images_is_rejected(rate: float, batch_size: int) -> None:
    defense = Guarded(DATA.info)
    threshold = detector_threshold(defense, DATA.validation, rate, CPU, batch_size)
    scores = defense.detect(DATA.validation.x).double()
    rejected = (scores > threshold).double().mean()
    assert rejected <= rate
    # It is the smallest such threshold: just below it, more are rejected.
    assert (scores >= threshold).double().mean() > rate


def test_equal_scores_do_not_raise_the_false_positive_rate() -> None:
    class Constant(Means):
        def detect(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return torch.ones(len(x))

    assert detector_threshold(Constant(DATA.info), DATA.validation, 0.05, CPU, 64) == 1.0  # nothing is above


def test_the_threshold_is_part_of_the_probe() -> None:
    found = probed(Guarded(DATA.info), rate=0.1)
    assert found.has_detector
    assert found.threshold == detector_threshold(Guarded(DATA.info), DATA.validation, 0.1, CPU, 64)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (lambda x: torch.full((len(x),), torch.nan), "contain NaN or infinity"),
        (lambda x: torch.zeros(len(x), 1), r"expected floating-point scores of shape \(32,\), got \(32, 1\)"),
        (lambda x: torch.zeros(len(x), dtype=torch.int64), "expected floating-point scores"),
        (lambda x: 0.5, "got float"),
    ],
)
def test_scores_that_are_none_are_refused(scores: Any, message: str) -> None:
    cls = type("Broken", (Means,), {"detect": lambda self, x: scores(x)})
    with pytest.raises(InputError, match=message):
        probed(cls(DATA.info))


# -- the contract of forward ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, x: plain(self, x)[:, :9], r"expected logits of shape \(32, 10\), got \(32, 9\)"),
        (lambda self, x: plain(self, x)[:, None], r"got \(32, 1, 10\)"),
        (lambda self, x: plain(self, x).argmax(1), "expected floating-point logits, got torch.int64"),
        (lambda self, x: plain(self, x).tolist(), "expected floating-point logits, got list"),
        (lambda self, x: plain(self, x) / 0, "logits of clean images contain NaN or infinity"),
    ],
)
def test_logits_that_are_none_are_refused(forward: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        probed(means(forward))


@pytest.mark.parametrize(
    "members",
    [
        {"forward": lambda self, x: plain(self, x.mul_(0.5))},
        {"detect": lambda self, x: x.mul_(0.5).mean((1, 2, 3))},
    ],
)
def test_a_defense_that_writes_into_its_input_is_refused_and_spoils_no_data(members: dict[str, Any]) -> None:
    before = DATA.validation.x.clone()
    with pytest.raises(InputError, match="writes into its input; work on a copy"):
        probed(type("Writing", (Means,), members)(DATA.info))
    assert torch.equal(DATA.validation.x, before)


def test_the_contract_returns_the_logits() -> None:
    x = DATA.validation.x[:5]
    assert torch.equal(check_contract(Means(DATA.info), x, 10), Means(DATA.info)(x))


# -- evaluation mode --------------------------------------------------------------------------------------------


def test_a_defense_is_put_in_evaluation_mode_without_gradients_of_its_weights() -> None:
    defense = ready(Means(DATA.info).train())
    assert not any(module.training for module in defense.modules())
    assert not any(parameter.requires_grad for parameter in defense.parameters())


def test_a_bare_model_in_training_mode_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10)).eval()
    ready(BareModel(model, DATA.info))
    model[1].train()
    with pytest.raises(InputError, match=r"model Sequential: is in training mode; call \.eval\(\)"):
        ready(BareModel(model, DATA.info))


def test_a_defense_that_will_not_leave_training_mode_is_refused() -> None:
    class Stubborn(nn.Dropout):
        def train(self, mode: bool = True) -> Stubborn:
            self.training = True
            return self

    defense = Means(DATA.info)
    defense.noise = Stubborn()
    with pytest.raises(InputError, match="noise stays in training mode"):
        ready(defense)
