"""The shipped detectors: a known answer for each, and what all of them promise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from scipy.spatial.distance import jensenshannon, mahalanobis
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KernelDensity as SklearnKernelDensity
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from bench.contracts.defense import BareModel, Defense, DefenseSpec
from bench.contracts.detector import Detector, WithDetector
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.seeding import seeded
from bench.contracts.threat import Lp
from bench.plugins.references import resolve
from bench.plugins.registry import DEFENSES
from bench.plugins.resolve import build_defense
from defenses.detection.detector_ensemble import DetectorEnsemble
from defenses.detection.dropout_uncertainty import DropoutUncertainty, uncertainty
from defenses.detection.feature_squeezing import (
    FeatureSqueezing,
    median_2x2,
    non_local_means,
    reduce_bit_depth,
)
from defenses.detection.inner_features import InnerFeatures
from defenses.detection.kernel_density import KernelDensity, log_density
from defenses.detection.lid import LID, intrinsic_dimensionality
from defenses.detection.magnet import MagNet, jensen_shannon
from defenses.detection.mahalanobis import Mahalanobis, gaussians, squared_distances
from defenses.detection.odds import Odds
from defenses.detection.outlier_class import OutlierClass
from defenses.detection.reconstruction import Reconstruction
from defenses.parts import detection as parts

GREY = DataInfo("grey", InputSpec((1, 28, 28)), 10)
COLOUR = DataInfo("colour", InputSpec((3, 32, 32)), 10)
DIGITS = DataInfo("digits", InputSpec((1, 8, 8)), 10)
INFOS = pytest.mark.parametrize("info", [DIGITS, GREY, COLOUR], ids=lambda info: f"{info.shape[0]}x{info.shape[1]}")
NAMES = [name for name in DEFENSES.built_in() if issubclass(resolve(name), Detector)]  # type: ignore[arg-type]
EACH = pytest.mark.parametrize("name", NAMES)
SMALL = "tests/helpers/small_network.py:Small"


def _images(info: DataInfo, n: int) -> Tensor:
    return torch.rand(n, *info.shape, generator=torch.Generator().manual_seed(1))


def _built(name: str, info: DataInfo, **params: Any) -> WithDetector:
    """Untrained; what is random in it is the same every time."""
    small = {} if info is DIGITS else {"classifier": SMALL}
    with seeded("weights"):
        made = build_defense(DefenseSpec(name, {**small, **params}), info).eval()
    assert isinstance(made, WithDetector)
    if isinstance(made.detector, LID):  # untrained it knows nothing, and all is equally far from that
        made.detector.known.copy_(torch.rand(made.detector.known.shape, generator=torch.Generator().manual_seed(2)))
    return made


def _in_front_of(detector: Detector, network: nn.Module, info: DataInfo = DIGITS) -> Detector:
    return WithDetector(detector, BareModel(network.eval(), info)).detector.eval()  # type: ignore[return-value]


class Linear(nn.Module):
    """Logits linear in a hidden layer that is the image itself."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.flatten, self.out = nn.Flatten(), nn.Linear(weight.shape[1], len(weight), bias=False)
        self.out.weight.data = weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.flatten(x))
        return logits


def _linear(seed: int = 0) -> Linear:
    return Linear(torch.randn(10, 64, generator=torch.Generator().manual_seed(seed)))


# -- all of them --------------------------------------------------------------------------------------------


def test_there_is_one_of_every_kind() -> None:
    assert len(NAMES) == 13


@EACH
@INFOS
def test_scores_belong_to_the_image_and_not_to_its_batch(name: str, info: DataInfo) -> None:
    defense, x = _built(name, info, **({"samples": 4} if name == "odds" else {})), _images(info, 5)
    with torch.no_grad(), seeded("draw"):
        whole = defense.detect(x)
    assert whole.shape == (5,) and torch.isfinite(whole).all()
    if defense.randomized:
        return
    for size in (1, 3):
        with torch.no_grad():
            parts_ = torch.cat([defense.detect(part) for part in x.split(size)])
        assert torch.allclose(whole, parts_, rtol=1e-3, atol=1e-4)


