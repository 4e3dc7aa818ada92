"""PGD beyond the forms that test_linear_models.py covers: l1, masks, directions, targets, defenses that misbehave."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lab import DIGITS, Linear, LinearCase, assert_feasible, digits, digits_classifier, linear_case, make_target
from torch import Tensor, nn

from attacks.gradient.pgd import pgd
from attacks.toolkit.losses import margin
from attacks.toolkit.masks import as_mask
from attacks.toolkit.projections import steepest
from bench.contracts.defense import BareModel, Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec

NORMS = ["linf", "l2", "l1"]
every_norm = pytest.mark.parametrize("norm", NORMS)
FORMS = {
    "margin": pgd,
    "ce": partial(pgd, loss="ce", random_start=False),
    "momentum": partial(pgd, momentum=0.75, steps=50),
    "m_logit": partial(pgd, loss={"m_logit": {"kappa": 1.0}}),
    "sign": partial(pgd, direction="sign", steps=60, step_size=0.2, random_start=False),
}
every_form = pytest.mark.parametrize("form", FORMS)
#: The sign is the steepest direction in linf alone.
EXACT = [(form, norm) for form in FORMS for norm in NORMS if form != "sign" or norm == "linf"]


class NoNumber(Linear):
    """NaN for images brighter than 1/2 in their first value."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).masked_fill(x.flatten(1)[:, :1] > 0.5, torch.nan)


