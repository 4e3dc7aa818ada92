"""Square's proposals: a window of each point gets new values, at the ball's boundary (Andriushchenko et al. 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import vector_norm

from attacks.toolkit.active import Active
from bench.contracts.target import Target

#: Most steps for which random numbers are drawn at a time; of these, for how many and for how many values in all it is
#: worked out ahead what they write and where. (An example that leaves makes that void.)
_BLOCK, _AHEAD, _VALUES = 64, 16, 1 << 17


class Windows(Active):
    """The points of a run, of which :meth:`propose` changes a window and :meth:`settle` takes back what is not kept.

    Random numbers are drawn for many steps at once, and what depends on no answer of the defense is worked out for
    several, so that a step costs little beside the model. All examples have the same size of window, at places of
    their own.
    """

    shared = ("order", "offsets", "patterns")

    def __init__(self, target: Target, x: Tensor, rows: Tensor) -> None:
        self.target, self.rows, self.total, self.given = target, rows, len(x), x.shape[1:]
        #: Whether there is no second dimension, in which a window could have a side.
        self.flat = x.ndim < 4
        x = x.view(len(x), -1 if x.ndim > 2 else 1, 1, x.shape[-1]) if self.flat else x
        self.shape = x.shape[1:]
        self.x = x[rows].flatten(2)
        self.points = self._start(x)[rows].flatten(2)
        self.side = self.places = self.step = 0
        #: Places yet to be visited, in an order that is shifted by a number of its own for each example.
        self.order, self.shift = torch.empty(0, device=x.device), torch.zeros_like(rows)
        #: For the steps of a block, each ``(M, steps, …)``: where the windows are, and what else is drawn.
        self.block: list[Tensor] = []
        #: What ``_change`` is given in the steps to come, the next one last.
        self.ahead: list[tuple[Tensor, ...]] = []

    @property
    def images(self) -> Tensor:
        """The points, shaped like the examples."""
        return self.points.view(-1, *self.given)

    def propose(self, share: float) -> None:
        """Change a window that covers ``share`` of each image."""
        area, (height, width) = share * self.shape[1] * self.shape[2], self.shape[1:]
        side = self._side(area, width) if self.flat else self._side(math.sqrt(area), min(height, width))
        if side != self.side:
            self._resize(side)
        if not self.ahead:
            self._look_ahead()
        self._change(*self.ahead.pop())
        self.step += 1

    def settle(self, kept: Tensor) -> None:
        """Undo the last proposal, if there was one, except in the rows ``kept``, bool ``(M,)``."""
        raise NotImplementedError

    def keep(self, going: Tensor) -> None:
        self.ahead = []
        super().keep(going)

    def _start(self, x: Tensor) -> Tensor:
        """Points to start from, for the whole shard ``x``."""
        raise NotImplementedError

    def _side(self, wanted: float, most: int) -> int:
        """The allowed side of a window that is nearest to ``wanted``."""
        raise NotImplementedError

    def _draw(self, steps: int) -> list[Tensor]:
        """What ``_change`` needs besides places, each ``(M, steps, …)``."""
        raise NotImplementedError

    def _expand(self, corner: Tensor, *drawn: Tensor) -> tuple[Tensor, ...]:
        """What ``_change`` is given, each ``(steps, M, C, values)``, for windows at ``corner (M, steps)``."""
        raise NotImplementedError

    def _change(self, *expanded: Tensor) -> None:
        """Write new values into a window of every image."""
        raise NotImplementedError

    def _look_ahead(self) -> None:
        if not self.block or self.step == self.block[0].shape[1]:
            places = self._next_places()
            self.block = [self._corners(places), *self._draw(places.shape[1])]
            self.step = 0
        each = max(1, len(self.rows) * self.shape[0] * len(self.offsets))
        steps = slice(self.step, self.step + max(1, min(_AHEAD, _VALUES // each)))
        expanded = self._expand(*(drawn[:, steps] for drawn in self.block))
        self.ahead = list(zip(*(values.unbind() for values in expanded), strict=True))[::-1]

    def _resize(self, side: int) -> None:
        height, width = self.shape[1:]
        down = 1 if self.flat else side
        self.side, self.places = side, (height - down + 1) * (width - side + 1)
        offsets = torch.arange(side, device=self.x.device)
        self.offsets = (offsets[:down, None] * width + offsets).flatten()
        self.order, self.block, self.ahead = self.order[:0], [], []

    def _next_places(self) -> Tensor:
        """The places of the next steps, ``(M, steps)``: each image visits all of them in random order, then again."""
        if not len(self.order):
            self.order = self.target.rand(self.places, like=self.x).argsort()
            self.shift = self._random_places(1)[:, 0]
        some, self.order = self.order[:_BLOCK], self.order[_BLOCK:]
        return (some + self.shift[:, None]) % self.places

    def _random_places(self, steps: int) -> Tensor:
        drawn = self.target.rand(steps, self.total, like=self.x)
        return (drawn * self.places).long()[:, self.rows].T % self.places

    def _corners(self, places: Tensor) -> Tensor:
        """Index of the first value of the windows at ``places`` within a channel."""
        span = self.shape[2] - self.side + 1
        return places // span * self.shape[2] + places % span

    def _window(self, *corners: Tensor) -> Tensor:
        """Indices ``(steps, M, C, values)`` of the values in the windows at each of ``corners (M, steps)``, in turn."""
        values = torch.cat([corner.T[:, :, None, None] + self.offsets for corner in corners], 3)
        return values.expand(-1, -1, self.shape[0], -1)

    def _heads(self, *shape: int) -> Tensor:
        """Tosses of a coin, bool ``(M, steps, …)`` for ``shape`` without the examples."""
        steps, *rest = shape
        return (self.target.rand(steps, self.total, *rest, like=self.x) < 0.5)[:, self.rows].transpose(0, 1)


class LinfWindows(Windows):
    """Corners of the ball: a window takes ±eps, with one sign per channel."""

    def __init__(self, target: Target, x: Tensor, rows: Tensor) -> None:
        super().__init__(target, x, rows)
        threat = target.ball
        self.lowest = (self.x - threat.eps).clamp_min(threat.low)
        self.highest = (self.x + threat.eps).clamp_max(threat.high)
        #: Where the last proposal wrote, what was there before, and what is there now: ``(M, C, values)`` each.
        self.undo: list[Tensor] = []

    def _start(self, x: Tensor) -> Tensor:
        """Vertical stripes."""
        threat = self.target.ball
        stripes = self.target.rand(len(x), x.shape[1], 1, x.shape[3], like=x) < 0.5
        return (x + threat.eps * torch.where(stripes, -1.0, 1.0).to(x)).clamp_(threat.low, threat.high)

    def _side(self, wanted: float, most: int) -> int:
        return min(max(1, round(wanted)), most)

    def _draw(self, steps: int) -> list[Tensor]:
        return [self._heads(steps, self.shape[0], 1)]

    def _expand(self, corner: Tensor, *drawn: Tensor) -> tuple[Tensor, ...]:
        window, up = self._window(corner), drawn[0].transpose(0, 1)
        low, high = (_picked(values, window) for values in (self.lowest, self.highest))
        return window, torch.where(up, high, low), torch.where(up, low, high)

    def _change(self, *expanded: Tensor) -> None:
        window, wanted, opposite = expanded
        before = self.points.gather(2, window)
        same = (wanted == before).flatten(1).all(1)
        after = torch.where(same[:, None, None], opposite, wanted)
        self.points.scatter_(2, window, after)
        self.undo = [window, before, after]

    def settle(self, kept: Tensor) -> None:
        if self.undo:
            window, before, after = self.undo
            self.points.scatter_(2, window, torch.where(kept[:, None, None], after, before))
            self.undo = []


def _picked(values: Tensor, window: Tensor) -> Tensor:
    """``values (M, C, all)`` at the indices ``window (steps, M, C, some)``, shaped like these."""
    return values.expand(len(window), -1, -1, -1).gather(3, window)


class L2Windows(Windows):
    """The sphere: the length that a second window gives up goes into a pair of bumps in the first (algorithm 3)."""

    def __init__(self, target: Target, x: Tensor, rows: Tensor) -> None:
        super().__init__(target, x, rows)
        #: Where the last proposal wrote, and what was there before: ``(M, C, 2 · values)`` each.
        self.undo: list[Tensor] = []

    def _start(self, x: Tensor) -> Tensor:
        """A grid of bumps, about five by five, of random signs, as long as the radius."""
        threat, (height, width) = self.target.ball, self.shape[1:]
        side = max(1, (width if self.flat else min(height, width)) // 5)
        bumps = _stretch(side, x) if self.flat else _bumps(side, x)
        down, across = height // bumps.shape[0], width // side
        signs = torch.where(self.target.rand(len(x), self.shape[0], down, across, like=x) < 0.5, -1.0, 1.0).to(x)
        grid = torch.kron(signs, bumps)
        top, left = (height - grid.shape[2]) // 2, (width - grid.shape[3]) // 2
        delta = torch.zeros_like(x)
        delta[:, :, top : top + grid.shape[2], left : left + grid.shape[3]] = grid
        delta *= threat.eps / delta[0].norm()
        return (x + delta).clamp_(threat.low, threat.high)

    def _side(self, wanted: float, most: int) -> int:
        side = min(max(3, round(wanted)) | 1, most)
        return side - 1 + side % 2  # odd

    def _resize(self, side: int) -> None:
        super()._resize(side)
        if self.flat:
            bumps = _stretch(side, self.x)
            turned = bumps.flip(1)
        else:
            bumps = _bumps(side, self.x)
            turned = bumps.T
        self.patterns = torch.stack([bumps, turned, -bumps, -turned]).flatten(1)

    def _draw(self, steps: int) -> list[Tensor]:
        turned, negative = self._heads(steps, 1), self._heads(steps, self.shape[0])
        return [self._corners(self._random_places(steps)), turned + 2 * negative]

    def _expand(self, corner: Tensor, *drawn: Tensor) -> tuple[Tensor, ...]:
        source_corner, pattern = drawn
        both = self._window(source_corner, corner)
        return both, self.patterns[pattern.transpose(0, 1)], _picked(self.x, both)

    def _change(self, *expanded: Tensor) -> None:
        both, pattern, clean_both = expanded
        (source, window), (clean_source, clean) = both.chunk(2, 2), clean_both.chunk(2, 2)
        threat = self.target.ball
        spare = threat.eps**2 - (self.points - self.x).flatten(1).pow_(2).sum(1)
        before = self.points.gather(2, both)
        outside, inside = (before - clean_both).chunk(2, 2)
        given = outside.pow(2).sum(2)
        self.points.scatter_(2, source, clean_source)
        # What both windows hold, counted once where they overlap.
        own = self.points.gather(2, window).sub_(clean).pow_(2).sum(2)
        length = (spare[:, None] / self.shape[0] + given + own).clamp_min(0).sqrt()
        new = pattern + inside / vector_norm(inside, dim=2, keepdim=True).clamp_min(1e-12)
        new *= (length / vector_norm(new, dim=2).clamp_min(1e-12))[:, :, None]
        self.points.scatter_(2, window, new.add_(clean).clamp_(threat.low, threat.high))
        self.undo = [both, before]

    def settle(self, kept: Tensor) -> None:
        if self.undo:
            both, before = self.undo
            # A value in both windows is there twice, and is the same.
            self.points.scatter_(2, both, torch.where(kept[:, None, None], self.points.gather(2, both), before))
            self.undo = []


def _bumps(side: int, like: Tensor) -> Tensor:
    """Two neighbouring bumps of opposite sign, ``(side, side)`` with l2 norm 1 (section 4.2)."""
    top = side // 2
    bumps = torch.cat([_bump(top, side), -_bump(side - top, side)]).to(like)
    return torch.div(bumps, bumps.norm())


def _stretch(side: int, like: Tensor) -> Tensor:
    """The same along one dimension, ``(1, side)``."""
    left = side // 2
    bumps = torch.cat([_bump(1, left), -_bump(1, side - left)], 1).to(like)
    return torch.div(bumps, bumps.norm())


def _bump(height: int, width: int) -> Tensor:
    """Centred squares of side 2k+1 and height 1/(k+1)², stacked: ``(height, width)``, with l2 norm 1."""
    count = max(height, width) // 2 + 1
    heights = torch.arange(1, count + 1, dtype=torch.float64) ** -2
    stacked = heights.flip(0).cumsum(0).flip(0)
    vertical, horizontal = ((torch.arange(size) - size // 2).abs() for size in (height, width))
    bump = stacked[torch.maximum(vertical[:, None], horizontal)]
    return torch.div(bump, bump.norm())
