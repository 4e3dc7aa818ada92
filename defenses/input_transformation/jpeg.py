"""JPEG compression as an input transformation (Guo et al. 2018)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contracts.defense import Approximation, Card, Claim, Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.jpeg_codec import compress
from defenses.parts.nets import classifier_for
from defenses.parts.recipes import existing_classifier, train_classifier

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

#: Quantisation tables of ITU-T T.81 (1992), annex K.1: luminance and chrominance at quality 50.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
#: RGB to YCbCr (ITU-T T.871, section 7), chroma centred on 0.
_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)


class JPEG(Defense):
    """g compresses each image with a real JPEG codec (Pillow, 4:2:0 chroma subsampling for colour).

    The codec runs outside autograd, so plain automatic differentiation yields no gradient at all.

    Args:
        data: 1 or 3 channels.
        quality: 1 to 95.
        network: another architecture by its name (``defenses.parts.nets``).
    """

    version = 1
    kinds = ("image",)
    trains_in_ball = False
    depends = ("pillow",)
    card = Card(
        title="JPEG compression",
        summary=(
            "Each image is encoded and decoded by a JPEG codec before it is classified. "
            "Quantising the block DCT was thought to remove the perturbation and keep what matters. "
            "The codec has no gradient, so naive gradient attacks see nothing. "
            "Backward pass differentiable approximation with the identity, or a smooth model of the codec, "
            "breaks it: Athalye et al. 2018 brought the transformations of Guo et al. to 0 %. "
            "Attacks that need only scores or labels break it as well."
        ),
        paper="Guo, Rana, Cisse, van der Maaten 2018, "
        "Countering Adversarial Images using Input Transformations",
        url="https://arxiv.org/abs/1711.00117",
        family="input transformation",
        tags=("deterministic", "not differentiable"),
        breaks=(
            Claim("imagenet", "l2 0.05", None, 0.0, "BPDA", "Athalye et al. 2018, table 1"),
        ),
    )  # fmt: skip

    def __init__(self, data: DataInfo, quality: int = 75, network: str = "auto") -> None:
        super().__init__(data)
        self.weights_of = existing_classifier(data)
        if not 1 <= quality <= 95:
            raise InputError(f"jpeg: quality {quality} is outside 1..95")
        if data.shape[0] not in (1, 3):
            raise InputError(f"jpeg: images have {data.shape[0]} channels, the codec takes 1 or 3")
        self.quality = quality
        self.network = network
        self.classifier = classifier_for(data, network)

    def transform(self, x: Tensor) -> Tensor:
        """Encode and decode every image; values are rounded to 8 bits first. Cuts the graph."""
        return compress(x, [self.quality] * len(x))

    def approximations(self) -> dict[str, Approximation]:
        """``differentiable-jpeg``: the codec's own steps with a smooth rounding (:func:`differentiable_jpeg`)."""
        return {"differentiable-jpeg": Approximation(lambda x: differentiable_jpeg(x, self.quality))}

    def fit(self, run: TrainingRun) -> None:
        """Cross-entropy on compressed images."""
        train_classifier(run, self, self.network)


def differentiable_jpeg(x: Tensor, quality: int) -> Tensor:
    """JPEG with the rounding ⌊u⌉ + (u − ⌊u⌉)³ of Shin & Song 2017, differentiable almost everywhere.

    ``(N, 1 or 3, H, W)`` in [0, 1] to the same shape. The result is not clamped to [0, 1]: as the backward half of
    BPDA only its derivative counts, and a clamp would cut it wherever the codec overshoots.
    """
    if x.shape[1] == 1:
        return _quantise(255 * x - 128, _LUMINANCE, quality).add(128) / 255
    matrix = torch.tensor(_YCBCR).to(x)
    ycbcr = torch.einsum("ij,njhw->nihw", matrix, 255 * x)
    luminance = _quantise(ycbcr[:, :1] - 128, _LUMINANCE, quality) + 128
    height, width = x.shape[2:]
    even = F.pad(ycbcr[:, 1:], (0, width % 2, 0, height % 2), mode="replicate")
    chroma = _quantise(F.avg_pool2d(even, 2), _CHROMINANCE, quality)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)[..., :height, :width]
    decoded = torch.cat([luminance, chroma], 1)
    return torch.einsum("ij,njhw->nihw", torch.linalg.inv(matrix), decoded) / 255


def _quantise(planes: Tensor, table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Quantise the 8×8 block DCT of centred planes ``(N, C, H, W)`` and transform back."""
    n, channels, height, width = planes.shape
    padded = F.pad(planes, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = padded.unfold(2, 8, 8).unfold(3, 8, 8)
    dct = _dct_matrix().to(planes)
    steps = _scaled(table, quality).to(planes)
    coefficients = dct @ blocks @ dct.T / steps
    nearest = coefficients.round().detach()
    quantised = (nearest + (coefficients - nearest) ** 3) * steps
    restored = (dct.T @ quantised @ dct).permute(0, 1, 2, 4, 3, 5)
    return restored.reshape(n, channels, *padded.shape[2:])[..., :height, :width]


def _scaled(table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """The table at a quality, by the rule of the Independent JPEG Group's library, which Pillow uses."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table) * scale + 50) // 100).clamp(1, 255)


def _dct_matrix() -> Tensor:
    """The orthonormal DCT-II of length 8: ``D @ block @ D.T`` is the block's DCT."""
    k, i = torch.arange(8)[:, None], torch.arange(8)[None]
    matrix = torch.cos(math.pi * (2 * i + 1) * k / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix
