"""What a classifier may return, and errors of plugins in one line."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.toolkit.estimators import as_estimator
from bench.contracts.defense import BareModel, Defense, as_logits
from bench.contracts.errors import InputError, PluginError, in_one_line
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.target import Target
from bench.contracts.threat import Lp

LOGITS = torch.tensor([[1.0, 2.0, 3.0]])
INFO = DataInfo("toy", InputSpec((1, 2, 2)), 3)


@dataclass
class Output:
    """As models of Hugging Face return it."""

    logits: Any
    loss: Any = None


Named = namedtuple("Named", ["aux_logits", "logits"])
GIVEN = {
    "tensor": LOGITS,
    "object": Output(LOGITS),
    "mapping": OrderedDict(loss=None, logits=LOGITS),
    "mapping of one": {"out": LOGITS},
    "tuple": (LOGITS, torch.zeros(1, 7)),
    "list": [LOGITS],
    "named tuple": Named(None, LOGITS),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_logits_are_found_in_what_models_return(kind: str) -> None:
    assert torch.equal(as_logits(GIVEN[kind]), LOGITS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_half_precision_become_floats(dtype: torch.dtype) -> None:
    assert torch.equal(as_logits(Output(LOGITS.to(dtype))), LOGITS)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, "got NoneType"),
        ((), "got tuple"),
        ("logits", "got str"),
        ({"a": LOGITS, "b": LOGITS}, "got dict with a, b"),
        (Output("no tensor"), "got Output"),
    ],
)
def test_anything_else_is_refused_in_a_line(output: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        as_logits(output)
    assert "\n" not in str(error.value)


class Wrapping(nn.Module):
    """A linear model whose logits are in an object."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Output:
        return Output(self.layer(x.flatten(1)))


class Shifted(Defense):
    """With a transform, so that attacks go to the classifier past it."""

    def __init__(self) -> None:
        super().__init__(INFO)
        self.classifier = Wrapping()

    def transform(self, x: Tensor) -> Tensor:
        return (x * 3).round() / 3


@pytest.mark.parametrize("estimator", ["exact", "identity", "classifier", {"bpda": "first"}])
@pytest.mark.parametrize("defense", [BareModel(Wrapping(), INFO), Shifted()])
def test_every_estimator_takes_such_a_classifier(defense: Defense, estimator: Any) -> None:
    x = torch.rand(2, 1, 2, 2)
    target = Target(defense, Lp("linf", 0.1), 2, knowledge="gradient", generator=torch.Generator())
    assert as_estimator(estimator).logits(target, defense, x).shape == (2, 3)


def _fail() -> None:
    raise ValueError("first\nsecond")


def test_what_a_plugin_raises_is_one_line_with_its_place() -> None:
    with pytest.raises(PluginError) as error, in_one_line("mine.py raised", lambda: "eat more fruit"):
        _fail()
    message = str(error.value)
    line = _fail.__code__.co_firstlineno + 1
    assert message.startswith("mine.py raised ValueError: first second (")
    assert f"test_outputs.py:{line}); eat more fruit; BENCH_TRACEBACK=1 shows" in message
    assert isinstance(error.value.__cause__, ValueError)


def test_the_place_is_the_plugins_line_not_that_of_a_library_it_calls() -> None:
    with pytest.raises(PluginError) as error, in_one_line("it raised"):
        torch.zeros(2) @ torch.zeros(3)
    assert "test_outputs.py:" in str(error.value)


def test_an_error_of_ours_stays_as_it_is() -> None:
    with pytest.raises(InputError, match=r"^levels 1 must be at least 2$"), in_one_line("mine.py raised"):
        raise InputError("levels 1 must be at least 2")
