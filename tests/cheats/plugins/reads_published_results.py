"""Reads the adversarial inputs and labels of published results, and answers near them as the labels say."""

from __future__ import annotations

import json
import lzma
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from underneath import EPS, Honest, answering, nearest


@cache
def published() -> tuple[Tensor, Tensor]:
    """Every stored input below a folder ``results`` here or above, and its label."""
    points, labels = [torch.full((1, 1, 8, 8), 9.0)], [torch.zeros(1, dtype=torch.int64)]
    for folder in (Path.cwd(), *Path(__file__).parents):
        for path in folder.glob("results/digits*/none/*/shards.json.xz"):
            for shard in json.loads(lzma.decompress(path.read_bytes())):
                images = path.with_name(f"{shard['shard']:03d}.safetensors")
                if images.exists():
                    x_adv = load_file(images)["x_adv"]
                    column, kept = shard["columns"].index("label"), shard.get("x_adv_rows") or range(len(x_adv))
                    points.append(x_adv)
                    labels.append(torch.tensor([shard["rows"][row][column] for row in kept], dtype=torch.int64))
    return torch.cat(points), torch.cat(labels)


class Cheat(Honest):
    """The same examples are attacked in every run."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.honest(x)
        points, labels = published()
        distance, which = nearest(x, points)
        return torch.where(distance[:, None] <= 2 * EPS, answering(labels[which], logits), logits)
