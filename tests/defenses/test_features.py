"""The hidden layers of any classifier."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from bench.contracts.defense import BareModel, Defense, DefenseSpec
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.seeding import seeded
from bench.plugins.resolve import build_defense
from defenses.parts.features import Features

DIGITS = DataInfo("digits", InputSpec((1, 8, 8)), 10)
MNIST = DataInfo("mnist", InputSpec((1, 28, 28)), 10)
COLOUR = DataInfo("colour", InputSpec((3, 32, 32)), 10)


def _built(name: str, info: DataInfo, **params: object) -> Defense:
    with seeded("weights"):
        return build_defense(DefenseSpec(name, params), info).eval()


def _bare(model: nn.Module, info: DataInfo = DIGITS) -> Defense:
    return BareModel(model.eval(), info)


@pytest.mark.parametrize(("name", "info", "params", "shapes"), [
    ("none", DIGITS, {}, [(16, 8, 8), (32, 8, 8), (32, 4, 4), (64, 4, 4), (256,)]),
    ("madry", MNIST, {}, [(32, 28, 28), (64, 28, 28), (64, 14, 14), (128, 14, 14), (512,)]),
    ("none", COLOUR, {"network": "resnet8"}, [(16, 32, 32), (32, 16, 16), (64, 8, 8), (64,)]),
    ("none", MNIST, {"network": "cnn-a"}, [(16, 14, 14), (32, 7, 7), (100,)]),
])  # fmt: skip
def test_the_stages_are_where_width_and_resolution_change(
    name: str, info: DataInfo, params: dict[str, object], shapes: list[tuple[int, ...]]
) -> None:
    features = Features(_built(name, info, **params))
    found = [stage.shape for stage in features.stages]
    assert found == shapes
    assert features.last.shape == shapes[-1]


def test_a_stage_is_read_at_its_last_layer_and_logits_come_from_the_last() -> None:
    defense, x = _built("none", DIGITS), torch.rand(5, 1, 8, 8)
    features = Features(defense)
    logits, read = features.read(defense, x, features.stages)
    with torch.no_grad():
        layers = list(defense.classifier.children())
        first, hidden = nn.Sequential(*layers[:3])(x), nn.Sequential(*layers[:-1])(x)
    assert torch.allclose(read[0], first, atol=1e-6)
    assert torch.allclose(read[-1], hidden, atol=1e-6)
    assert torch.allclose(features.linear(read[-1]), logits, atol=1e-5)
    assert features.named(features.stages[0].name) is features.stages[0]


def test_they_are_differentiable_and_leave_nothing_behind() -> None:
    defense, x = _built("none", DIGITS), torch.rand(2, 1, 8, 8, requires_grad=True)
    features = Features(defense)
    _, (hidden,) = features.read(defense, x, (features.last,))
    (grad,) = torch.autograd.grad(hidden.square().sum(), x)
    assert grad.abs().flatten(1).sum(1).min() > 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in defense.modules())


def test_a_model_of_torchvision_and_one_that_calls_functions() -> None:
    resnet = torchvision.models.resnet18(num_classes=10)
    features = Features(_bare(resnet, COLOUR))
    assert [stage.shape[0] for stage in features.stages] == [64, 64, 128, 256, 512]
    assert features.head == "fc"

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(self.conv(x)).mean((2, 3)))

    assert [stage.shape for stage in Features(_bare(Functional())).stages] == [(4, 6, 6), (4,)]


def test_what_has_no_last_linear_layer_is_told_so_in_one_line() -> None:
    convolution = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
    with pytest.raises(InputError, match=r"features of Sequential: .* torch\.nn\.Linear"):
        Features(_bare(convolution))
    with_softmax = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1))
    assert Features(_bare(with_softmax)).head == "1"
    with pytest.raises(InputError, match="no stage 'layer5'"):
        Features(_built("none", DIGITS)).named("layer5")


def test_a_transform_that_votes_over_copies_is_told_so() -> None:
    class Voting(Defense):
        def __init__(self, data: DataInfo) -> None:
            super().__init__(data)
            self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(x.repeat(3, 1, 1, 1)).view(3, len(x), 10).mean(0)  # type: ignore[no-any-return]

    defense = Voting(DIGITS).eval()
    features = Features(defense)
    with pytest.raises(InputError, match="answers for 6 images where 2 were asked about"):
        features.read(defense, torch.rand(2, 1, 8, 8), (features.last,))


def test_looking_into_a_random_defense_changes_no_later_draw() -> None:
    defense = _built("random-resize-pad", DIGITS)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Features(defense)
    assert torch.equal(torch.rand(4), expected)
