"""A piecewise linear network as stages: affine maps, between which stand layers of units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from torch import Tensor, nn

from attacks.toolkit.piecewise import PiecewiseLinear

Array = npt.NDArray[np.float64]

#: Rows of a stage's matrix that are made at once.
_CHUNK = 256
#: Unit roundoff of float64.
ROUNDOFF = 2.0**-53


@dataclass(frozen=True)
class Stage:
    """``z = bias + Σ maps[j] v_j``: what the units of a layer are given, or the logits.

    Attributes:
        bias: ``(M,)``.
        maps: sparse ``(M, size)`` by source: 0 is the flattened input, j the outputs of the units of layer j - 1.
    """

    bias: Array
    maps: Mapping[int, scipy.sparse.csr_matrix]

    def spread(self, sizes: Mapping[int, Array]) -> Array:
        """``|bias| + Σ |maps[j]| sizes[j]``: no sum that makes up z has terms of more than this together."""
        total = np.abs(self.bias)
        for j, matrix in self.maps.items():
            total = total + abs(matrix) @ sizes[j]
        return total


class Layered:
    """The stages of a deterministic network, in float64: one for each layer of units, and the logits'.

    A unit puts out z where z is positive and ``slope · z`` where it is not. Weights of float32 are exact in float64;
    what is folded into a coefficient (batch norm, means) is rounded a few times, see :attr:`roundings`.

    Args:
        model: maps ``(1, *shape)`` to logits ``(1, K)``.
        x: an input ``(1, *shape)``.

    Attributes:
        stages: one more than layers; the last one gives the logits.
        slopes: of each layer's units where they are inactive, ``(U_j,)`` each.

    Raises:
        NotApplicable: as :class:`attacks.toolkit.piecewise.PiecewiseLinear`.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.network = PiecewiseLinear(model, x)
        self.slopes = [self.network.slopes[layer].numpy() for layer in self.network.layers]
        point = torch.zeros(self.network.shape, dtype=torch.float64, requires_grad=True)
        inputs, outs = list[Tensor](), list[Tensor]()

        def unit(z: Tensor, slope: float) -> Tensor:
            inputs.append(z)
            outs.append(torch.zeros_like(z).requires_grad_())
            return outs[-1]

        with torch.enable_grad():
            logits = self.network.run(point, unit)
            ends = [*inputs, logits]
            self.stages = [_stage(end, [point, *outs[:k]]) for k, end in enumerate(ends)]
        self.size, self.classes = x.numel(), len(logits)

    def at(self, x: Tensor) -> Tensor:
        """Logits ``(K,)`` of an input ``(1, *shape)``, float64, as the stages give them: what bounds are of."""
        sources = [x.detach().double().cpu().flatten().numpy()]
        for stage, slopes in zip(self.stages, [*self.slopes, None], strict=True):
            z = stage.bias + sum(matrix @ sources[j] for j, matrix in stage.maps.items())
            sources.append(z if slopes is None else np.maximum(z, slopes * z))
        return torch.from_numpy(sources[-1])

    @property
    def roundings(self) -> int:
        """More than any number that is made here is rounded: the terms of all its sums, and what coefficients owe."""
        return self.size + sum(len(slopes) for slopes in self.slopes) + self.classes + 256


def _stage(end: Tensor, sources: list[Tensor]) -> Stage:
    """The affine map from the sources, all of which are zero, to ``end``."""
    bias = end.detach().flatten().numpy().copy()
    size = end.numel()
    blocks: dict[int, list[scipy.sparse.csr_matrix]] = {}
    if not end.requires_grad:
        return Stage(bias, {})
    for rows in torch.eye(size, dtype=torch.float64).split(_CHUNK):
        along = torch.autograd.grad(
            end, sources, rows.view(len(rows), *end.shape), is_grads_batched=True, allow_unused=True, retain_graph=True
        )
        for j, found in enumerate(along):
            if found is not None:
                blocks.setdefault(j, []).append(scipy.sparse.csr_matrix(found.reshape(len(rows), -1).numpy()))
    joined = {j: scipy.sparse.vstack(parts, format="csr") for j, parts in blocks.items()}
    return Stage(bias, {j: matrix for j, matrix in joined.items() if matrix.nnz})
