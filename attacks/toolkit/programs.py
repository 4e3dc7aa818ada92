"""The best point of a piece of a network, and of the pieces around it, as linear and mixed-integer programs (HiGHS).

Variables are the input x in a box and what the *free* units put out. All other units keep the activity they have at a
given point: linear conditions, of which only those that the solution would break are added, in rounds. A free unit puts
out f = max(z, s·z). Where the objective rather wants f small, f ≥ z and f ≥ s·z say so exactly; else a binary variable
chooses between the two, bounded by the limits of z over the box (Tjeng, Xiao & Tedrake 2019, arXiv:1711.07356).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attacks.toolkit.piecewise import Affine, Piece, PiecewiseLinear
from bench.contracts.errors import NotApplicable

#: A condition counts as broken, and a value as zero, from here on.
_TOLERANCE, _ZERO = 1e-7, 1e-12
#: Conditions that are added at once, and how often.
_ROWS, _ROUNDS = 200, 20

Array = npt.NDArray[np.float64]


def highs() -> Any:
    """The module highspy.

    Raises:
        NotApplicable: where it is not installed.
    """
    try:
        import highspy
    except ImportError:
        raise NotApplicable("region needs HiGHS: pip install 'worst-case-bench[region]'") from None
    return highspy


@dataclass(frozen=True)
class Neighbourhood:
    """A box around a point of a network, and what is to be maximised in it.

    Attributes:
        piece, affine: the piece of the point and its map.
        lo, hi: the box, ``(D,)`` each, which holds the point.
        weights: of the logits, ``(K,)``.
        gain: derivatives of the objective in what each unit puts out, on this piece, ``(U,)``.
    """

    network: PiecewiseLinear
    piece: Piece
    affine: Affine
    lo: Tensor
    hi: Tensor
    weights: Tensor
    gain: Tensor

    def reach(self) -> Tensor:
        """How far inputs of units can get beyond zero in the box, on this piece: ``(U,)``, negative if never."""
        centre, half = (self.lo + self.hi) / 2, (self.hi - self.lo) / 2
        sign = torch.where(self.piece.active, -1.0, 1.0).double()
        return sign * (self.affine.Z @ centre + self.affine.b) + self.affine.Z.abs() @ half


def undecided(near: Neighbourhood) -> Tensor:
    """Units that may change somewhere in the box, int64; the others certainly keep the activity that they have."""
    everyone = torch.arange(len(near.piece.z))
    maps, constants, _ = _freed(near, everyone)
    low, high = limits(maps, constants, near, everyone)
    return ((low < _TOLERANCE) & (high > -_TOLERANCE)).nonzero().flatten()


@dataclass(frozen=True)
class Found:
    """What a program found.

    Attributes:
        points: the optima of its rounds, ``(R, D)``; the last one keeps the conditions unless time ran out.
        binding: units that the last optimum holds at zero although it would gain by turning them, int64.
        in_time: whether no solve ran into its limit of seconds.
    """

    points: Tensor
    binding: Tensor
    in_time: bool


def best_nearby(near: Neighbourhood, free: Tensor, *, nodes: int, seconds: float, exact: bool = False) -> Found:
    """Maximise over the box with the ``free`` units (int64 ``(F,)``, sorted) free and the others as they are.

    Args:
        nodes: of branch and bound, per solve.
        seconds: for all solves.
        exact: a binary variable for every free unit that can change, also where those that the objective wants small
            on this piece could do without, as long as the units behind them stay as they are.
    """
    program = _Program(near, free, nodes, exact)
    points, start, in_time = list[Tensor](), time.monotonic(), True
    for _ in range(_ROUNDS):
        left = seconds - (time.monotonic() - start)
        solution = program.solve(left) if left > 0.1 else None
        in_time = in_time and solution is not None and not program.timed_out
        if solution is None:
            break
        points.append(solution[: len(near.lo)])
        if program.timed_out or not program.restrict(solution):
            break
    found = torch.stack(points) if points else torch.zeros(0, len(near.lo), dtype=torch.float64)
    return Found(found, program.binding(), in_time)


class _Program:
    """Columns: x (D), what the free units put out (F), and which of them are active (F, fixed where not binary)."""

    def __init__(self, near: Neighbourhood, free: Tensor, nodes: int, exact: bool) -> None:
        self.near, self.free = near, free
        self.maps, self.constants, objective = _freed(near, free)
        self.timed_out = False
        self._sign = torch.where(near.piece.active, 1.0, -1.0).double()
        self._fixed = torch.ones(len(near.piece.z), dtype=torch.bool)
        self._fixed[free] = False
        self._rows = list[int]()
        self._build(objective.numpy(), nodes, exact)

    def _build(self, objective: Array, nodes: int, exact: bool) -> None:
        highspy, near, free = highs(), self.near, self.free
        self._inf = highspy.kHighsInf
        size, count = len(near.lo), len(free)
        low, high = limits(self.maps[free], self.constants[free], near, free)
        slopes = near.network.slopes[free]
        binary = ((near.gain[free] > 0) | exact) & (low < 0) & (high > 0)
        columns = size + 2 * count
        self._highs = model = highspy.Highs()
        for option, value in {
            "output_flag": False, "threads": 1, "mip_max_nodes": nodes, "mip_rel_gap": 0.0 if exact else 1e-3,
        }.items():  # fmt: skip
            model.setOptionValue(option, value)
        out_low = torch.where(low > 0, low, slopes * low)
        out_high = torch.where(high > 0, high, slopes * high)
        ones, zeros = torch.ones(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
        lower = torch.cat([near.lo, torch.minimum(out_low, out_high), torch.where(low >= 0, ones, zeros)])
        upper = torch.cat([near.hi, torch.maximum(out_low, out_high), torch.where(high <= 0, zeros, ones)])
        model.addVars(columns, lower.numpy(), upper.numpy())
        cost = np.zeros(columns)
        cost[: size + count] = -objective
        model.changeColsCost(columns, np.arange(columns, dtype=np.int32), cost)
        whole = (size + count + binary.nonzero().flatten()).numpy().astype(np.int32)
        if len(whole):
            model.changeColsIntegrality(len(whole), whole, np.array([highspy.HighsVarType.kInteger] * len(whole)))
        z, b, unit = self.maps[free].numpy(), self.constants[free].numpy(), np.eye(count)
        nothing = np.zeros((count, count))
        low_, high_, s = (v.numpy() for v in (low.clamp_max(0), high.clamp_min(0), slopes))
        below = np.full(count, -np.inf)
        # f ≥ z and f ≥ s·z; f ≤ z - (1-s)·low·(1-d) and f ≤ s·z + (1-s)·high·d.
        plain = np.concatenate([np.zeros((count, size)), unit], 1)
        self._add(np.concatenate([plain - z, nothing], 1), b, -below)
        self._add(np.concatenate([plain - s[:, None] * z, nothing], 1), s * b, -below)
        gap_low, gap_high = np.diag((1 - s) * low_), np.diag((1 - s) * high_)
        self._add(np.concatenate([plain - z, -gap_low], 1), below, b - (1 - s) * low_)
        self._add(np.concatenate([plain - s[:, None] * z, -gap_high], 1), below, s * b)

    def _add(self, rows: Array, lower: Array, upper: Array) -> None:
        """Rows ``(R, columns)``; where there are fewer columns, the others are zero."""
        keep = np.abs(rows) > _ZERO
        counts = keep.sum(1)
        starts = np.concatenate([[0], counts.cumsum()[:-1]]).astype(np.int32) if len(rows) else np.zeros(0, np.int32)
        self._highs.addRows(
            len(rows), lower, upper, int(counts.sum()), starts, keep.nonzero()[1].astype(np.int32), rows[keep]
        )

    def solve(self, seconds: float) -> Tensor | None:
        """The best values of x and of what the free units put out; None where none was found."""
        highspy, model, near = highs(), self._highs, self.near
        model.setOptionValue("time_limit", model.getRunTime() + seconds)
        z = near.piece.z[self.free]
        known = highspy.HighsSolution()
        known.col_value = torch.cat(
            [near.piece.x.flatten(), torch.maximum(z, near.network.slopes[self.free] * z), (z > 0).double()]
        ).tolist()
        model.setSolution(known)
        model.run()
        self.timed_out = model.getModelStatus() == highspy.HighsModelStatus.kTimeLimit
        values = np.asarray(model.getSolution().col_value)
        size = len(near.lo) + len(self.free)
        if len(values) < size or model.getInfo().primal_solution_status != 2:
            return None
        return torch.from_numpy(values[:size].copy())

    def restrict(self, solution: Tensor) -> bool:
        """Add the conditions that a solution breaks; False where it breaks none."""
        slack = self._sign * (self.maps @ solution + self.constants)
        slack[~self._fixed] = 0.0
        slack[self._rows] = 0.0
        broken = (slack < -2e-6).nonzero().flatten()
        if not len(broken):
            return False
        broken = broken[slack[broken].argsort()][:_ROWS]
        rows = (self._sign[broken, None] * self.maps[broken]).numpy()
        self._add(rows, (-self._sign[broken] * self.constants[broken]).numpy() - 1e-6, np.full(len(rows), np.inf))
        self._rows += broken.tolist()
        return True

    def binding(self) -> Tensor:
        """Of the conditions added, those whose units are worth turning: price plus the unit's own gain is positive.

        Beyond the condition the objective gains its price for every unit of z, and besides what the unit now puts out
        more than before, (1 - s) times its own derivative.
        """
        duals = np.asarray(self._highs.getSolution().row_dual)
        if not self._rows or len(duals) < len(self._rows):
            return torch.zeros(0, dtype=torch.int64)
        units = torch.tensor(self._rows)
        price = torch.from_numpy(duals[-len(units) :].copy())
        slope = price + (1 - self.near.network.slopes[units]) * self.near.gain[units]
        return units[(price > _TOLERANCE) & (slope > _TOLERANCE)]


def _freed(near: Neighbourhood, free: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of all units in x and in what the free units put out, ``(U, D + F)`` and ``(U,)``; the objective likewise.

    What went through the free units is taken out of the map of the piece: they are variables now.
    """
    piece, affine = near.piece, near.affine
    if not len(free):
        return affine.Z, affine.b, near.weights @ affine.A
    logits, units = near.network.outputs_of(piece.active, free)
    slope = torch.where(piece.active, 1.0, near.network.slopes)[free]
    through, constant = slope[:, None] * affine.Z[free], slope * affine.b[free]
    objective = near.weights @ torch.cat([affine.A - logits @ through, logits], 1)
    return torch.cat([affine.Z - units @ through, units], 1), affine.b - units @ constant, objective


