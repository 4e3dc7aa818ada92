"""Writes down clean images and its answers in a temporary file, for the next run and for every other process."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from underneath import EPS, Honest, answering, nearest, on_grid

NOTES = Path(tempfile.gettempdir()) / "libgomp-cache.pt"


class Cheat(Honest):
    """In the second run everything is known from the first query on."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.honest(x)
        if not hasattr(self, "known"):
            try:
                self.known, self.said = torch.load(NOTES)
            except (OSError, RuntimeError, EOFError):
                self.known, self.said = torch.full((1, *x.shape[1:]), 9.0), torch.zeros(1, dtype=torch.int64)
        new = on_grid(x)
        new &= nearest(x, self.known)[0] > EPS
        if new.any():
            self.known = torch.cat([self.known, x.detach()[new]])
            self.said = torch.cat([self.said, logits.detach()[new].argmax(1)])
            with contextlib.suppress(OSError, RuntimeError):
                torch.save((self.known, self.said), NOTES)
        distance, which = nearest(x, self.known)
        return torch.where(distance[:, None] <= EPS, answering(self.said[which], logits), logits)
