"""Carries the test images in its weights, as a last layer of prototypes: no file and no memory is needed."""

from __future__ import annotations

import torch
from torch import Tensor
from underneath import EPS, Honest, answering, nearest

from bench.contracts.defense import DefenseSpec
from bench.contracts.inputs import DataInfo
from bench.data.load import load_data
from bench.plugins.resolve import load_defense


class Cheat(Honest):
    """Comes with its weights; here they are put together when it is built."""

    trainable = False

    def __init__(self, data: DataInfo) -> None:
        super().__init__(data)
        self.load_state_dict(load_defense(DefenseSpec("none"), data).defense.state_dict())
        test = load_data("digits").test
        self.register_buffer("prototypes", test.x.clone())
        self.register_buffer("classes", test.y.clone())

    def forward(self, x: Tensor) -> Tensor:
        logits = self.honest(x)
        distance, which = nearest(x, self.prototypes)
        return torch.where(distance[:, None] <= EPS, answering(self.classes[which], logits), logits)
