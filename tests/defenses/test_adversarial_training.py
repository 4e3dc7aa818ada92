"""Adversarial training and distillation: what each recipe's parts do, without training, and what training gave."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy.special import rel_entr, softmax
from torch import Tensor, nn

import attacks
from bench.contracts.defense import Defense, DefenseSpec
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.seeding import seeded
from bench.contracts.threat import Lp
from bench.data.load import load_data
from bench.data.splits import Split
from bench.plugins.resolve import load_defense
from bench.training.recipe import Progress, TrainingRun
from defenses.adversarial_training.advprop import AdvProp, DualBatchNorm, auxiliary
from defenses.adversarial_training.ensemble_at import EnsembleAT
from defenses.adversarial_training.fast_at import FastAT
from defenses.adversarial_training.feature_denoising import DenoisingBlock, FeatureDenoising
from defenses.adversarial_training.free_at import FreeAT, Perturbation
from defenses.adversarial_training.metric_learning import MetricLearning, triplet_loss
from defenses.adversarial_training.trades import TRADES, divergent_examples
from defenses.modified_network.distillation import Distillation
from defenses.parts.adversarial_recipes import minimise_in_ball, one_step_examples

GREY = DataInfo("grey", InputSpec((1, 8, 8)), 10)
COLOUR = DataInfo("colour", InputSpec((3, 32, 32)), 10)
THREAT = Lp("linf", 0.1)
DATA = load_data("digits")
NAMES: dict[type[Defense], str] = {
    FastAT: "fast-at",
    FreeAT: "free-at",
    TRADES: "trades",
    FeatureDenoising: "feature-denoising",
    AdvProp: "advprop",
    EnsembleAT: "ensemble-at",
    MetricLearning: "metric-learning",
    Distillation: "distillation",
}
RECIPES = tuple(NAMES)


@pytest.fixture
def linear() -> nn.Module:
    """Two classes and weights of ±1, so that the worst point of a ball is known."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    network[1].weight.data = torch.tensor([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0]])
    return network


@pytest.fixture
def image() -> Tensor:
    return torch.full((1, 1, 2, 2), 0.5)


def _run(info: DataInfo, folder: Path, n: int, threat: Lp = THREAT) -> TrainingRun:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(n, *info.shape, generator=draw)
    split = Split(x, torch.arange(n) % info.num_classes, [str(i) for i in range(n)])
    return TrainingRun(split, split, info, threat, 0, torch.device("cpu"), folder)


# -- one step, and a growing ball ---------------------------------------------------------------------------


@pytest.mark.parametrize("random_start", [False, True])
def test_one_step_reaches_the_corner_of_the_ball(linear: nn.Module, image: Tensor, random_start: bool) -> None:
    linear.train()
    x_adv = one_step_examples(linear, image, torch.tensor([0]), THREAT, step=2.0, random_start=random_start)
    assert torch.allclose(x_adv.flatten(), torch.tensor([0.4, 0.6, 0.4, 0.6]))
    assert linear.training


def test_one_step_from_the_image_is_as_long_as_said(linear: nn.Module, image: Tensor) -> None:
    x_adv = one_step_examples(linear, image, torch.tensor([1]), THREAT, step=0.5, random_start=False)
    assert torch.allclose(x_adv.flatten(), torch.tensor([0.55, 0.45, 0.55, 0.45]))
    assert torch.equal(image, torch.full_like(image, 0.5))


def test_the_ball_grows_over_the_first_half_and_replays_divide_the_epochs(linear: nn.Module, tmp_path: Path) -> None:
    run = _run(DataInfo("tiny", InputSpec((1, 2, 2)), 2), tmp_path, 4)
    seen = []

    def loss(x: Tensor, y: Tensor, threat: Lp) -> Tensor:
        seen.append(threat.eps)
        return F.cross_entropy(linear(x), y)

    minimise_in_ball(run, linear, loss, stage="test", replays=8)
    assert run.stages[0].epochs == 5
    assert seen == pytest.approx([eps for eps in (0.04, 0.08, 0.1, 0.1, 0.1) for _ in range(8)])


def test_other_norms_are_refused(tmp_path: Path) -> None:
    for cls in (FastAT, EnsembleAT):
        with seeded("weights"), pytest.raises(InputError, match="norm l1 is not available"):
            cls(GREY).fit(_run(GREY, tmp_path, 2, Lp("l1", 1.0)))


# -- free ---------------------------------------------------------------------------------------------------


def test_the_backward_pass_moves_the_perturbation(linear: nn.Module) -> None:
    perturbation, x, y = Perturbation(linear), torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 1])
    perturbation.loss(x, y, THREAT, 0).backward()
    assert linear[1].weight.grad is not None
    up = torch.tensor([-0.1, 0.1, -0.1, 0.1]).view(1, 2, 2)
    assert torch.allclose(perturbation.delta, torch.stack([up, -up]))
    # A smaller batch continues from the first rows; the ball ends at the box.
    perturbation.loss(torch.zeros(1, 1, 2, 2), y[1:], THREAT, 0).backward()
    assert torch.allclose(perturbation.delta[0].flatten(), torch.tensor([0.1, 0.0, 0.1, 0.0]))
    assert torch.allclose(perturbation.delta[1], -up)


