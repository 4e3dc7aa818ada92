"""``bench.evaluate``: a model and inputs held in memory give the summary that the command line prints."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lab import digits, digits_classifier
from stand_ins import Means, plugin
from torch import Tensor, nn

import bench
from bench.contracts.defense import Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.plugins import held
from bench.running import cell
from bench.summary.numbers import SuiteSummary
from bench.summary.report import render

INFO = DataInfo("digits", InputSpec((1, 8, 8)), 10)
STEP = {"pgd": {"steps": 5}}


def some(n: int = 20) -> tuple[Tensor, Tensor]:
    *_, x, y = digits()
    return x[:n], y[:n]


def worst(summary: SuiteSummary) -> float:
    return summary.defenses[0].worst_case.value


class Quantised(Defense):
    """A transform without a gradient before a classifier."""

    trainable = False

    def __init__(self) -> None:
        super().__init__(INFO)
        self.classifier = digits_classifier()

    def transform(self, x: Tensor) -> Tensor:
        return (x * 4).round() / 4


def test_the_default_is_the_cascade_and_controls_and_the_text_is_the_table() -> None:
    x, y = some()
    summary = bench.evaluate(digits_classifier(), x, y, norm="linf", eps="0.2")
    assert isinstance(summary, SuiteSummary) and str(summary) == render(summary, "table")
    (found,) = summary.defenses
    assert found.record.name == type(digits_classifier()).__name__ and found.complete
    assert [attack.record.name for attack in found.attacks] == ["cascade", "noise", "unbounded"]
    assert found.standard.value == float((digits_classifier()(x).argmax(1) == y).float().mean())
    assert found.worst_case.value == 0.0 and found.worst_case.n == len(x)
    assert "worst-case robust" in str(summary) and "cascade" in str(summary)


def test_arrays_lists_and_functions_give_what_tensors_and_modules_give() -> None:
    model, (x, y) = digits_classifier(), some()

    def function(images: Tensor) -> Tensor:
        return model(images)

    first = bench.evaluate(function, x, y, eps=0.05, attacks=STEP)
    assert first.defenses[0].record.name == "function"
    second = bench.evaluate(function, x.double().numpy(), y.numpy().astype(np.uint8), eps="0.05", attacks=STEP)
    third = bench.evaluate(function, x.tolist(), y.tolist(), eps=np.float64(0.05), attacks=STEP)
    assert first.defenses[0].survival == second.defenses[0].survival == third.defenses[0].survival


def test_two_functions_of_one_name_are_not_taken_for_each_other() -> None:
    x, y = some()

    def made(right: bool) -> Any:
        def function(images: Tensor) -> Tensor:
            logits = digits_classifier()(images)
            return logits if right else -logits

        return function

    shares = [bench.evaluate(made(right), x, y, eps=0.01, attacks="fgsm").defenses[0] for right in (True, False)]
    assert shares[0].standard.value > 0.8 and shares[1].standard.value < 0.2


def test_a_defense_is_also_attacked_past_its_transform() -> None:
    x, y = some()
    summary = bench.evaluate(Quantised(), x, y, eps=0.2)
    left = {attack.record.name: attack.robust.value for attack in summary.defenses[0].attacks if attack.robust}
    assert left["cascade-bpda-i"] < 0.3 < left["noise"]
    assert "zero-gradient" in {flag.id for flag in summary.defenses[0].flags}


def test_the_model_and_the_world_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    x, y = some()
    defense = Quantised().train()
    defense.classifier.eval()
    parameters = list(defense.parameters())
    for number, parameter in enumerate(parameters):
        parameter.requires_grad_(number % 2 == 0)
    before = {name: value.clone() for name, value in defense.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    bench.evaluate(defense, x, y, eps=0.1, attacks=STEP)
    assert torch.equal(state, torch.get_rng_state())
    assert defense.training and not defense.classifier.training
    assert [p.requires_grad for p in parameters] == [number % 2 == 0 for number in range(len(parameters))]
    assert all(torch.equal(value, before[name]) for name, value in defense.state_dict().items())
    assert list(tmp_path.iterdir()) == [] and not held._held and not cell._contexts
    with pytest.raises(InputError):
        bench.evaluate(defense, x, y, eps=0.1, attacks={"pgd": {"stepz": 1}})
    assert defense.training and parameters[0].requires_grad and not held._held


class Guarded(Means):
    """Rejects what is bright."""

    def detect(self, x: Tensor) -> Tensor:
        return x.flatten(1).mean(1)


def test_a_detectors_threshold_is_set_on_other_inputs() -> None:
    x, y = some(60)
    with pytest.raises(InputError, match=r"give validation=\(x, y\)"):
        bench.evaluate(Guarded(INFO), x[:20], y[:20], eps=0.1, attacks=STEP)
    summary = bench.evaluate(Guarded(INFO), x[:20], y[:20], eps=0.1, attacks=STEP, validation=(x[20:], y[20:].numpy()))
    assert summary.defenses[0].detection is not None


def test_an_attack_that_fails_leaves_an_incomplete_result_that_says_why() -> None:
    x, y = some()
    summary = bench.evaluate(digits_classifier(), x, y, eps=0.1, attacks={"bad": {"attack": plugin("failing")}})
    assert not summary.defenses[0].complete and "incomplete" in str(summary)
    assert summary.defenses[0].attacks[0].status == "failed" and summary.defenses[0].attacks[0].errors


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no\nway")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "bytes": ({"x": np.zeros((2, 1, 8, 8), np.uint8)}, "divide by 255"),
    "outside": ({"x": torch.full((2, 1, 8, 8), 2.0)}, "outside"),
    "no inputs": ({"x": torch.zeros(0, 1, 8, 8)}, "holds no inputs"),
    "labels": ({"y": [0, 10]}, "outside 0..9"),
    "too few labels": ({"y": [0]}, "y: 1 labels for 2 inputs"),
    "eps": ({"eps": "wide"}, "eps: 'wide'"),
    "eps 8": ({"eps": 8}, "did you mean 8/255"),
    "norm": ({"norm": "l3"}, "l3"),
    "attack": ({"attacks": "cascadee"}, "did you mean 'cascade'"),
    "parameter": ({"attacks": {"pgd": {"stepz": 1}}}, "stepz"),
    "no attack": ({"attacks": []}, "attacks"),
    "needs data": ({"attacks": "transfer"}, "transfer: has to be trained"),
    "training mode": ({"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))}, "training mode"),
    "name": ({"model": "none"}, "got str"),
    "raises": ({"model": Raises().eval()}, "RuntimeError"),
    "other shape": ({"x": torch.zeros(2, 1, 8, 9), "model": Means(INFO)}, "Means"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_input_gets_one_line(what: str) -> None:
    changes, message = WRONG[what]
    given = {"model": digits_classifier(), "x": torch.zeros(2, 1, 8, 8), "y": [0, 1], "eps": 0.1, **changes}
    with pytest.raises(InputError, match=message) as error:
        bench.evaluate(**given)
    assert "\n" not in str(error.value)


def test_importing_bench_imports_no_torch() -> None:
    code = "import bench, sys; assert 'evaluate' in dir(bench); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
