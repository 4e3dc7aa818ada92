"""Feature squeezing: a detector that compares predictions before and after squeezing (Xu et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contracts.defense import Card
from bench.contracts.detector import Detector
from bench.contracts.errors import InputError, did_you_mean
from bench.contracts.inputs import DataInfo

#: Bits for grey images: the fewest that leave clean validation accuracy on digits within a point (1 bit costs five).
BITS_GREY = 2
#: Of the non-local means: side of the window of search, side of a patch, strength in grey levels of 255 (paper, §5.2).
SEARCH, PATCH, STRENGTH = 13, 3, 2.0


class FeatureSqueezing(Detector):
    """How far does the prediction move when the image is squeezed? The score is the largest move of all squeezers.

    A squeezer is a lower bit depth, a 2×2 median filter or non-local means (window 13, patch 3, strength 2). By default
    they are those of the paper for the kind of image: bit depth and median, and non-local means for colour. Below 16
    pixels it is bit depth alone: on digits of 8×8 pixels, whose strokes are one or two pixels wide, the median takes
    clean accuracy from 99 % to 73 %, which leaves the detector blind. The gradient of bit depth is that of the identity
    (straight-through), that of a median is the one of the pixel it takes; non-local means are smooth. The paper's
    non-local means measure distances between patches in Lab colours, here it is the RGB values.

    Args:
        data: decides the defaults.
        bits: per channel after squeezing; default 5 for colour as in the paper, BITS_GREY for grey.
        squeezers: which, with + between them: bits, median, nlm; ``auto``: by the kind of image, as above.
    """

    version = 2
    kinds = ("image",)
    trains_in_ball = False
    card = Card(
        title="Feature squeezing",
        summary=(
            "The network classifies the image, a version with fewer bits, and smoothed versions. "
            "An input is rejected when the predictions differ by more than a threshold in L1. "
            "Squeezing was thought to leave clean images alone and to undo adversarial perturbations. "
            "An attack that optimises the classifier and the detector together finds inputs that fool both. "
            "He et al. 2017 did so with little more distortion."
        ),
        paper="Xu, Evans, Qi 2018, Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks",
        url="https://arxiv.org/abs/1704.01155",
        family="detector",
        tags=("deterministic", "differentiable", "rejects inputs"),
    )

    def __init__(self, data: DataInfo, bits: int | None = None, squeezers: str = "auto") -> None:
        super().__init__(data)
        colour = data.shape[0] == 3
        self.bits = (5 if colour else BITS_GREY) if bits is None else bits
        if not 1 <= self.bits <= 8:
            raise InputError(f"feature-squeezing: bits {bits} is outside 1..8")
        if squeezers == "auto":
            squeezers = "bits" if min(data.shape[1:]) < 16 else "bits+median+nlm" if colour else "bits+median"
        available: dict[str, Callable[[Tensor], Tensor]] = {
            "bits": lambda x: reduce_bit_depth(x, self.bits),
            "median": median_2x2,
            "nlm": lambda x: non_local_means(x, SEARCH, PATCH, STRENGTH / 255),
        }
        for name in squeezers.split("+"):
            if name not in available:
                raise InputError(f"feature-squeezing: squeezer {name!r} does not exist{did_you_mean(name, available)}")
        self.squeezers = {name: available[name] for name in squeezers.split("+")}

    def detect(self, x: Tensor) -> Tensor:
        """The largest L1 distance, 0 to 2, between predictions for x and for a squeezed x; ``(N,)``."""
        prediction = self.guarded(x).softmax(1)
        squeezed = [squeeze(x) for squeeze in self.squeezers.values()]
        distances = [(self.guarded(z).softmax(1) - prediction).abs().sum(1) for z in squeezed]
        return torch.stack(distances).amax(0)


def reduce_bit_depth(x: Tensor, bits: int) -> Tensor:
    """``x`` in [0, 1] rounded to ``2**bits`` levels; the gradient is that of the identity (straight-through)."""
    levels = 2**bits - 1
    rounded: Tensor = (x * levels).round() / levels
    return x + (rounded - x).detach()


def median_2x2(x: Tensor) -> Tensor:
    """Each pixel replaced by the upper median of it and its neighbours above and to the left; same shape.

    Agrees with ``scipy.ndimage.median_filter(size=2)``: of four values the third smallest, borders
    reflected.
    """
    padded = F.pad(x, (1, 0, 1, 0), mode="replicate")
    windows = padded.unfold(2, 2, 1).unfold(3, 2, 1).flatten(4)
    return windows.kthvalue(3, dim=4).values


def non_local_means(x: Tensor, search: int, patch: int, strength: float) -> Tensor:
    """Each pixel replaced by a mean over its neighbourhood, weighted by how alike the patches around them are.

    Buades et al. 2005: the weight of a pixel is ``exp(-d²/h²)``, d² the mean squared difference of two patches over
    their pixels and channels. Outside the image lies its reflection.

    Args:
        x: ``(N, C, H, W)``.
        search: side of the neighbourhood; patch: side of a patch; both odd.
        strength: h, in the units of x.
    """
    height, width = x.shape[2:]
    far, near = search // 2, patch // 2
    padded = _reflected(x, far + near)
    inner = padded[:, :, far : far + height + 2 * near, far : far + width + 2 * near]
    total, weights = torch.zeros_like(x), torch.zeros_like(x[:, :1])
    for down in range(search):
        for right in range(search):
            other = padded[:, :, down : down + height + 2 * near, right : right + width + 2 * near]
            squared = (other - inner).square().mean(1, keepdim=True)
            weight = (-F.avg_pool2d(squared, patch, stride=1) / strength**2).exp()
            total = total + weight * other[:, :, near : near + height, near : near + width]
            weights = weights + weight
    return total / weights


def _reflected(x: Tensor, margin: int) -> Tensor:
    """``x`` with its reflection around it, again and again where the margin is wider than the image."""
    for axis in (2, 3):
        size = x.shape[axis]
        place = torch.arange(-margin, size + margin, device=x.device).abs()
        period = max(1, 2 * size - 2)
        place = place % period
        x = x.index_select(axis, torch.where(place < size, place, period - place))
    return x
