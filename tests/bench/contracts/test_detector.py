"""A detector that stands alone, in front of any classifier, is a defense like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import DataInfo, Defense, Detector
from bench.contracts.answers import REJECTED
from bench.contracts.defense import BareModel, DefenseSpec, ready
from bench.contracts.detector import WithDetector
from bench.contracts.errors import InputError
from bench.contracts.inputs import InputSpec
from bench.contracts.target import Target
from bench.contracts.threat import Lp
from bench.data.splits import Data, Split
from bench.judging.probe import detector_threshold, probe
from bench.plugins.resolve import build_defense, load_defense
from bench.storing.checkpoints import TrainingSettings
from bench.training.recipe import train_defense

DIGITS = DataInfo("digits", InputSpec((1, 8, 8)), 10)
INFO = DataInfo("toy", InputSpec((1, 4, 4)), 2)
THREAT = Lp("linf", 0.1)

PLUGIN = '''
import torch
import torch.nn.functional as F
from torch import nn

from bench import Approximation, Defense, Detector


class Brightness(Detector):
    """The distance of the mean from a learned one."""

    def __init__(self, data, scale: float = 1.0):
        super().__init__(data)
        self.scale = scale
        self.mean = nn.Parameter(torch.zeros(()))

    def detect(self, x):
        return self.scale * (x.flatten(1).mean(1) - self.mean).abs()

    def fit(self, run, classifier):
        assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())
        run.minimise("mean", self, lambda x, y: self(x).square().mean(), epochs=2, batch_size=16, lr=0.1)


class Linear(Defense):
    def __init__(self, data):
        super().__init__(data)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))

    def transform(self, x):
        return x.round()

    def approximations(self):
        return {"identity": Approximation(lambda x: x)}

    def fit(self, run):
        run.minimise("f", self, lambda x, y: F.cross_entropy(self(x), y), epochs=2, batch_size=16, lr=0.1)
'''


class _Mean(Detector):
    def detect(self, x: Tensor) -> Tensor:
        return x.flatten(1).mean(1)


class _Classifier(Defense):
    def __init__(self, data: DataInfo) -> None:
        super().__init__(data)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    file = tmp_path / "guards.py"
    file.write_text(PLUGIN)
    return file


def _data() -> Data:
    generator = torch.Generator().manual_seed(0)

    def split(n: int, name: str) -> Split:
        y = torch.arange(n) % 2
        x = torch.rand(n, 1, 4, 4, generator=generator) * 0.5 + 0.5 * y.view(-1, 1, 1, 1)
        return Split(x, y, [f"{name}/{i}" for i in range(n)])

    return Data(INFO, ["dark", "light"], split(48, "train"), split(20, "validation"), split(20, "test"))


def test_by_file_it_stands_in_front_of_the_named_classifier(plugin: Path) -> None:
    spec = DefenseSpec(f"{plugin}:Brightness", {"scale": "2", "classifier": f"{plugin}:Linear"})
    made = build_defense(spec, INFO)
    assert isinstance(made, WithDetector)
    x = torch.rand(3, 1, 4, 4)
    assert torch.equal(made(x), made.defense(x))
    assert torch.equal(made.transform(x), x.round())
    assert list(made.approximations()) == ["identity"]
    assert torch.allclose(made.detect(x), 2 * x.flatten(1).mean(1))
    assert not made.training and spec.name == f"guards.Brightness(classifier={plugin}:Linear,scale=2)"


def test_without_a_named_classifier_it_stands_in_front_of_an_undefended_one(plugin: Path) -> None:
    made = build_defense(DefenseSpec(f"{plugin}:Brightness"), DIGITS)
    assert isinstance(made, WithDetector)
    assert type(made.defense).__name__ == "Undefended"


@pytest.mark.parametrize(("params", "message"), [
    ({"classifier": "mardy"}, "did you mean 'madry'"),
    ({"scales": 1}, "no parameter 'scales'"),
    ({"classifier": "feature-squeezing"}, "classifier FeatureSqueezing: has a detector of its own already"),
])  # fmt: skip
def test_a_wrong_classifier_or_parameter_is_one_line(plugin: Path, params: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_defense(DefenseSpec(f"{plugin}:Brightness", params), DIGITS)
    assert "\n" not in str(caught.value)


def test_both_are_trained_in_one_run_and_the_classifier_to_the_weights_it_has_alone(plugin: Path) -> None:
    spec = DefenseSpec(f"{plugin}:Brightness", {"classifier": f"{plugin}:Linear"})
    settings = TrainingSettings(INFO.name, 1, THREAT, seed=0)
    path = train_defense(spec, _data(), settings)
    assert path.is_relative_to(plugin.parent / "checkpoints"), "beside the file of the detector"
    alone = DefenseSpec(f"{plugin}:Linear")
    train_defense(alone, _data(), settings)

    loaded, single = load_defense(spec, INFO), load_defense(alone, INFO)

    assert [stage["name"] for stage in loaded.training["stages"]] == ["f", "mean"]
    assert loaded.training["recipe_version"] == "1+1", "of both"
    assert isinstance(loaded.defense, WithDetector)
    behind = loaded.defense.defense.state_dict()
    assert all(torch.equal(value, behind[name]) for name, value in single.defense.state_dict().items())
    mean = loaded.defense.detector.state_dict()["mean"]
    assert 0.1 < mean < 0.9, "it was learned from the data, whose mean is 1/2"


def _large() -> Data:
    generator = torch.Generator().manual_seed(0)

    def split(n: int, name: str) -> Split:
        y = torch.arange(n) % 2
        x = torch.rand(n, 1, 32, 32, generator=generator) * 0.5 + 0.5 * y.view(-1, 1, 1, 1)
        return Split(x, y, [f"{name}/{i}" for i in range(n)])

    info = DataInfo("toy", InputSpec((1, 32, 32)), 2)
    return Data(info, ["dark", "light"], split(48, "train"), split(20, "validation"), split(20, "test"))


@pytest.fixture
def large(plugin: Path) -> tuple[DefenseSpec, DefenseSpec]:
    """A detector and the classifier behind it, for images of 32 by 32."""
    plugin.write_text(PLUGIN.replace("nn.Linear(16, 2)", "nn.Linear(data.shape[1] ** 2, 2)"))
    return DefenseSpec(f"{plugin}:Brightness", {"classifier": f"{plugin}:Linear"}), DefenseSpec(f"{plugin}:Linear")


def test_from_32_pixels_on_it_is_fitted_to_the_weights_that_its_classifier_has(
    large: tuple[DefenseSpec, DefenseSpec],
) -> None:
    data, settings = _large(), TrainingSettings("toy", 1, THREAT, seed=0)
    spec, alone = large
    with pytest.raises(InputError, match=r"Linear\S*/toy-\S*: does not exist; make it with `bench train"):
        train_defense(spec, data, settings)
    behind = train_defense(alone, data, settings, half=True)
    path = train_defense(spec, data, settings)

    loaded, single = load_defense(spec, data.info), load_defense(alone, data.info)

    assert [stage["name"] for stage in loaded.training["stages"]] == ["mean"]
    assert (loaded.checkpoint, loaded.borrowed) == (path, behind)
    assert set(safetensors.torch.load(path.read_bytes())) == {"detector.mean"}
    assert isinstance(loaded.defense, WithDetector)
    state = loaded.defense.defense.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in single.defense.state_dict().items())
    assert 0.1 < loaded.defense.detector.state_dict()["mean"] < 0.9


def test_it_is_refused_before_other_weights_than_it_was_fitted_to(large: tuple[DefenseSpec, DefenseSpec]) -> None:
    data, settings = _large(), TrainingSettings("toy", 1, THREAT, seed=0)
    spec, alone = large
    train_defense(alone, data, settings)
    train_defense(spec, data, settings)
    train_defense(alone, data, settings, half=True)
    with pytest.raises(InputError, match="was fitted to a classifier with other weights"):
        load_defense(spec, data.info)


def test_an_untrained_one_has_the_checkpoint_of_the_classifier_it_borrows(
    plugin: Path, large: tuple[DefenseSpec, DefenseSpec]
) -> None:
    untrained = "class Plain(Detector):\n    def detect(self, x): return x.flatten(1).mean(1)\n"
    plugin.write_text(f"{plugin.read_text()}\n\n{untrained}")
    data, settings = _large(), TrainingSettings("toy", 1, THREAT, seed=0)
    behind = train_defense(large[1], data, settings)
    loaded = load_defense(DefenseSpec(f"{plugin}:Plain", {"classifier": f"{plugin}:Linear"}), data.info)
    assert loaded.checkpoint == behind and loaded.training["validation_accuracy"] > 0.9


def test_its_code_counts_and_that_of_the_classifier_too(plugin: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.py"

    def code() -> object:
        spec = DefenseSpec(f"{plugin}:Plain", {"classifier": f"{model}:make"})
        return load_defense(spec, INFO).version

    plugin.write_text(PLUGIN + "\nclass Plain(Detector):\n    def detect(self, x): return x.flatten(1).mean(1)\n")
    model.write_text("from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()\n")
    first = code()
    model.write_text(model.read_text().replace("nn.Flatten(),", "nn.Flatten(), nn.Dropout(0.0),"))
    second = code()
    plugin.write_text(plugin.read_text().replace("return x.flatten(1).mean(1)", "return -x.flatten(1).mean(1)"))
    assert len({first, second, code()}) == 3


def test_the_target_rejects_what_it_rejects(plugin: Path) -> None:
    made = ready(WithDetector(_Mean(INFO), _Classifier(INFO)))
    threshold = detector_threshold(made, _data().validation, 0.1, torch.device("cpu"), 8)
    generator = torch.Generator().manual_seed(0)
    target = Target(made, THREAT, 2, knowledge="decision", generator=generator, threshold=threshold)
    x = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    labels = target.labels(x)
    assert labels[0] != REJECTED and labels[1] == REJECTED


def test_the_probe_sees_a_detector_and_its_randomness() -> None:
    class Noisy(_Mean):
        randomized = True

    found = probe(ready(WithDetector(Noisy(INFO), _Classifier(INFO))), _data(), THREAT, rate=0.1, seed=0, batch_size=8)
    assert found.has_detector and found.declared_randomized and found.randomized


def test_a_model_behind_it_that_was_left_in_training_mode_is_named() -> None:
    model = BareModel(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).train(), INFO)
    with pytest.raises(InputError, match="model Sequential: is in training mode"):
        ready(WithDetector(_Mean(INFO), model))


def test_a_detector_without_a_score_or_a_recipe_says_so() -> None:
    with pytest.raises(InputError, match="detector Detector: detect is not implemented"):
        Detector(INFO).detect(torch.zeros(1, 1, 4, 4))
    whole = WithDetector(_Mean(INFO), BareModel(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), INFO))
    assert not whole.has_recipe


def test_scores_can_be_differentiated() -> None:
    whole = ready(WithDetector(_Mean(INFO), _Classifier(INFO)))
    x = torch.rand(2, 1, 4, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(whole.detect(x).sum(), x)
    assert torch.allclose(grad, torch.full_like(x, 1 / 16))
    assert F.softmax(whole(x), 1).shape == (2, 2)