@EACH
@INFOS
def test_scores_can_be_differentiated_in_x(name: str, info: DataInfo) -> None:
    defense = _built(name, info, **({"samples": 4} if name == "odds" else {}))
    x = _images(info, 2).requires_grad_()
    (grad,) = torch.autograd.grad(defense.detect(x).sum(), x)
    assert torch.isfinite(grad).all()
    assert grad.abs().flatten(1).sum(1).min() > 0


@EACH
def test_it_stands_in_front_of_a_named_classifier_too(name: str) -> None:
    defense = _built(name, DIGITS, classifier="madry")
    assert type(defense.defense).__name__ == "Madry"
    assert not any("guarded" in key or "_guarded" in key for key in defense.detector.state_dict())
    size = sum(value.numel() * value.element_size() for value in defense.state_dict().values())
    assert size < 1_000_000


def test_a_detector_in_front_of_nothing_says_so() -> None:
    with pytest.raises(InputError, match="FeatureSqueezing: stands in front of no classifier"):
        FeatureSqueezing(DIGITS).detect(_images(DIGITS, 1))


@pytest.mark.parametrize(("name", "params", "message"), [
    ("adversarial-retraining", {"loss": "ce-sign"}, "did you mean 'ce_sign'"),
    ("outlier-class", {"loss": "all"}, "loss 'all' is not one of ce, ce_sign, logit, m_logit, joint"),
    ("detector-ensemble", {"members": "lid+madry"}, "member 'madry' does not exist"),
    ("detector-ensemble", {"members": "lid+lid"}, "names one twice"),
    ("feature-squeezing", {"bits": 9}, "bits 9 is outside 1..8"),
    ("feature-squeezing", {"squeezers": "bits+mean"}, "squeezer 'mean' does not exist"),
    ("kernel-density", {"points": 0}, "points 0"),
    ("lid", {"neighbours": 200}, "neighbours 200 is outside 2..100"),
    ("mahalanobis", {"magnitude": 2.0}, "magnitude 2.0"),
    ("inner-features", {"stage": 9}, "stage 9 is outside -1..3"),
    ("dropout-uncertainty", {"rate": 1.0}, "rate 1.0"),
    ("odds", {"sigma": 0.0}, "sigma 0.0"),
    ("magnet", {"width": 0}, "width 0"),
    ("reconstruction", {"reads": "image"}, "reads"),
])  # fmt: skip
def test_impossible_parameters(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_defense(DefenseSpec(name, params), DIGITS)
    assert "\n" not in str(caught.value)


# -- feature squeezing --------------------------------------------------------------------------------------


def test_squeezers() -> None:
    x = torch.rand(2, 3, 7, 9)
    squeezed = torch.stack([torch.stack([torch.from_numpy(median_filter(c.numpy(), size=2)) for c in i]) for i in x])
    assert torch.equal(median_2x2(x), squeezed)
    levels = reduce_bit_depth(x, 2) * 3
    assert torch.allclose(levels, levels.round(), atol=1e-5)
    assert (reduce_bit_depth(x, 2) - x).abs().max() <= 1 / 6 + 1e-6


def test_non_local_means_is_its_formula() -> None:
    x = torch.rand(1, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    search, patch, h = 5, 3, 0.3
    image = x[0].numpy().astype(float)
    padded = np.pad(image, ((0, 0), (3, 3), (3, 3)), mode="reflect")

    def patch_at(i: int, j: int) -> Any:
        return padded[:, i + 2 : i + 5, j + 2 : j + 5]

    expected = np.zeros_like(image)
    for i in range(6):
        for j in range(5):
            total = 0.0
            for a in range(-2, 3):
                for b in range(-2, 3):
                    w = math.exp(-((patch_at(i, j) - patch_at(i + a, j + b)) ** 2).mean() / h**2)
                    expected[:, i, j] += w * padded[:, i + a + 3, j + b + 3]
                    total += w
            expected[:, i, j] /= total
    assert np.allclose(non_local_means(x, search, patch, h)[0].numpy(), expected, atol=1e-5)


def test_the_squeezers_are_the_papers_for_the_kind_of_image_and_the_score_is_the_largest() -> None:
    names = [list(FeatureSqueezing(info).squeezers) for info in (DIGITS, GREY, COLOUR)]
    assert names == [["bits"], ["bits", "median"], ["bits", "median", "nlm"]]
    x = _images(COLOUR, 3)
    network = _built("feature-squeezing", COLOUR).defense.classifier
    with torch.no_grad():
        each = [
            _in_front_of(FeatureSqueezing(COLOUR, squeezers=one), network, COLOUR).detect(x) for one in names[2]
        ]
        joint = _in_front_of(FeatureSqueezing(COLOUR), network, COLOUR).detect(x)
    assert torch.allclose(torch.stack(each).amax(0), joint)
    assert _built("feature-squeezing", COLOUR).detect(torch.ones(1, *COLOUR.shape)).item() == pytest.approx(0, abs=1e-5)


# -- kernel density and dropout -----------------------------------------------------------------------------


def test_kernel_density_is_that_of_scikit_learn() -> None:
    points, x = torch.randn(3, 30, 5), torch.randn(3, 5)
    ours = log_density(x, points, torch.tensor(0.7))
    for row in range(3):
        theirs = SklearnKernelDensity(bandwidth=0.7).fit(points[row].numpy()).score_samples(x[row : row + 1].numpy())
        assert ours[row].item() == pytest.approx(theirs[0], abs=1e-4)


def test_kernel_density_takes_the_points_of_the_predicted_class() -> None:
    network = _linear()
    detector = _in_front_of(KernelDensity(DIGITS, points=3, bandwidth=1.0), network)
    assert isinstance(detector, KernelDensity)
    x = _images(DIGITS, 6)
    predicted = network(x).argmax(1)
    detector.points.copy_(torch.randn(detector.points.shape))
    expected = -log_density(x.flatten(1), detector.points[predicted], torch.tensor(1.0))
    assert torch.allclose(detector.detect(x), expected)


def test_dropout_uncertainty_of_one_unit_is_that_of_a_coin() -> None:
    # One hidden unit is doubled or dropped: the logit of class 1 is 2 or 0, each half of the time.
    hidden, weight = torch.ones(4, 1), torch.tensor([[0.0], [1.0]])
    with seeded("dropout"):
        found = uncertainty(hidden, weight, None, rate=0.5, passes=20_000)
    p = 1 / (1 + math.exp(-2.0))
    assert torch.allclose(found, torch.full((4,), (p - 0.5) ** 2 / 4), rtol=0.02)
    defense = _built("dropout-uncertainty", DIGITS)
    assert isinstance(defense.detector, DropoutUncertainty) and defense.randomized


# -- LID, Mahalanobis, odds -----------------------------------------------------------------------------------


def test_lid_is_its_formula() -> None:
    distances = torch.tensor([[4.0, 1.0, 2.0, 9.0], [0.5, 0.5, 0.25, 3.0]])
    for row, (d1, d2, d3) in zip(distances, [(1.0, 2.0, 4.0), (0.25, 0.5, 0.5)], strict=True):
        expected = -3 / (math.log(d1 / d3) + math.log(d2 / d3) + math.log(1))
        assert intrinsic_dimensionality(row[None], 3).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dimension", [2, 5])
def test_lid_of_a_uniform_ball_is_its_dimension(dimension: int) -> None:
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(4000, dimension, generator=draw)
    points = points / points.norm(dim=1, keepdim=True) * torch.rand(4000, 1, generator=draw) ** (1 / dimension)
    centre = 0.05 * torch.randn(200, dimension, generator=draw)
    estimate = intrinsic_dimensionality(torch.cdist(centre, points), 100).mean()
    assert estimate.item() == pytest.approx(dimension, rel=0.1)


def test_lid_compares_every_stage_with_the_kept_images() -> None:
    network = _linear()
    detector = _in_front_of(LID(DIGITS, minibatch=30, neighbours=5), network)
    assert isinstance(detector, LID)
    detector.known.copy_(_images(DIGITS, 30))
    x = torch.rand(4, 1, 8, 8)
    expected = intrinsic_dimensionality(torch.cdist(x.flatten(1), detector.known.flatten(1)), 5)
    assert torch.allclose(detector.measured(x)[:, -1], expected, rtol=1e-3)


def test_mahalanobis_distances_are_those_of_scipy() -> None:
    draw = torch.Generator().manual_seed(0)
    features, y = torch.randn(60, 4, generator=draw), torch.arange(60) % 3
    means, precision = gaussians(features, y, 3)
    away = (features - torch.stack([features[y == k].mean(0) for k in range(3)])[y]).numpy()
    covariance = away.T @ away / 60
    covariance += 1e-3 * covariance.diagonal().mean() * np.eye(4)
    assert np.allclose(precision.numpy(), np.linalg.inv(covariance), rtol=1e-3)
    found = squared_distances(features, means, precision)
    for row in range(5):
        for k in range(3):
            theirs = mahalanobis(features[row].numpy(), means[k].numpy(), np.linalg.inv(covariance)) ** 2
            assert found[row, k].item() == pytest.approx(theirs, rel=1e-3)


def test_the_step_of_mahalanobis_brings_x_nearer() -> None:
    network = _linear()
    detector = _in_front_of(Mahalanobis(DIGITS, magnitude=0.01), network)
    assert isinstance(detector, Mahalanobis)
    x = 0.2 + 0.6 * _images(DIGITS, 4)  # the means are at 0, the covariance is the identity
    with torch.no_grad():
        measured, without = detector.measured(x), detector.distances(x)
    assert torch.allclose(without[:, -1], x.flatten(1).square().sum(1), rtol=1e-5)
    assert torch.allclose(measured[:, -1], (x - 0.01).flatten(1).square().sum(1), rtol=1e-5)


def test_the_odds_of_a_linear_model_are_z_scores_by_hand() -> None:
    network = _linear()
    detector = _in_front_of(Odds(DIGITS, samples=3, sigma=0.5), network)
    assert isinstance(detector, Odds)
    x = _images(DIGITS, 4)
    detector.mean.copy_(torch.randn(10, 10))
    detector.std.copy_(torch.rand(10, 10) + 0.5)
    with seeded("noise"):
        found = detector.detect(x)
    with seeded("noise"):
        eta = 0.5 * torch.randn(3, 4, 1, 8, 8)
    for row in range(4):
        y = int(network(x)[row].argmax())
        moved = network.out(eta[:, row].flatten(1)).mean(0)  # f(x + η) - f(x)
        scores = [(moved[z] - moved[y] - detector.mean[y, z]) / detector.std[y, z] for z in range(10) if z != y]
        assert found[row].item() == pytest.approx(max(scores).item(), rel=1e-3, abs=1e-4)


def test_the_odds_of_noise_alone_are_standard_normal() -> None:
    """On a linear model every z-score is that of a mean of Gaussians, whatever x is."""
    network, x = _linear(), _images(DIGITS, 300)
    detector = _in_front_of(Odds(DIGITS, samples=8, sigma=0.3), network)
    assert isinstance(detector, Odds)
    w = network.out.weight.detach()
    detector.std.copy_(0.3 / math.sqrt(8) * torch.cdist(w, w).clamp_min(1e-6))
    with torch.no_grad(), seeded("noise"):
        y, moved = detector.moves(x)
        z = ((moved - detector.mean[y]) / detector.std[y]).gather(1, (y[:, None] + 1) % 10)
    assert abs(z.mean()) < 0.2 and z.std().item() == pytest.approx(1, abs=0.15)
    assert (z < norm.ppf(0.9)).float().mean().item() == pytest.approx(0.9, abs=0.06)


# -- networks -----------------------------------------------------------------------------------------------


def test_outlier_class_scores_the_log_odds_of_the_last_class() -> None:
    defense, x = _built("outlier-class", DIGITS), _images(DIGITS, 3)
    assert isinstance(defense.detector, OutlierClass)
    p = defense.detector.reader(x).softmax(1)
    assert p.shape == (3, 11)
    assert torch.allclose(defense.detect(x), (p[:, -1] / (1 - p[:, -1])).log(), atol=1e-4)


def test_reconstruction_depends_on_the_logits_alone_unless_it_reads_the_residual() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x = _images(DIGITS, 4)
    null = torch.linalg.svd(network[1].weight.data).Vh[-1].view(1, 1, 8, 8)  # type: ignore[arg-type]
    moved = x + 0.5 * null
    for reads, same in (("reconstruction", True), ("residual", False)):
        with seeded("weights"):
            detector = _in_front_of(Reconstruction(DIGITS, reads=reads), network)  # type: ignore[arg-type]
        with torch.no_grad():
            assert torch.allclose(detector.detect(x), detector.detect(moved), atol=1e-4) is same


def test_magnet_measures_errors_and_divergences() -> None:
    defense, x = _built("magnet", DIGITS), _images(DIGITS, 3)
    magnet = defense.detector
    assert isinstance(magnet, MagNet)
    with torch.no_grad():
        measured, fine, coarse = magnet.measured(x), magnet.fine(x), magnet.coarse(x)
        assert torch.allclose(measured[:, 0], (x - coarse).square().mean((1, 2, 3)))
        assert torch.allclose(measured[:, 1], (x - fine).abs().mean((1, 2, 3)))
        p, q = (defense(z).div(10).softmax(1).numpy() for z in (x, fine))
    assert np.allclose(measured[:, 2].numpy(), jensenshannon(p, q, axis=1) ** 2, atol=1e-5)
    assert torch.allclose(jensen_shannon(torch.zeros(1, 3), torch.zeros(1, 3)), torch.zeros(1), atol=1e-7)
    odd = DataInfo("odd", InputSpec((1, 7, 9)), 10)
    assert MagNet(odd).coarse(torch.rand(1, 1, 7, 9)).shape == (1, 1, 7, 9)


def test_inner_features_reads_the_stage_it_names() -> None:
    shapes = [_built("inner-features", DIGITS, stage=number).detector.layer.shape for number in (0, 1, 2, 3)]  # type: ignore[union-attr]
    assert shapes == [(16, 8, 8), (32, 8, 8), (32, 4, 4), (64, 4, 4)]
    assert _built("inner-features", DIGITS).detector.layer.shape == (32, 4, 4)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="no convolutional stage"):
        _in_front_of(InnerFeatures(DIGITS), _linear())


def test_an_ensemble_takes_the_largest_standardised_score() -> None:
    defense, x = _built("detector-ensemble", DIGITS, members="feature-squeezing+kernel-density"), _images(DIGITS, 4)
    ensemble = defense.detector
    assert isinstance(ensemble, DetectorEnsemble)
    ensemble.standardised.fit_(ensemble.measured(x))
    with torch.no_grad():
        each = torch.stack([member.detect(x) for member in ensemble.members], 1)  # type: ignore[operator]
        expected = ((each - each.mean(0)) / each.std(0, correction=0).clamp_min(1e-6)).amax(1)
    assert torch.allclose(ensemble.detect(x), expected, atol=1e-4)


# -- what recipes share -------------------------------------------------------------------------------------


def test_logistic_regression_is_scikit_learns() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3 == 0
    measured = torch.randn(90, 3, generator=draw) * torch.tensor([1.0, 100.0, 0.01]) + labels[:, None]
    score = parts.LogisticScore(3)
    score.fit_(measured, labels.long())
    scaler = StandardScaler().fit(measured.double().numpy())
    model = LogisticRegression(class_weight="balanced", max_iter=2000)
    model.fit(scaler.transform(measured.double().numpy()), labels.numpy())
    theirs = model.decision_function(scaler.transform(measured.double().numpy()))
    assert np.allclose(score(measured).numpy(), theirs, atol=1e-3)


def _towards(y: Tensor) -> Tensor:
    with seeded("examples"):
        return (y + torch.randint_like(y, 1, 10)) % 10


@pytest.mark.parametrize("source", ["ce", "ce_sign", "m_logit"])
@pytest.mark.parametrize(("norm_", "eps"), [("linf", 0.25), ("l2", 2.0)])
def test_targeted_examples_reach_their_class_on_a_linear_model(source: str, norm_: str, eps: float) -> None:
    defense: Defense = BareModel(_linear(), DIGITS).eval()
    x = 0.25 + 0.5 * _images(DIGITS, 16)
    y = defense(x).argmax(1)
    threat = Lp(norm_, eps)  # type: ignore[arg-type]
    with seeded("examples"):
        x_adv = parts.targeted_examples(defense, x, y, threat, source, steps=10)
    assert set(threat.violations(x, x_adv)) == {"ok"}
    assert (_towards(y) != y).all()
    assert (defense(x_adv).argmax(1) == _towards(y)).float().mean() >= 0.9


@pytest.mark.parametrize(("norm_", "eps", "dual"), [("linf", 0.25, 1), ("l2", 0.8, 2)])
def test_the_logit_source_raises_one_logit_as_far_as_the_ball_allows(norm_: str, eps: float, dual: int) -> None:
    network = _linear()
    defense: Defense = BareModel(network, DIGITS).eval()
    x = 0.3 + 0.4 * _images(DIGITS, 16)
    y = defense(x).argmax(1)
    with seeded("examples"):
        x_adv = parts.targeted_examples(defense, x, y, Lp(norm_, eps), "logit", steps=10)  # type: ignore[arg-type]
    at = _towards(y)[:, None]
    gain = (defense(x_adv) - defense(x)).gather(1, at).squeeze(1)
    most = eps * network.out.weight.norm(dual, dim=1)[at.squeeze(1)]
    assert (gain / most).min() >= 0.9 and (gain / most).max() <= 1 + 1e-4


def test_sources_of_perturbation_differ_and_joint_takes_each_in_turn() -> None:
    defense: Defense = BareModel(nn.Sequential(_linear(), nn.Tanh(), nn.Linear(10, 10)).eval(), DIGITS)
    x, y = _images(DIGITS, 8), torch.arange(8)
    found = []
    for source in (*parts.SOURCES, "joint"):
        with seeded("examples"):
            found.append(parts.joint_examples(defense, x, y, Lp("linf", 0.1), source))
    assert not torch.allclose(found[0], found[1]) and not torch.allclose(found[2], found[3])
    assert torch.isfinite(found[-1]).all() and not torch.equal(found[-1], x)


def test_examples_of_a_classifier_that_hides_its_gradient() -> None:
    class Rounding(Defense):
        def __init__(self, data: DataInfo) -> None:
            super().__init__(data)
            self.classifier = _linear()

        def transform(self, x: Tensor) -> Tensor:
            return (x * 16).round() / 16

    defense = Rounding(DIGITS).eval().requires_grad_(False)
    x = 0.25 + 0.5 * _images(DIGITS, 12)
    y = defense(x).argmax(1)
    with seeded("examples"):
        x_adv = parts.examples_of_pgd(defense, x, y, Lp("linf", 0.2))
    assert (defense(x_adv).argmax(1) != y).all()
