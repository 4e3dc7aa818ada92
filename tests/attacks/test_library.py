"""``attacks.run``: every registered attack on any model, and what it promises whatever the attack is."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from detector_canaries import guarded
from lab import digits, digits_classifier, length
from registered import NEED_DATA, NEED_DETECTOR, NEED_GUIDE, NEED_LEVELS, PIECEWISE, SMALL, norm_of, specs
from torch import Tensor, nn

import attacks
from bench.contracts.errors import InputError, NotApplicable

#: A radius at which most of the digits can be fooled.
EPS = {"linf": 0.3, "l2": 2.0, "l1": 12.0, "l0": 12}

#: Those that need no more than a model.
NAMES = sorted(set(specs()) - NEED_DATA - NEED_DETECTOR - NEED_GUIDE - NEED_LEVELS)
every = pytest.mark.parametrize("name", NAMES)


def run(name: str, model: nn.Module, x: Tensor, y: Tensor, **settings: Any) -> attacks.Result:
    norm = settings.pop("norm", norm_of(name))
    return attacks.run(name, model, x, y, norm=norm, **{"eps": EPS[norm], **SMALL.get(name, {}), **settings})


@cache
def batch(n: int = 6) -> tuple[nn.Module, Tensor, Tensor]:
    """A digits classifier and digits that it gets right."""
    model, (*_, x, y) = digits_classifier(), digits()
    right = (model(x).argmax(1) == y).nonzero().squeeze(1)[:n]
    return model, x[right], y[right]


def test_transfer_needs_data() -> None:
    model, x, y = batch()
    with pytest.raises(NotApplicable, match="trained on data"):
        attacks.run("transfer", model, x, y, eps=0.1)


@pytest.mark.parametrize("name", sorted(NEED_DETECTOR - {"rejection"} | NEED_LEVELS | {"pgd", "square", "autoattack"}))
def test_a_detector_is_evaded_at_its_threshold(name: str) -> None:
    defense, threshold = guarded("low confidence")
    _, x, y = batch()
    result = run(name, defense, x, y, threshold=threshold)
    accepted = defense.detect(result.x_adv) <= threshold
    assert torch.equal(result.success, (defense(result.x_adv).argmax(1) != y) & accepted)
    # The confidence's gradient is nearly along the margin's: of what is orthogonal to it too little is left.
    assert result.success.any() or name == "orthogonal-pgd"


def test_what_is_rejected_is_no_success() -> None:
    defense, _ = guarded("low confidence")
    _, x, y = batch()
    assert attacks.run("pgd", defense, x, y, eps=0.3).success.all()
    assert not attacks.run("pgd", defense, x, y, eps=0.3, threshold=-2.0).success.any()


@pytest.mark.parametrize("value", [float("nan"), 0.5])
def test_a_threshold_needs_a_detector_and_a_number(value: float) -> None:
    model, x, y = batch()
    subject = guarded("low confidence")[0] if value != 0.5 else model
    with pytest.raises(InputError, match="threshold"):
        attacks.run("pgd", subject, x, y, eps=0.1, threshold=value)


@every
def test_the_result_is_inside_the_threat_model_and_says_what_it_cost(name) -> None:
    model, x, y = batch()
    for norm in specs()[name].norms:
        result = run(name, model, x, y, norm=norm)
        assert result.x_adv.shape == x.shape and result.x_adv.dtype == x.dtype
        assert length(result.x_adv - x, norm).max() <= EPS[norm] * (1 + 1e-4)
        assert result.x_adv.min() >= 0 and result.x_adv.max() <= 1
        assert torch.equal(result.success, model(result.x_adv).argmax(1) != y)
        if name != "noise":
            assert (result.forward >= 1).all()
        assert (result.backward > 0).any() == (specs()[name].knowledge == "gradient")


@every
def test_the_model_is_left_as_it_was(name) -> None:
    _, x, y = batch()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    run(name, model, x, y)
    assert not model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@every
def test_a_batch_of_one_and_strided_inputs_work(name) -> None:
    model, x, y = batch()
    assert run(name, model, x[:1], y[:1]).x_adv.shape == x[:1].shape
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert not strided.is_contiguous()
    labels = torch.stack([y, y], 1)[:, 0]
    result = run(name, model, strided, labels, seed=1)
    torch.testing.assert_close(result.x_adv, run(name, model, x, y, seed=1).x_adv)


class Fragile(nn.Module):
    """Logits that are not numbers wherever the image is not exactly one of the given ones."""

    def __init__(self, model: nn.Module, known: Tensor) -> None:
        super().__init__()
        self.model, self.known = model, known

    def forward(self, x: Tensor) -> Tensor:
        strange = (torch.cdist(x.flatten(1), self.known.flatten(1)) > 1e-3).all(1)
        return torch.where(strange[:, None], torch.nan, self.model(x))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PIECEWISE])
def test_outputs_that_are_not_numbers_count_as_misclassified(name) -> None:
    model, x, y = batch()
    result = run(name, Fragile(model, x).eval(), x, y)
    assert torch.isfinite(result.x_adv).all()
    moved = (result.x_adv != x).flatten(1).any(1)
    assert torch.equal(result.success, moved)
    if moved.any():
        assert any("NaN" in note for note in result.notes)


@every
def test_targeted_forms_reach_the_class_or_say_there_is_none(name) -> None:
    model, x, y = batch()
    towards = (y + 1) % 10
    if not specs()[name].targeted:
        with pytest.raises(NotApplicable, match="no targeted form"):
            run(name, model, x, y, towards=towards)
        return
    result = run(name, model, x, y, towards=towards)
    assert torch.equal(result.success, model(result.x_adv).argmax(1) == towards)


@every
def test_minimum_norm_attacks_need_no_radius_and_the_others_do(name) -> None:
    model, x, y = batch()
    if not specs()[name].minimum_norm:
        with pytest.raises(NotApplicable, match="needs eps"):
            run(name, model, x, y, eps=None)
        return
    for norm in specs()[name].norms:
        result = run(name, model, x, y, norm=norm, eps=None)
        assert torch.equal(result.success, model(result.x_adv).argmax(1) != y)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "outside the box": ({"x": torch.full((2, 1, 8, 8), 1.5)}, "outside"),
    "NaN image": ({"x": torch.full((2, 1, 8, 8), torch.nan)}, "NaN"),
    "integers": ({"x": torch.ones(2, 1, 8, 8, dtype=torch.int64)}, "floating"),
    "labels int32": ({"y": torch.zeros(2, dtype=torch.int32)}, "int64"),
    "label 10": ({"y": torch.tensor([0, 10])}, "outside 0..9"),
    "label -1": ({"y": torch.tensor([0, -1])}, "outside 0..9"),
    "three labels": ({"y": torch.zeros(3, dtype=torch.int64)}, "3 labels for 2 inputs"),
    "bytes": ({"x": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}, "divide by 255"),
    "an array of bytes": ({"x": np.zeros((2, 1, 8, 8), np.uint8)}, "divide by 255"),
    "an array of integers": ({"x": np.zeros((2, 1, 8, 8), np.int64)}, "floating"),
    "rows of several lengths": ({"x": [[0.1, 0.2], [0.3]]}, "x: is no array of numbers"),
    "a name for images": ({"x": "images"}, "got str"),
    "nothing for images": ({"x": None}, "got NoneType"),
    "no images": ({"x": torch.zeros(0, 1, 8, 8)}, "holds no inputs"),
    "labels that are no integers": ({"y": [0.0, 1.0]}, "y: expected integers"),
    "labels of several inputs in one": ({"y": [[0, 1], [2]]}, "y: is no array of numbers"),
    "eps in words": ({"eps": "small"}, "eps: 'small' is not a number or a fraction"),
    "eps of nought": ({"eps": "8/0"}, "eps: '8/0' is not a number"),
    "eps a list": ({"eps": [0.1]}, "is not a number"),
    "eps a bool": ({"eps": True}, "is not a number"),
    "batch of none": ({"batch_size": 0}, "batch_size: 0"),
    "a name for a model": ({"model": "none"}, "expected a torch.nn.Module or a function, got str"),
    "a class for a model": ({"model": nn.Linear}, "Linear: is a class; build it first"),
    "a function that raises": ({"model": lambda x: x.no_such_thing}, "raised AttributeError"),
    "a function of no logits": ({"model": lambda x: x}, r"logits of shape \(1, K\)"),
    "a function of nothing": ({"model": lambda x: None}, "got NoneType"),
    "double images": ({"x": torch.zeros(2, 1, 8, 8, dtype=torch.float64)}, "float64"),
    "eps 0": ({"eps": 0.0}, "greater than 0"),
    "norm": ({"norm": "l3"}, "l3"),
    "parameter": ({"stepz": 3}, "stepz"),
    "class": ({"towards": torch.tensor([1, 12])}, "outside 0..9"),
    "y itself": ({"towards": torch.tensor([0, 1])}, "other than y"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_input_gets_one_line_that_names_it(what) -> None:
    changes, message = WRONG[what]
    given: dict[str, Any] = {
        "x": torch.zeros(2, 1, 8, 8), "y": torch.zeros(2, dtype=torch.int64), "norm": "linf", "eps": 0.1,
        "model": digits_classifier(), **changes
    }  # fmt: skip
    with pytest.raises(InputError, match=message) as error:
        attacks.run("pgd", given.pop("model"), given.pop("x"), given.pop("y"), **given)
    assert "\n" not in str(error.value)


def test_a_model_in_training_mode_and_one_that_gives_no_logits_are_refused() -> None:
    _, x, y = batch()
    with pytest.raises(InputError, match="training mode"):
        attacks.run("pgd", nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), x, y, eps=0.1)
    with pytest.raises(InputError, match=r"expected floating-point logits of shape \(1, K\)"):
        attacks.run("pgd", nn.Identity().eval(), x, y, eps=0.1)
    with pytest.raises(InputError, match="NaN"):
        attacks.run("pgd", Fragile(digits_classifier(), x + 1).eval(), x, y, eps=0.1)


def test_arrays_lists_fractions_and_functions_give_what_tensors_and_modules_give() -> None:
    model, x, y = batch()
    expected = attacks.run("pgd", model, x, y, eps=8 / 255, steps=5)
    frozen = x.double().numpy().copy()
    frozen.flags.writeable = False
    forms: list[tuple[Any, Any, Any]] = [
        (model, frozen, y.numpy().astype(np.uint8)),
        (model, x.tolist(), y.tolist()),
        (lambda x: model(x), list(x), tuple(y.tolist())),
        (model.forward, x.numpy(), y.numpy().astype(np.int32)),
        (lambda x: {"logits": model(x)}, x, y),
    ]
    for given, inputs, labels in forms:
        for eps in ("8/255", np.float32(8 / 255), torch.tensor(8 / 255)):
            result = attacks.run("pgd", given, inputs, labels, eps=eps, steps=5)
            torch.testing.assert_close(result.x_adv, expected.x_adv, atol=1e-6, rtol=0)
    towards = ((y + 1) % 10).numpy()
    assert attacks.run("pgd", model, x.numpy(), y.numpy(), eps="0.3", towards=towards).success.any()


def test_arrays_take_on_the_models_dtype() -> None:
    _, x, y = batch()
    double = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double().eval()
    assert attacks.run("pgd", double, x.numpy(), y.numpy(), eps=0.1, steps=2).x_adv.dtype == torch.float64


def test_the_method_of_a_model_in_training_mode_is_refused_too() -> None:
    _, x, y = batch()
    with pytest.raises(InputError, match="training mode"):
        attacks.run("pgd", nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).forward, x, y, eps=0.1)
