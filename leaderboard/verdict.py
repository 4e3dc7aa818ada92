"""The page of the verdict on the adversarial transformation: where it moves images, as small PNG files."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
from PIL import Image

from bench.studies.transformation.record import Expectation, Transformation
from leaderboard.gallery import Picture

CAPTIONS = {"image": "x", "shift": "E[g(x)] − x, scaled"}


def write_pictures(record: Transformation | None, root: Path, folder: str) -> list[list[Picture]]:
    """Write every image and its shift below ``root/folder``; a pair for each."""
    if record is None or not record.expectations:
        return []
    (root / folder).mkdir(parents=True, exist_ok=True)
    return [_pair(one, f"{folder}/expectation-{i}", root) for i, one in enumerate(record.expectations)]


def _pair(one: Expectation, name: str, root: Path) -> list[Picture]:
    height, width, channels = one.shape
    pictures = []
    for key in CAPTIONS:
        values = np.frombuffer(base64.b64decode(getattr(one, key)), dtype=np.uint8).reshape(height, width, channels)
        path = f"{name}-{key}.png"
        Image.fromarray(values[:, :, 0] if channels == 1 else values).save(root / path, optimize=True)
        pictures.append(Picture(key, path, width, height))
    return pictures