def test_the_perturbation_restarts_with_the_epoch(linear: nn.Module, image: Tensor) -> None:
    perturbation, y = Perturbation(linear), torch.tensor([0])
    perturbation.loss(image, y, THREAT, 0).backward()
    clean = F.cross_entropy(linear(image), y)
    assert perturbation.loss(image, y, THREAT, 0) > clean
    assert torch.isclose(perturbation.loss(image, y, THREAT, 1), clean)


def test_an_interrupted_free_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.epoch == 1:
            raise KeyboardInterrupt

    states = []
    for folder, interrupted in (("whole", False), ("parts", True)):
        run = _run(GREY, tmp_path / folder, 33)
        if interrupted:
            with seeded("weights"), pytest.raises(KeyboardInterrupt):
                run.progress = stop
                FreeAT(GREY, replays=20).fit(run)
            run = _run(GREY, tmp_path / folder, 33)
        with seeded("weights"):
            defense = FreeAT(GREY, replays=20)
        defense.fit(run)
        states.append(defense.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


# -- TRADES -------------------------------------------------------------------------------------------------


def test_divergent_examples_maximise_the_divergence(linear: nn.Module, image: Tensor) -> None:
    with seeded("start"):
        x_adv = divergent_examples(linear, image, THREAT, 10)
    assert torch.allclose((x_adv - image).abs(), torch.full_like(image, 0.1))
    with torch.no_grad():
        p, q = (softmax(linear(z).double().numpy(), axis=1) for z in (image, x_adv))
    # Both corners along the weights are as far as the ball reaches: logits of ±0.4.
    assert math.isclose(rel_entr(p, q).sum(), -math.log(2) + math.log(2 * math.cosh(0.4)), rel_tol=1e-5)


# -- feature denoising --------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", ["gaussian", "dot-product"])
def test_non_local_mean_against_a_loop(similarity: str) -> None:
    with seeded("block"):
        block, x = DenoisingBlock(4, similarity).eval(), torch.randn(2, 4, 3, 2)  # type: ignore[arg-type]
    pixels = x.flatten(2).mT
    expected = torch.zeros_like(pixels)
    with torch.no_grad():
        for n in range(2):
            for i in range(6):
                if similarity == "gaussian":
                    theta, phi = block.theta(x).flatten(2).mT, block.phi(x).flatten(2).mT
                    weights = (phi[n] @ theta[n, i] / math.sqrt(2)).softmax(0)
                else:
                    weights = pixels[n] @ pixels[n, i] / 6
                expected[n, i] = (weights[:, None] * pixels[n]).sum(0)
        assert torch.allclose(block.non_local_mean(x), expected.mT.view_as(x), atol=1e-5)
        assert torch.equal(block(x), x)  # the identity until it has learnt something


@pytest.mark.parametrize(
    ("info", "network", "channels"),
    [
        (GREY, "auto", [32, 64]),
        (GREY, "cnn-a", [16, 32]),
        (COLOUR, "resnet8", [16, 32, 64]),
        (COLOUR, "vgg", [64, 128, 128, 128]),
        (DataInfo("large", InputSpec((3, 64, 64)), 10), "resnet8", [32, 64]),
    ],
)
def test_a_block_ends_every_resolution(info: DataInfo, network: str, channels: list[int]) -> None:
    classifier = FeatureDenoising(info, network=network).classifier
    assert [block.conv.in_channels for block in classifier if isinstance(block, DenoisingBlock)] == channels


# -- AdvProp ------------------------------------------------------------------------------------------------


def test_clean_and_adversarial_batches_keep_to_their_statistics() -> None:
    with seeded("weights"):
        network = AdvProp(GREY).classifier.train()
    first = next(module for module in network.modules() if isinstance(module, DualBatchNorm))
    with auxiliary(network):
        network(torch.rand(4, 1, 8, 8))
    assert first.main.num_batches_tracked == 0
    assert first.auxiliary.num_batches_tracked == 1
    network(torch.rand(4, 1, 8, 8))
    assert first.main.num_batches_tracked == 1
    assert first.auxiliary.num_batches_tracked == 1


# -- metric learning ----------------------------------------------------------------------------------------


def test_triplet_loss_against_a_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    anchor, clean = torch.randn(5, 3, generator=draw), torch.randn(5, 3, generator=draw)
    y = torch.tensor([0, 0, 1, 1, 2])
    positives = [1, 0, 3, 2, 4]  # the only other one of its class, or its own clean image
    losses = []
    for i in range(5):
        far = [1 - F.cosine_similarity(anchor[i], clean[j], dim=0).abs() for j in range(5)]
        negative = min(far[j] for j in range(5) if y[j] != y[i])
        losses.append(max(0.0, float(far[positives[i]] - negative) + 0.03))
    assert max(losses) > 0.03
    assert torch.isclose(triplet_loss(anchor, clean, y, 0.03), torch.tensor(losses).mean())


def test_triplet_loss_of_one_class_is_zero() -> None:
    assert triplet_loss(torch.randn(3, 2), torch.randn(3, 2), torch.zeros(3, dtype=torch.long), 0.03) == 0


# -- all of them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "params", "message"),
    [
        (FastAT, {"step": 0.0}, "fast-at: step 0.0"),
        (FreeAT, {"replays": 0}, "free-at: replays 0"),
        (TRADES, {"beta": -1.0}, "trades: beta -1.0"),
        (TRADES, {"steps": 0}, "trades: steps 0"),
        (FeatureDenoising, {"similarity": "cosine"}, "feature-denoising: similarity cosine"),
        (FeatureDenoising, {"steps": 0}, "feature-denoising: steps 0"),
        (AdvProp, {"steps": 0}, "advprop: steps 0"),
        (AdvProp, {"network": "cnn-a"}, "advprop: network cnn-a"),
        (EnsembleAT, {"sources": 4}, "ensemble-at: sources 4"),
        (MetricLearning, {"weight": -1.0}, "metric-learning: weight -1.0"),
        (MetricLearning, {"margin": 2.0}, "metric-learning: margin 2.0"),
        (MetricLearning, {"steps": 0}, "metric-learning: steps 0"),
        (Distillation, {"temperature": 0.5}, "distillation: temperature 0.5"),
    ],
)
def test_impossible_parameters(cls: type[Defense], params: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cls(GREY, **params)


@pytest.mark.parametrize("cls", RECIPES, ids=lambda cls: cls.__name__)
def test_training_is_repeatable_and_leaves_nothing_in_training_mode(
    cls: type[Defense], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two epochs of every stage.
    minimise = TrainingRun.minimise
    monkeypatch.setattr(TrainingRun, "minimise", lambda *args, **kw: minimise(*args, **kw | {"epochs": 2}))
    states = []
    for folder in ("one", "two"):
        with seeded("weights"):
            defense = cls(GREY)
            defense.fit(_run(GREY, tmp_path / folder, 24))
        defense.eval()
        states.append(defense.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    with seeded("weights"):
        untrained = cls(GREY).state_dict()
    assert not all(torch.equal(value, untrained[name]) for name, value in states[0].items())


# -- the shipped digits checkpoints -------------------------------------------------------------------------


def _accuracy(name: str, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (_load(name)(x).argmax(1) == y).double().mean().item()


def _load(name: str) -> Defense:
    return load_defense(DefenseSpec(name), DATA.info).defense.eval()


def _under_pgd(name: str, steps: int = 20, loss: str = "margin") -> float:
    some = DATA.test.take(50)
    found = attacks.run("pgd", _load(name), some.x, some.y, eps=0.2, steps=steps, loss=loss)
    return _accuracy(name, found.x_adv, some.y)


@pytest.mark.parametrize("cls", RECIPES, ids=lambda cls: cls.__name__)
def test_clean_accuracy_on_digits(cls: type[Defense]) -> None:
    some = DATA.test.take(200)
    assert _accuracy(NAMES[cls], some.x, some.y) >= 0.95


@pytest.mark.parametrize("name", ["free-at", "trades", "feature-denoising", "metric-learning"])
def test_adversarial_training_stands(name: str) -> None:
    assert 0.5 <= _under_pgd(name) <= 0.85


def test_fast_resists_single_steps_better_than_many() -> None:
    """Catastrophic overfitting, in part: eps 0.2 is large for a single step."""
    some = DATA.test.take(50)
    single = attacks.run("fgsm", _load("fast-at"), some.x, some.y, eps=0.2).x_adv
    assert _accuracy("fast-at", single, some.y) >= _under_pgd("fast-at") + 0.2


@pytest.mark.parametrize("name", ["advprop", "ensemble-at"])
def test_what_promises_no_worst_case_falls(name: str) -> None:
    assert _under_pgd(name) <= 0.35


def test_distillation_starves_cross_entropy_but_not_the_margin() -> None:
    defense, some = _load("distillation"), DATA.test.take(50)
    x = some.x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(defense(x), some.y, reduction="sum"), x)
    assert (grad.flatten(1).abs().amax(1) == 0).double().mean() >= 0.8
    assert _under_pgd("distillation", loss="ce") >= 0.8
    assert _under_pgd("distillation", loss="margin") <= 0.1


def test_logits_divided_by_the_temperature_show_the_gradient() -> None:
    """Carlini & Wagner 2016: the same attack on cross-entropy breaks the network without its scale."""

    class Divided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = defense(x) / 100
            return logits

    defense, some = _load("distillation"), DATA.test.take(50)
    found = attacks.run("pgd", Divided().eval(), some.x, some.y, eps=0.2, steps=20, loss="ce")
    assert _accuracy("distillation", found.x_adv, some.y) <= 0.1
