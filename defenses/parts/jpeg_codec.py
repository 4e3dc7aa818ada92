"""A real JPEG codec (Pillow) for batches of images."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def compress(x: Tensor, qualities: Sequence[int]) -> Tensor:
    """Encode and decode every image; values are rounded to 8 bits first, colour has 4:2:0 subsampling. Cuts the graph.

    Args:
        x: ``(N, 1 or 3, H, W)``; what is outside [0, 1] is clipped.
        qualities: one per image, 1 to 95.

    Returns:
        Shaped like x, of its type and on its device, in [0, 1].
    """
    images = x.detach().clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    decoded = [_codec(image, quality) for image, quality in zip(images, qualities, strict=True)]
    return torch.from_numpy(np.stack(decoded) if decoded else images).permute(0, 3, 1, 2).to(x) / 255


def _codec(image: np.ndarray, quality: int) -> np.ndarray:
    """One image ``(H, W, 1 or 3)``, uint8."""
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as decoded:
        return np.asarray(decoded).reshape(image.shape)
