"""Training: a killed run continues to the very same weights, finished stages are skipped, the record is complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts.defense import Defense, DefenseSpec
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.reporting import Report, listening
from bench.contracts.threat import Lp
from bench.data.splits import Data, Split
from bench.storing.checkpoints import TrainingSettings, load_, record_path, round_to_half_
from bench.training.recipe import Progress, TrainingRun, train_defense

THREAT = Lp("linf", 0.1)
INFO = DataInfo("toy", InputSpec((1, 4, 4)), 2)
SPEC = DefenseSpec("toy-defense")


def _data() -> Data:
    generator = torch.Generator().manual_seed(0)

    def split(n: int, name: str) -> Split:
        y = torch.arange(n) % 2
        x = torch.rand(n, 1, 4, 4, generator=generator) * 0.5 + 0.5 * y.view(-1, 1, 1, 1)
        return Split(x, y, [f"{name}/{i}" for i in range(n)])

    return Data(INFO, ["dark", "light"], split(50, "train"), split(20, "validation"), split(20, "test"))


class _TwoStages(Defense):
    """Two stages with every kind of state: momentum, Adam's moments, batch norm, dropout, random augmentation."""

    def __init__(self, data: DataInfo) -> None:
        super().__init__(data)
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(8, 8), nn.Dropout(0.3), nn.Linear(8, 2))
        self.lr = 0.1

    def transform(self, x: Tensor) -> Tensor:
        return self.first(x).view(-1, 1, 2, 4)

    def fit(self, run: TrainingRun) -> None:
        def noisy(x: Tensor) -> Tensor:
            return x + 0.1 * torch.randn_like(x)

        run.minimise(
            "first", self.first, lambda x, y: F.cross_entropy(self.first(x), y),
            epochs=3, batch_size=16, lr=self.lr, milestones=(2,), augment=noisy,
        )  # fmt: skip
        run.minimise(
            "second", self.classifier, lambda x, y: F.cross_entropy(self(x), y),
            epochs=3, batch_size=16, lr=0.01, optimizer="adam",
            policy="one-cycle", average=0.9, precision="bfloat16",
        )  # fmt: skip


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.training.recipe.build_defense", lambda spec, info: _TwoStages(info))


def _train(folder: Path, data: Data, progress=None, seed: int = 1) -> Path:
    return train_defense(SPEC, data, TrainingSettings("toy", 1, THREAT, seed), folder=folder, progress=progress)


def _killer(at: int):
    """A progress callback that interrupts after ``at`` epochs, as Ctrl-C would."""
    seen = []

    def progress(event: Progress) -> None:
        seen.append(event)
        if len(seen) == at:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("epochs_before_kill", [1, 2, 3, 4, 5, 6])
def test_killed_run_continues_bit_identically(tmp_path: Path, epochs_before_kill: int) -> None:
    data = _data()
    undisturbed = _train(tmp_path / "a", data)
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "b", data, _killer(epochs_before_kill))
    assert not list((tmp_path / "b").rglob("toy-*.safetensors"))
    torch.manual_seed(99)  # whatever the new process has drawn before
    events: list[Progress] = []
    continued = _train(tmp_path / "b", data, events.append)
    assert continued.read_bytes() == undisturbed.read_bytes()
    assert len(events) == 6 - epochs_before_kill
    assert [p.name for p in continued.parent.iterdir() if p.is_dir()] == []


def test_other_seed_gives_other_weights_and_does_not_continue(tmp_path: Path) -> None:
    data = _data()
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "b", data, _killer(4))
    events: list[Progress] = []
    other = _train(tmp_path / "b", data, events.append, seed=2)
    assert len(events) == 6
    assert other.read_bytes() == _train(tmp_path / "c", data, seed=2).read_bytes()
    assert other.read_bytes() != _train(tmp_path / "a", data).read_bytes()


def test_a_long_epoch_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.training.recipe._REPORTED", 2)
    heard: list[Report] = []
    with listening(heard.append):
        _train(tmp_path, _data())
    first = [said for said in heard if said.text.startswith("first")]
    assert [said.text for said in first] == [f"first, epoch {epoch}/3" for epoch in (1, 2, 3)]  # of 4 batches each
    assert [said.fraction for said in first] == [pytest.approx((epoch + 32 / 50) / 3) for epoch in range(3)]


def test_damaged_state_is_started_over(tmp_path: Path) -> None:
    data = _data()
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "b", data, _killer(2))
    (state,) = tmp_path.rglob("first.safetensors")
    state.write_bytes(state.read_bytes()[:100])
    assert _train(tmp_path / "b", data).read_bytes() == _train(tmp_path / "a", data).read_bytes()


def test_record(tmp_path: Path) -> None:
    data = _data()
    events: list[Progress] = []
    path = _train(tmp_path, data, events.append)
    training = json.loads(record_path(path).read_text())["training"]
    assert training["defense"] == "toy-defense"
    assert training["threat"] == {"norm": "linf", "eps": 0.1}
    assert training["seed"] == 1
    assert [s["name"] for s in training["stages"]] == ["first", "second"]
    assert training["stages"][1]["loss"] == events[-1].loss
    assert training["seconds"] >= sum(s["seconds"] for s in training["stages"]) - 1e-3 > 0
    assert {"python", "torch"} <= training["versions"].keys()
    defense = _TwoStages(INFO).eval()
    load_(defense, path)
    right = (defense(data.validation.x).argmax(1) == data.validation.y).float().mean().item()
    assert training["validation_accuracy"] == pytest.approx(right)
    assert right >= 0.9  # the toy problem is easy: training works
    assert [(e.stage, e.epoch, e.epochs) for e in events] == [
        (stage, epoch, 3) for stage in ("first", "second") for epoch in (1, 2, 3)
    ]
    assert all(e.rate > 0 for e in events)


def test_a_recipe_that_declares_no_threat_model_is_refused_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_TwoStages, "trains_in_ball", False)
    path = _train(tmp_path, _data())
    assert json.loads(record_path(path).read_text())["training"]["threat"] is None
    monkeypatch.setattr(_TwoStages, "fit", lambda self, run: run.threat)
    with pytest.raises(InputError, match=r"uses run\.threat, but its defense declares trains_in_ball = False"):
        _train(tmp_path, _data())


def test_another_threat_model_overwrites_nothing(tmp_path: Path) -> None:
    data = _data()
    first = _train(tmp_path, data)
    before = first.read_bytes()
    settings = TrainingSettings("toy", 1, Lp("l2", 0.1), seed=1)
    second = train_defense(SPEC, data, settings, folder=tmp_path)
    assert first != second and first.read_bytes() == before


def test_training_leaves_the_global_generators_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    _train(tmp_path, _data())
    assert torch.equal(torch.rand(3), expected)


def test_divergence_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(spec: DefenseSpec, info: DataInfo) -> Defense:
        defense = _TwoStages(info)
        defense.lr = float("inf")
        return defense

    monkeypatch.setattr("bench.training.recipe.build_defense", build)
    with pytest.raises(InputError, match="stage first, epoch 1: the loss became nan"):
        _train(tmp_path, _data())


def test_milestones_lower_the_learning_rate(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.zeros(1))
    module = nn.Module()
    module.weight = weight
    data = _data()
    run = TrainingRun(data.train, data.validation, INFO, THREAT, 0, torch.device("cpu"), tmp_path)
    # The gradient is 1 everywhere, so each epoch of one batch moves the weight by the learning rate.
    run.minimise(
        "slope", module, lambda x, y: weight.sum(),
        epochs=4, batch_size=50, lr=1.0, momentum=0.0, milestones=(1, 3),
    )  # fmt: skip
    assert weight.item() == pytest.approx(-(1 + 0.1 + 0.1 + 0.01))


def _slope(folder: Path, **settings: object) -> list[float]:
    """The weight after each epoch of one batch where the gradient is 1 everywhere: it moves by the learning rate."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(1))
    data = _data()
    seen: list[float] = []
    run = TrainingRun(data.train, data.validation, INFO, THREAT, 0, torch.device("cpu"), folder)
    run.progress = lambda event: seen.append(module.weight.item())
    run.minimise("slope", module, lambda x, y: module.weight.sum(), batch_size=50, momentum=0.0, **settings)
    return [*seen, module.weight.item()]


def test_one_cycle_rises_over_a_fifth_and_falls_to_zero(tmp_path: Path) -> None:
    weights = _slope(tmp_path, epochs=10, lr=1.0, policy="one-cycle")
    rates = [before - after for before, after in zip([0.0, *weights], weights, strict=False)][:-1]
    # Two steps of ten up to the top, eight down; each has the rate of its middle.
    assert rates == pytest.approx(
        [0.25, 0.75, *[(1 - s) / 0.8 for s in (0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)]]
    )


def test_the_average_starts_with_the_second_epoch_and_is_what_is_left(tmp_path: Path) -> None:
    *steps, final = _slope(tmp_path, epochs=4, lr=1.0, average=0.5)
    assert steps == [-1, -2, -3, -4]
    average = -1.0
    for weight in (-2, -3, -4):
        average = 0.5 * average + 0.5 * weight
    assert final == pytest.approx(average)


def test_bfloat16_trains_float32_weights_that_follow_every_step(tmp_path: Path) -> None:
    """Autocast keeps casts of the weights while it is entered: entered once per epoch, it would learn nothing."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    data = _data()
    run = TrainingRun(data.train, data.validation, INFO, THREAT, 0, torch.device("cpu"), tmp_path)
    kinds, losses = set(), []

    def loss(x: Tensor, y: Tensor) -> Tensor:
        logits = network(x)
        kinds.add(logits.dtype)
        value = F.cross_entropy(logits, y)
        losses.append(value.item())
        return value

    run.minimise("s", network, loss, epochs=1, batch_size=2, lr=0.1, precision="bfloat16")
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_half_precision_stores_the_very_weights_that_were_measured(tmp_path: Path) -> None:
    data = _data()
    whole = _train(tmp_path / "a", data)
    path = train_defense(SPEC, data, TrainingSettings("toy", 1, THREAT, 1), folder=tmp_path / "b", half=True)
    assert path.stat().st_size < whole.stat().st_size
    exact, rounded = _TwoStages(INFO), _TwoStages(INFO)
    load_(exact, whole)
    load_(rounded, path)
    for name, tensor in rounded.state_dict().items():
        assert tensor.dtype == exact.state_dict()[name].dtype
        assert torch.equal(tensor, exact.state_dict()[name].half().to(tensor))
    accuracy = json.loads(record_path(path).read_text())["training"]["validation_accuracy"]
    right = (rounded.eval()(data.validation.x).argmax(1) == data.validation.y).float().mean()
    assert accuracy == pytest.approx(right.item())


def test_half_precision_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    defense = _TwoStages(INFO)
    with torch.no_grad():
        defense.first[1].weight[0] = 1e5
    with pytest.raises(InputError, match=r"first\.1\.weight has a value beyond 65504"):
        round_to_half_(defense)
