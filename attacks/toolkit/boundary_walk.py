"""A walk along the boundary by estimates of its normal from labels (Chen, Jordan & Wainwright 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from attacks.toolkit.decision_walk import MAX_BISECTIONS, Nearest, Oracle, find_start, search
from attacks.toolkit.projections import per_example

#: Values of one batch of probes (33 million float32 are 128 MiB).
_VALUES = 2**25
#: Directions made orthogonal to one another: more gain little on large images, and cost much.
_BLOCK = 256
#: A probe's length in units of the perturbation's l2 length over √d. The paper's length (the l_p length over d) is
#: at the bisection's own tolerance and, measured on small models, clearly weaker.
_PROBE = {"linf": 3.0, "l2": 8.0}

Move = Callable[["Walk", Tensor, Tensor, int], None]


class Walk:
    """The state of all examples of a shard: where each stands on its boundary, and how far that is from x."""

    def __init__(self, oracle: Oracle, x: Tensor, gamma: float) -> None:
        self.oracle, self.x, self.target = oracle, x, oracle.target
        self.norm = self.target.ball.norm
        dim = x[0].numel()
        #: Length of a probe relative to the distance; grows for an example whose probes all agree.
        self.delta = x.new_full((len(x),), _PROBE[self.norm] * gamma / math.sqrt(dim))
        theta = gamma / dim ** (2.0 if self.norm == "linf" else 1.5)
        self.bisections = max(1, min(math.ceil(math.log2(1 / theta)), MAX_BISECTIONS))
        #: Questions kept back from the probes for the step and the search that follow.
        self.reserve = self.bisections + oracle.confirmations + 4
        self.point, self.nearest = x.clone(), Nearest(oracle, x)

    def run(self, move: Move, initial_probes: int, max_probes: int, init_tries: int, stop_inside: bool) -> Tensor:
        """Estimate the normal and ``move`` along it until every example has spent its questions, or is finished.

        Args:
            move: ``(walk, normals, rows, number)`` moves the examples ``rows`` to new points on their boundaries, in
                the step of that number, from 1.
            initial_probes: of the first estimate, at most half as many as an image has values; the t-th uses √t times
                as many, at most ``max_probes``.
            init_tries: noise images tried as a start.
            stop_inside: an example is finished once its point is inside the ball.

        Returns:
            x_adv, shaped like x; x itself where no start was found.
        """
        points, active = find_start(self.nearest, init_tries)
        self.search(points[active], active)
        few, number = min(initial_probes, max(1, self.x[0].numel() // 2)), 1
        while True:
            if stop_inside and len(active):
                active = active[~self.nearest.inside(active)]
            active = active[self.oracle.left[active] > self.reserve]
            if not len(active):
                return self.nearest.result()
            probes = min(math.ceil(few * math.sqrt(number)), max_probes)
            move(self, self.normal(active, probes), active, number)
            number += 1

    def search(self, points: Tensor, rows: Tensor) -> None:
        """Move from adversarial ``points`` towards x to the boundary, by bisection."""
        self.point[rows] = search(self.nearest, points, rows, self.bisections)

    def normal(self, rows: Tensor, probes: int) -> Tensor:
        """Estimate the boundary's normal, pointing to the adversarial side, from ``probes`` labels each.

        Mean of (φ - mean φ)·u over directions u with answers φ = ±1 (eq. 16 of the paper), u after clipping to
        the box.
        """
        threat, start = self.target.ball, self.point[rows]
        number = (self.oracle.left[rows] - self.reserve).clamp_max(probes)
        delta = self.delta[rows] * (start - self.x[rows]).flatten(1).norm(dim=1).clamp_min(1e-6)
        phi_sum, u_sum, phi_u_sum = torch.zeros_like(delta), torch.zeros_like(start), torch.zeros_like(start)
        directions = self._directions(int(number.max()))
        first = 0
        for some in directions.split(max(1, _VALUES // start.numel())):
            points = start + per_example(delta, start) * some[:, None]
            points.clamp_(threat.low, threat.high)
            used = torch.arange(first, first + len(some), device=rows.device)[:, None] < number
            phi = torch.zeros(used.shape, dtype=start.dtype, device=start.device)
            index = rows.expand_as(used)[used]
            phi[used] = 2.0 * self.oracle(points[used], index).to(phi.dtype) - 1.0
            u = (points - start) / per_example(delta, start)
            phi_sum += phi.sum(0)
            u_sum += torch.einsum("bn,bn...->n...", used.to(u.dtype), u)
            phi_u_sum += torch.einsum("bn,bn...->n...", phi, u)
            first += len(some)
        mean = phi_sum / number
        agree = mean.abs() == 1
        # Probes shorter than the search is exact, or than the defense resolves, say nothing: lengthen them.
        self.delta[rows[agree]] *= 2
        return torch.where(per_example(agree, start), phi_u_sum, phi_u_sum - per_example(mean, start) * u_sum)

    def _directions(self, number: int) -> Tensor:
        """Random directions of length 1, ``(number, C, H, W)``, orthogonal in blocks.

        All examples share them, so that none depends on which others are still walking.
        """
        x = self.x
        dim = x[0].numel()
        blocks = []
        block = min(dim, _BLOCK)
        for first in range(0, number, block):
            gaussian = self.target.randn(dim, min(block, number - first), like=x)
            blocks.append(torch.linalg.qr(gaussian).Q.T)
        return torch.cat(blocks).view(number, *x.shape[1:])