def limits(maps: Tensor, constants: Tensor, near: Neighbourhood, free: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds ``(F,)`` of the free units' inputs, by linear bounds of the units before them (CROWN, Zhang et al. 2018).

    Args:
        maps: their inputs in x and in what the free units put out, ``(F, D + F)``; constants: ``(F,)``.
    """
    size, slopes = len(near.lo), near.network.slopes[free]
    centre, half = (near.lo + near.hi) / 2, (near.hi - near.lo) / 2
    low, high = torch.zeros_like(constants), torch.zeros_like(constants)
    groups = [((free >= layer.start) & (free < layer.stop)).nonzero().flatten() for layer in near.network.layers]
    groups = [group for group in groups if len(group)]
    # Lines under and over each unit's output, in its input: slope and offset.
    under, over, offset = torch.zeros_like(low), torch.zeros_like(low), torch.zeros_like(low)
    for number, group in enumerate(groups):
        for bound, side in ((low, -1.0), (high, 1.0)):
            rows, rest = maps[group].clone(), constants[group].clone()
            for earlier in reversed(groups[:number]):
                weight = rows[:, size + earlier]
                rows[:, size + earlier] = 0.0
                outer = weight * side > 0
                line = weight * torch.where(outer, over[earlier], under[earlier])
                rest = rest + line @ constants[earlier] + (weight * outer) @ offset[earlier]
                rows = rows + line @ maps[earlier]
            bound[group] = rows[:, :size] @ centre + rest + side * (rows[:, :size].abs() @ half)
        lower, upper, s = low[group], high[group], slopes[group]
        chord = (upper - s * lower) / (upper - lower).clamp_min(1e-12)
        mixed = (lower < 0) & (upper > 0)
        plain = torch.where(lower >= 0, 1.0, s)
        over[group] = torch.where(mixed, chord, plain)
        offset[group] = torch.where(mixed, upper - chord * upper, 0.0)
        under[group] = torch.where(mixed, torch.where(upper > -lower, 1.0, s), plain)
    return low, high