class Constant(Defense):
    """Always class 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([[3.0, 2.0, 1.0, 0.0]]).repeat(len(x), 1).to(x)


class Noisy(Defense):
    """A linear model of the image and noise."""

    randomized = True

    def __init__(self, model: nn.Module, data: DataInfo, sigma: float) -> None:
        super().__init__(data)
        self.classifier, self.sigma = model, sigma

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x + self.sigma * torch.randn_like(x))


def _weight(case: LinearCase) -> Tensor:
    (weight,) = (value for name, value in case.defense.named_parameters() if name.endswith("weight"))
    return weight


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)], ids=str)
@pytest.mark.parametrize(("form", "norm"), EXACT)
def test_it_succeeds_just_beyond_the_minimal_radius_and_not_below(form, norm, shape, n) -> None:
    case = linear_case(n, shape, norm)
    target = case.target(1.02, "gradient")
    x_adv = FORMS[form](target, case.x, case.y)
    assert_feasible(target, case.x, x_adv)
    assert case.fooled(x_adv).all()
    target = case.target(0.98, "gradient")
    x_adv = FORMS[form](target, case.x, case.y)
    assert_feasible(target, case.x, x_adv)
    assert not case.fooled(x_adv).any()


@every_norm
def test_one_logit_alone_is_not_the_shortest_way(norm) -> None:
    """Ozbulak et al. 2020: -z_y ignores the class to which the example moves."""
    case = linear_case(8, (3, 5, 7), norm)
    assert case.fooled(pgd(case.target(2.5, "gradient"), case.x, case.y, loss="logit")).all()
    assert not case.fooled(pgd(case.target(0.98, "gradient"), case.x, case.y, loss="logit")).any()


@every_norm
def test_it_reaches_the_class_it_is_asked_for(norm) -> None:
    case = linear_case(8, (3, 5, 7), norm)
    towards = 1 - case.y
    target = case.target(1.02, "gradient", towards=towards)
    x_adv = pgd(target, case.x, case.y)
    assert_feasible(target, case.x, x_adv)
    assert torch.equal(case.defense(x_adv).argmax(1), towards)
    assert target.counts.forward.max() <= 41
    out_of_reach = case.target(1.02, "gradient", towards=torch.full((8,), 3))
    assert not (case.defense(pgd(out_of_reach, case.x, case.y)).argmax(1) == 3).any()


@every_norm
@every_form
def test_seeds_precision_and_micro_batches(form, norm) -> None:
    case = linear_case(5, (1, 8, 8), norm, dtype=torch.float64)
    attack = partial(FORMS[form], restarts=2)
    state = torch.get_rng_state()
    whole, again = (attack(case.target(1.1, "gradient", seed=4), case.x, case.y) for _ in range(2))
    assert whole.dtype == torch.float64 and torch.equal(whole, again)
    assert torch.equal(state, torch.get_rng_state())
    parts = attack(case.target(1.1, "gradient", seed=4, batch_size=2), case.x, case.y)
    torch.testing.assert_close(whole, parts, atol=1e-9, rtol=0)


@every_norm
def test_survivors_do_not_depend_on_who_else_is_fooled(norm) -> None:
    """The first six are fooled at different steps; the last has the same path whether they are there or not."""
    case = linear_case(8, (1, 8, 8), norm, dtype=torch.float64)
    x = case.x.clone()
    x[:6] = 0.5 + (x[:6] - 0.5) * torch.linspace(0.2, 0.9, 6, dtype=x.dtype)[:, None, None, None]
    together = pgd(case.target(0.95, "gradient"), x, case.y, random_start=False)
    target = make_target(case.defense, 2, "gradient", norm=norm, eps=0.95 * case.radius)
    alone = pgd(target, x[6:], case.y[6:], random_start=False)
    assert case.fooled(together).tolist() == [True] * 6 + [False] * 2
    torch.testing.assert_close(together[6:], alone, atol=1e-9, rtol=0)


# -- l1 --------------------------------------------------------------------------------------------------------


def test_sparse_steps_beat_dense_ones() -> None:
    x, y = (part[:100] for part in digits()[2:])
    defense = BareModel(digits_classifier(), DIGITS)
    left = {}
    for direction in ("steepest", "gradient", "sign"):
        target = make_target(defense, len(x), "gradient", norm="l1", eps=1.5)
        x_adv = pgd(target, x, y, steps=20, direction=direction)
        assert_feasible(target, x, x_adv)
        left[direction] = (defense(x_adv).argmax(1) == y).float().mean()
        if direction == "steepest":
            assert (x_adv != x).flatten(1).sum(1).float().mean() < 16, "the corners of the ball are sparse"
    assert left["steepest"] <= left["gradient"] < left["sign"] - 0.2


# -- masks -----------------------------------------------------------------------------------------------------


@every_norm
@pytest.mark.parametrize("written", ["tensor", "list", "row"])
def test_a_mask_leaves_the_rest_of_the_image_alone(norm, written) -> None:
    case = linear_case(8, (3, 5, 7), norm)
    mask = torch.zeros(3, 5, 7)
    mask[:, :, ::2] = 1
    given = {"tensor": mask.bool(), "list": mask.int().tolist(), "row": mask[0, :1].bool()}[written]
    # The smallest perturbation of a linear model on the values that may change.
    weight, other = _weight(case), 1 - case.y
    difference = ((weight[other] - weight[case.y]).view(8, 3, 5, 7) * mask).flatten(1)
    logits = case.defense(case.x)
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    radii = -margin(logits, case.y) / difference.norm(p=dual, dim=1)
    assert (radii > 1.02 * case.radius).any()
    for row, radius in enumerate(radii.tolist()):
        one = slice(row, row + 1)
        for factor, expected in ((1.02, True), (0.98, False)):
            target = make_target(case.defense, 1, "gradient", norm=norm, eps=factor * radius)
            x_adv = pgd(target, case.x[one], case.y[one], mask=given)
            assert_feasible(target, case.x[one], x_adv)
            assert torch.equal(x_adv[:, mask == 0], case.x[one][:, mask == 0])
            assert (case.defense(x_adv).argmax(1) != case.y[one]).item() is expected


def test_masks_in_their_written_form_are_checked() -> None:
    assert as_mask(None) is None
    assert torch.equal(as_mask([[0, 1], [1, 0]]), torch.tensor([[False, True], [True, False]]))  # type: ignore[arg-type]
    for wrong, message in (
        ("centre", "nested lists"), ([[0, 1], [1]], "nested lists"), ([[0, 2]], "zeros"), ([[0, 0]], "at least one"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            as_mask(wrong)
    case = linear_case(1, (1, 8, 8), "linf")
    with pytest.raises(InputError, match=r"shape \(3,\) does not broadcast to \(1, 8, 8\)"):
        pgd(case.target(1.0, "gradient"), case.x, case.y, mask=[0, 1, 1])
    spec = pgd.attack  # type: ignore[attr-defined]
    assert spec.check({"mask": [[0, 1]]}, "pgd")["mask"] == [[0, 1]], "stored as it was written"


# -- directions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("direction", ["steepest", "sign", "gradient"])
def test_the_direction_of_one_step(direction, norm) -> None:
    case = linear_case(2, (1, 8, 8), norm, dtype=torch.float64)
    weight = _weight(case)
    grad = (weight[1 - case.y] - weight[case.y]).view_as(case.x)
    target = make_target(case.defense, 2, "gradient", norm=norm, eps=0.01)
    step = pgd(target, case.x, case.y, steps=1, step_size=1e-4, random_start=False, direction=direction) - case.x
    expected = {"steepest": steepest(grad, norm), "sign": grad.sign(), "gradient": grad}[direction]
    torch.testing.assert_close(step, 1e-6 * expected, atol=1e-12, rtol=1e-6)


# -- defenses that misbehave -----------------------------------------------------------------------------------


@every_norm
def test_points_without_a_number_are_returned_as_what_they_are_and_finite(norm) -> None:
    case = linear_case(4, (1, 8, 8), norm)
    broken = NoNumber(_weight(case), torch.zeros(4))
    defense = BareModel(broken, DataInfo("toy", InputSpec((1, 8, 8)), 4))
    target = make_target(defense, 4, "gradient", norm=norm, eps=case.radius)
    x_adv = pgd(target, case.x, case.y, steps=10)
    assert_feasible(target, case.x, x_adv)


@every_norm
def test_a_constant_model_costs_the_budget_and_changes_nothing_else(norm) -> None:
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    target = make_target(Constant(DataInfo("toy", InputSpec((1, 8, 8)), 4)), 2, "gradient", norm=norm)
    x_adv = pgd(target, x, torch.zeros(2).long(), steps=5, restarts=2)
    assert_feasible(target, x, x_adv)
    assert target.counts.forward.tolist() == [12, 12] and target.counts.backward.tolist() == [10, 10]


@every_norm
def test_a_randomised_defense_is_fooled_on_fresh_draws(norm) -> None:
    case = linear_case(4, (1, 8, 8), norm)
    noisy = Noisy(case.defense, case.defense.data, sigma=0.03)
    target = make_target(noisy, 4, "gradient", norm=norm, eps=2 * case.radius, randomized=True)
    torch.manual_seed(0)
    x_adv = pgd(target, case.x, case.y, steps=15, estimator={"eot": {"samples": 8, "of": "exact"}}, rescore=8)
    assert_feasible(target, case.x, x_adv)
    wrong = torch.stack([noisy(x_adv).argmax(1) != case.y for _ in range(50)]).float().mean(0)
    assert (wrong > 0.8).all()
    assert target.counts.forward.tolist() == [15 * 8 + 2 * 8] * 4
