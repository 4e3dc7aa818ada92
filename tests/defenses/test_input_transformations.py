"""Input transformations, encodings and activations: each mechanism against something independent."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, median_filter
from scipy.optimize import minimize
from torch import Tensor, nn

from bench.contracts.defense import Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.seeding import seeded
from bench.contracts.threat import Lp
from bench.data.splits import Split
from bench.training.recipe import TrainingRun
from defenses.input_transformation.bit_depth import BitDepth
from defenses.input_transformation.crop_rescale import CropRescale, MeanOverCrops, crop
from defenses.input_transformation.gaussian_smoothing import GaussianSmoothing, gaussian_blur
from defenses.input_transformation.image_quilting import ImageQuilting, beyond_cut, places, quilt, random_patches
from defenses.input_transformation.median_smoothing import MedianSmoothing, median
from defenses.input_transformation.thermometer import WIDTH, Thermometer, ThermometerEncoding
from defenses.input_transformation.tv_minimization import TVMinimization, minimise_tv
from defenses.input_transformation.wavelet_denoising import WaveletDenoising
from defenses.modified_network.k_wta import KWTA, KWinners
from defenses.parts.wavelets import WAVELETS, decompose, denoise, reconstruct

GREY = DataInfo("grey", InputSpec((1, 8, 8)), 10)
COLOUR = DataInfo("colour", InputSpec((3, 32, 32)), 10)
TILE = DataInfo("tile", InputSpec((1, 4, 4)), 10)


def _make(cls: type[Defense], info: DataInfo = GREY, **params: object) -> Defense:
    with seeded("weights"):
        return cls(info, **params).eval()


def _images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


@pytest.mark.parametrize(
    ("cls", "name", "params"),
    [
        (BitDepth, "bit-depth", {"bits": 0}),
        (MedianSmoothing, "median-smoothing", {"size": 9}),
        (GaussianSmoothing, "gaussian-smoothing", {"sigma": 0.0}),
        (WaveletDenoising, "wavelet-denoising", {"sigma": -0.1}),
        (WaveletDenoising, "wavelet-denoising", {"levels": 0}),
        (WaveletDenoising, "wavelet-denoising", {"wavelet": "db9"}),
        (CropRescale, "crop-rescale", {"share": 1.0}),
        (CropRescale, "crop-rescale", {"crops": 0}),
        (TVMinimization, "tv-minimization", {"keep": 0.0}),
        (TVMinimization, "tv-minimization", {"weight": 0.0}),
        (TVMinimization, "tv-minimization", {"iterations": 0}),
        (ImageQuilting, "image-quilting", {"patch": 9}),
        (ImageQuilting, "image-quilting", {"neighbours": 0}),
        (ImageQuilting, "image-quilting", {"patches": 0}),
        (Thermometer, "thermometer", {"levels": 1}),
        (KWTA, "k-wta", {"ratio": 0.0}),
    ],
)
def test_impossible_parameters_are_named(cls: type[Defense], name: str, params: dict[str, object]) -> None:
    ((parameter, value),) = params.items()
    with pytest.raises(InputError, match=f"^{name}: .*{parameter} {value}"):
        _make(cls, **params)


# -- rounding and filters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_bit_depth_rounds_to_the_nearest_level(bits: int) -> None:
    x = _images(2, 3, 9, 7)
    levels = np.arange(2**bits) / (2**bits - 1)
    nearest = levels[np.abs(x.numpy()[..., None] - levels).argmin(-1)]
    rounded = _make(BitDepth, bits=bits).transform(x.requires_grad_())
    assert torch.allclose(rounded, torch.from_numpy(nearest).float(), atol=1e-6)
    assert not rounded.requires_grad
    # Attacks that probe outside [0, 1] see the nearest level as well.
    assert _make(BitDepth, bits=bits).transform(torch.tensor([[[[-0.4, 1.7]]]])).tolist() == [[[[0.0, 1.0]]]]


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_median_is_scipys(size: int) -> None:
    x = _images(2, 3, 7, 9)
    expected = np.stack([[median_filter(c, size=size, mode="nearest") for c in image] for image in x.numpy()])
    assert torch.equal(median(x, size), torch.from_numpy(expected))


def test_median_passes_the_gradient_to_the_chosen_pixel() -> None:
    x = _images(1, 1, 5, 5).requires_grad_()
    z = median(x, 3)
    (grad,) = torch.autograd.grad(z[0, 0, 2, 2], x)
    assert grad.sum() == 1 and grad.max() == 1
    assert x[grad == 1] == z[0, 0, 2, 2]
    (grad,) = torch.autograd.grad(_make(MedianSmoothing, size=3).approximations()["mean"].through(x)[0, 0, 2, 2], x)
    assert torch.allclose(grad[0, 0, 1:4, 1:4], torch.full((3, 3), 1 / 9))


@pytest.mark.parametrize("sigma", [0.6, 1.0, 2.0])
def test_gaussian_is_scipys(sigma: float) -> None:
    x = _images(2, 3, 7, 9, dtype=torch.float64)
    expected = np.stack([[gaussian_filter(c, sigma, mode="nearest") for c in image] for image in x.numpy()])
    assert torch.allclose(gaussian_blur(x, sigma), torch.from_numpy(expected))


# -- wavelets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_wavelet_transform_is_orthogonal(wavelet: str) -> None:
    x = _images(2, 3, 8, 16, dtype=torch.float64)
    approximation, details = decompose(x, wavelet, 2)
    parts = [approximation, *itertools.chain(*details)]
    assert sum(p.numel() for p in parts) == x.numel()
    assert sum(p.square().sum() for p in parts).item() == pytest.approx(x.square().sum().item())
    assert torch.allclose(reconstruct(approximation, details, wavelet), x)
    # A constant image has no detail.
    flat = decompose(torch.ones(1, 1, 8, 8, dtype=torch.float64), wavelet, 1)
    assert max(d.abs().max() for d in flat[1][0]) < 1e-12


@pytest.mark.parametrize(("sigma", "levels"), [(0.1, 1), (0.2, 2), (None, 2)])
def test_haar_denoising_is_that_of_a_reference(sigma: float | None, levels: int) -> None:
    pywt = pytest.importorskip("pywt")
    x = _images(1, 2, 16, 8, dtype=torch.float64)
    for channel, found in zip(x[0].numpy(), denoise(x, sigma, "haar", levels)[0], strict=True):
        coefficients = pywt.wavedec2(channel, "haar", mode="periodization", level=levels)
        noise = np.median(np.abs(coefficients[-1][2])) / 0.6745 if sigma is None else sigma
        for level, bands in enumerate(coefficients[1:], 1):
            spread = [np.sqrt(max((band**2).mean() - noise**2, 1e-16)) for band in bands]
            coefficients[level] = tuple(
                pywt.threshold(band, noise**2 / s, "soft") for band, s in zip(bands, spread, strict=True)
            )
        expected = pywt.waverec2(coefficients, "haar", mode="periodization")
        assert np.abs(found.numpy() - expected).max() < 1e-4


def test_denoising_any_size() -> None:
    x = _images(2, 3, 13, 10)
    assert torch.allclose(denoise(x, 0.0), x, atol=1e-6)
    assert denoise(x, 0.1, levels=3).shape == x.shape
    smooth = torch.linspace(0, 1, 32).view(1, 1, 32, 1).expand(1, 1, 32, 32).contiguous()
    noisy = smooth + 0.1 * torch.randn(smooth.shape, generator=torch.Generator().manual_seed(0))
    assert (denoise(noisy, 0.1) - smooth).square().mean() < 0.3 * (noisy - smooth).square().mean()


def test_denoising_has_the_gradient_of_finite_differences() -> None:
    x = _images(1, 1, 8, 8, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: denoise(x, 0.1), (x,))


# -- crops --------------------------------------------------------------------------------------------------


def test_crop_is_a_rescaled_part() -> None:
    x = _images(2, 3, 8, 8, dtype=torch.float64)
    found = crop(x, 0.5, torch.tensor([0.25, 0.5]), torch.tensor([0.0, 0.5]))
    parts = torch.stack([x[0, :, 2:6, 0:4], x[1, :, 4:8, 4:8]])
    expected = nn.functional.interpolate(parts, (8, 8), mode="bilinear", align_corners=False)
    # The part's own border repeats in ``interpolate``; ``crop`` sees what lies beyond it.
    assert torch.allclose(found[..., 1:7, 1:7], expected[..., 1:7, 1:7])


def test_every_example_draws_its_own_crop() -> None:
    defense = _make(CropRescale, share=0.5)
    with seeded("draw"):
        z = defense.transform(_images(1, 1, 8, 8).repeat(50, 1, 1, 1))
    assert len({tuple(image.flatten().tolist()) for image in z}) == 50


def test_crops_are_averaged_as_probabilities() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    vote, x = MeanOverCrops(network, width=8), _images(4, 1, 8, 24)
    expected = torch.stack([network(x[..., i : i + 8]).softmax(1) for i in (0, 8, 16)]).mean(0)
    assert torch.allclose(vote(x).softmax(1), expected, atol=1e-6)
    assert torch.equal(vote(x[..., :8]), network(x[..., :8]))
    defense = _make(CropRescale, COLOUR, crops=3, network="resnet8")
    assert defense.transform(_images(2, 3, 32, 32)).shape == (2, 3, 32, 96)
    assert defense(_images(2, 3, 32, 32)).shape == (2, 10)


# -- total variation ----------------------------------------------------------------------------------------


def _objective(z: np.ndarray, x: np.ndarray, mask: np.ndarray, weight: float) -> float:
    down, right = np.zeros_like(z), np.zeros_like(z)
    down[:-1], right[:, :-1] = np.diff(z, axis=0), np.diff(z, axis=1)
    return 0.5 * (mask * (z - x) ** 2).sum() + weight * np.sqrt(down**2 + right**2 + 1e-12).sum()


def test_tv_reaches_the_minimum_that_scipy_finds() -> None:
    x = _images(1, 1, 5, 6, dtype=torch.float64)
    mask = (_images(2, 1, 5, 6, dtype=torch.float64)[1:] < 0.7).double()
    image, kept = x[0, 0].numpy(), mask[0, 0].numpy()
    found = minimise_tv(x, mask, 0.1, 2000)[0, 0].numpy()
    best = minimize(
        lambda z: _objective(z.reshape(5, 6), image, kept, 0.1), found.ravel(), method="L-BFGS-B",
        options={"maxfun": 50_000},
    ).fun  # fmt: skip
    assert _objective(found, image, kept, 0.1) <= best * 1.001
    few = minimise_tv(x, mask, 0.1, 50)[0, 0].numpy()
    assert best - 1e-9 <= _objective(few, image, kept, 0.1) <= 1.05 * best


def test_tv_knows_nothing_of_dropped_values() -> None:
    x, mask = _images(2, 3, 8, 8), (_images(4, 3, 8, 8)[2:] < 0.5).float()
    other = torch.where(mask.bool(), x, torch.rand_like(x))
    assert torch.equal(minimise_tv(x, mask, 0.03, 10), minimise_tv(other, mask, 0.03, 10))
    x = x.requires_grad_()
    (grad,) = torch.autograd.grad(minimise_tv(x, mask, 0.03, 10).sum(), x)
    assert grad[mask == 0].abs().max() == 0
    # Moving all kept values moves the minimiser by as much.
    assert torch.allclose(grad.sum((2, 3)), torch.full((2, 3), 64.0), rtol=1e-3)


def test_tv_stand_in_is_a_draw_of_g() -> None:
    defense, x = _make(TVMinimization), _images(3, 1, 8, 8).requires_grad_()
    with seeded("draw"):
        real = defense.transform(x)
    with seeded("draw"):
        unrolled = defense.approximations()["unrolled"].through(x)
    assert not real.requires_grad and unrolled.requires_grad
    assert torch.equal(real, unrolled)
    assert not _make(TVMinimization, keep=1.0).randomized


# -- quilting -----------------------------------------------------------------------------------------------


def test_places_cover_the_side() -> None:
    for length, size in itertools.product(range(5, 20), range(2, 6)):
        tops = places(length, size)
        assert tops[0] == 0 and tops[-1] == length - size
        assert all(0 < b - a < size for a, b in itertools.pairwise(tops))


def test_the_cut_is_the_best_of_all() -> None:
    error = _images(4, 5, 3, dtype=torch.float64)
    paths = [p for p in itertools.product(range(3), repeat=5) if all(abs(a - b) <= 1 for a, b in itertools.pairwise(p))]
    for example, side in zip(error, beyond_cut(error), strict=True):
        best = min(paths, key=lambda p: sum(float(example[y, c]) for y, c in enumerate(p)))
        assert side.tolist() == [[c >= cut for c in range(3)] for cut in best]


def test_tiles_of_an_image_make_the_image() -> None:
    x, tops, lefts = _images(2, 3, 9, 8), places(9, 4), places(8, 4)
    tiles = torch.stack(
        [torch.stack([x[:, :, t : t + 4, s : s + 4] for s in lefts], 1) for t in tops], 1
    )  # fmt: skip
    assert torch.equal(quilt(tiles, tops, lefts, 9, 8), x)


def test_quilting_takes_only_near_patches() -> None:
    """With its own patches in the database and K = 1 the image comes back; with K = 5 it is one of 5 nearest."""
    x = _images(2, 1, 8, 8)
    defense = _make(ImageQuilting, patch=4, neighbours=1, patches=50)
    own = x.unfold(2, 4, 2).unfold(3, 4, 2).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    defense.patches[: len(own)] = own
    assert torch.equal(defense.transform(x), x)
    assert not defense.randomized
    one_place = _make(ImageQuilting, TILE, patch=4, neighbours=5, patches=50, network="resnet8")
    tiles = _images(40, 1, 4, 4)
    with seeded("choice"):
        chosen = one_place.transform(tiles)
    database = one_place.patches.flatten(1)
    nearest = database[torch.cdist(tiles.flatten(1), database).topk(5, largest=False).indices]
    rank = (nearest == chosen.flatten(1)[:, None]).all(2)
    assert (rank.sum(1) == 1).all()
    assert rank.any(0).all()


def test_the_smooth_search_tends_to_the_nearest_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    defense = _make(ImageQuilting, TILE, patch=4, neighbours=1, patches=50, network="resnet8")
    soft, x = defense.approximations()["soft-patches"], _images(3, 1, 4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(soft.through, (x.requires_grad_(),))
    monkeypatch.setattr("defenses.input_transformation.image_quilting.BANDWIDTH", 1e-3)
    assert torch.allclose(soft.through(x), defense.transform(x))


def test_the_database_holds_training_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "defenses.input_transformation.image_quilting.train_classifier", lambda run, defense, network: None
    )
    images = torch.arange(3 * 64.0).view(3, 1, 8, 8)
    split = Split(images, torch.zeros(3, dtype=torch.long), ["a", "b", "c"])
    defense = _make(ImageQuilting, patch=3, patches=40)
    run = TrainingRun(split, split, GREY, Lp("linf", 0.2), 0, torch.device("cpu"), None)  # type: ignore[arg-type]
    with seeded("recipe"):
        defense.fit(run)
    windows = {tuple(w.flatten().tolist()) for w in images.unfold(2, 3, 1).unfold(3, 3, 1).reshape(-1, 9)}
    seen = [tuple(p.flatten().tolist()) for p in defense.patches]
    assert set(seen) <= windows and len(set(seen)) > 20
    assert random_patches(_images(2, 3, 8, 9), 7, 5).shape == (7, 3, 5, 5)


# -- thermometer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [10, 16])
def test_thermometer_codes(levels: int) -> None:
    defense, x = _make(Thermometer, levels=levels), _images(2, 1, 8, 8)
    codes = defense.classifier[0](defense.transform(x)).view(2, 1, levels, 8, 8)
    for level in range(levels):
        assert torch.allclose(codes[:, :, level], (x > level / levels).float(), atol=1e-5)
    if levels == 16:  # powers of two are exact
        assert ((codes == 0) | (codes == 1)).all()


def test_ramps_sum_to_the_value_and_give_the_codes_a_derivative() -> None:
    encode = ThermometerEncoding(8)
    x = _images(2, 3, 4, 4, dtype=torch.float64)
    assert encode(x).shape == (2, 24, 4, 4)
    assert torch.allclose(encode(x).view(2, 3, 8, 4, 4).sum(2), 8 * x)
    code = torch.full((1, 1, 1, 1), 0.5, requires_grad=True)
    slopes = [torch.autograd.grad(channel.sum(), code, retain_graph=True)[0].item() for channel in encode(code)[0]]
    assert slopes == [8 / WIDTH if abs(level + 0.5 - 4) < WIDTH / 2 else 0 for level in range(8)]


def test_adversarial_thermometer_trains_through_the_ramps(monkeypatch: pytest.MonkeyPatch) -> None:
    defense, seen = _make(Thermometer, adversarial=True), []

    def recipe(run: TrainingRun, module: nn.Module, *, network: str) -> None:
        x = _images(2, 1, 8, 8).requires_grad_()
        logits = module(x)
        assert torch.allclose(logits, defense(x), atol=1e-5)
        (grad,) = torch.autograd.grad(logits.logsumexp(1).sum(), x)
        assert grad.abs().sum() > 0
        seen.append({id(p) for p in module.parameters()} == {id(p) for p in defense.classifier.parameters()})

    monkeypatch.setattr("defenses.input_transformation.thermometer.adversarial_training", recipe)
    defense.fit(None)  # type: ignore[arg-type]
    assert seen == [True]


# -- k winners ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.5, 1.0])
def test_k_winners(ratio: float) -> None:
    x = _images(3, 4, 5, 5) - 0.5
    out = KWinners(ratio)(x)
    count = max(1, int(ratio * 100))
    for values, kept in zip(x.flatten(1), out.flatten(1), strict=True):
        winners = values.argsort(descending=True)[:count]
        expected = torch.zeros(100)
        expected[winners] = values[winners]
        assert torch.equal(kept, expected)


def test_every_relu_is_replaced_and_the_network_is_discontinuous() -> None:
    defense = _make(KWTA, COLOUR, ratio=0.1, network="resnet18")
    kinds = [type(m) for m in defense.modules()]
    assert nn.ReLU not in kinds and kinds.count(KWinners) == 17
    active, before = KWinners(0.5), torch.tensor([[[[1.0, 0.9]]]])
    assert (active(before + torch.tensor([0.0, 0.2])) - active(before)).abs().max() > 0.9
