"""Piecewise linear networks as layers of units, whose pattern of activity makes the network affine.

A network is captured once, as the elementary operations that one input passes through. Whatever is not affine among
them is written in units: a unit puts out z where its input z is positive and s·z, with a slope s from 0 to 1, where it
is not (ReLU: s = 0). A maximum is one of them, max(a, b) = a + relu(b - a), and with it max-pooling, clamping and
absolute values. With the pattern of active units held fixed, inputs of all units and the logits are affine in the
input; with some units *free*, also in what these put out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from bench.contracts.errors import NotApplicable

_ATEN = torch.ops.aten
#: Affine in every argument that depends on the input, or in the one of them for which this is checked.
_LINEAR = """
convolution add sub rsub neg mul div mm addmm bmm linear t permute transpose view _unsafe_view reshape flatten
clone detach mean sum avg_pool2d avg_pool1d _adaptive_avg_pool2d adaptive_avg_pool2d native_batch_norm
_native_batch_norm_legit_no_training cudnn_batch_norm _to_copy cat slice select squeeze unsqueeze expand
constant_pad_nd reflection_pad2d replication_pad2d alias stack view_copy t_copy permute_copy transpose_copy
select_copy slice_copy squeeze_copy unsqueeze_copy expand_copy alias_copy detach_copy _reshape_copy
upsample_bilinear2d upsample_nearest2d split split_with_sizes split_copy unbind index gather flip roll
"""
_AFFINE = {getattr(_ATEN, name) for name in _LINEAR.split() if hasattr(_ATEN, name)}
#: Of two factors one has to be a constant; a divisor has to be.
_PRODUCTS = {_ATEN.mul, _ATEN.mm, _ATEN.bmm, _ATEN.linear, _ATEN.div, _ATEN.convolution}
#: Affine in the first argument alone: weights, statistics and places are constants.
_FIRST_ONLY = {
    _ATEN.div, _ATEN.convolution, _ATEN.native_batch_norm, _ATEN._native_batch_norm_legit_no_training, _ATEN.linear,
    _ATEN.index, _ATEN.gather,
}  # fmt: skip
_UNITS = {
    _ATEN.relu, _ATEN.leaky_relu, _ATEN.max_pool2d_with_indices, _ATEN.max_pool2d, _ATEN.clamp, _ATEN.clamp_min,
    _ATEN.clamp_max, _ATEN.hardtanh, _ATEN.abs, _ATEN.maximum, _ATEN.minimum,
}  # fmt: skip
#: What an affine operation may put out: any other type of number is rounded to.
_PRECISE = {None, torch.float32, torch.float64}
_BATCH_NORMS = {_ATEN.native_batch_norm, _ATEN.cudnn_batch_norm}
#: Entries of the largest matrix that is made, units times values of an input: 0.8 GB.
_LARGEST = 100_000_000
#: Layout alone: what they are given comes out, in its shape; the value is in the argument of this number.
_LAYOUT = {_ATEN.copy: 1, _ATEN.as_strided_: 0, _ATEN.as_strided: 0}
_UNRELATED = {_ATEN.zeros_like, _ATEN.ones_like, _ATEN.full_like, _ATEN.empty_like, _ATEN.new_zeros, _ATEN.new_ones}

#: What the units of one place put out: ``(inputs (1, …), slope) -> outputs (1, …)``.
Unit = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Piece:
    """One input, and the piece of the network that it lies in.

    Attributes:
        x: the input, float64 ``(1, *shape)``.
        logits: ``(K,)``.
        z: inputs of all units, ``(U,)``, layer by layer.
        active: bool ``(U,)``.
    """

    x: Tensor
    logits: Tensor
    z: Tensor
    active: Tensor


@dataclass(frozen=True)
class Affine:
    """The network on one piece as a function of the flattened input: logits ``A x + a``, inputs of units ``Z x + b``.

    Shapes: ``A (K, D)``, ``a (K,)``, ``Z (U, D)``, ``b (U,)``.
    """

    A: Tensor
    a: Tensor
    Z: Tensor
    b: Tensor


class PiecewiseLinear:
    """A deterministic network as a piecewise linear function of one input, in float64 on the CPU.

    Args:
        model: maps ``(1, *shape)`` to logits ``(1, K)``.
        x: an input ``(1, *shape)``.

    Attributes:
        slopes: of all units when they are inactive, ``(U,)``.
        layers: the units of each layer, as slices of all units, in the order of evaluation: no unit depends on
            another of its own layer or of a later one.

    Raises:
        NotApplicable: where the network is not known to be piecewise linear, naming the operation, or is too large.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        x = x.detach().double().cpu()
        double = copy.deepcopy(model).double().cpu().eval().requires_grad_(False)
        try:
            with torch.no_grad():
                self._graph = make_fx(torch.func.functionalize(lambda x: double(x), remove="mutations"))(x)
        except Exception as error:
            lines = str(error).strip().splitlines()
            reason = lines[0] if lines else type(error).__name__
            raise NotApplicable(f"the network cannot be traced: {reason}") from None
        self.shape = x.shape
        self._places = self._classified()
        self.layers, self.slopes = self._counted(x)
        if len(self.slopes) * x.numel() > _LARGEST:
            raise NotApplicable(f"{len(self.slopes)} units of {x.numel()} inputs are too many to search among")
        self._check(double, x)

    def _classified(self) -> set[torch.fx.Node]:
        """The nodes that are run here (units, layouts), after a look at every node that depends on the input."""
        places, depend = set[torch.fx.Node](), set[torch.fx.Node]()
        for node in self._graph.graph.nodes:
            moving = [n for n in node.all_input_nodes if n in depend]
            if node.op == "placeholder":
                depend.add(node)
            if node.op != "call_function" or not moving:
                continue
            operation = getattr(node.target, "overloadpacket", None)
            if operation in _UNRELATED:
                continue
            depend.add(node)
            if operation == _ATEN.leaky_relu and not 0 <= _slope(node.args) <= 1:
                raise NotApplicable(f"a leaky ReLU of slope {_slope(node.args):g} is not known, only of 0 to 1")
            if operation in _UNITS or operation in _LAYOUT:
                places.add(node)
            elif getattr(node.target, "__name__", "") != "getitem" and (operation not in _AFFINE or _bends(node)):
                raise NotApplicable(f"the network is not known to be piecewise linear: {node.target}")
            elif operation in _PRODUCTS and len([a for a in node.args if a in depend]) > 1:
                raise NotApplicable(f"the network multiplies values that depend on the input: {node.target}")
            elif operation in _FIRST_ONLY and node.args[0] not in depend:
                raise NotApplicable(f"the network is not known to be piecewise linear: {node.target}")
            elif operation == _ATEN.addmm and node.args[1] in depend and node.args[2] in depend:
                raise NotApplicable(f"the network multiplies values that depend on the input: {node.target}")
        return places

    def _counted(self, x: Tensor) -> tuple[list[slice], Tensor]:
        layers, slopes = list[slice](), list[Tensor]()

        def unit(z: Tensor, slope: float) -> Tensor:
            begin = layers[-1].stop if layers else 0
            layers.append(slice(begin, begin + z.numel()))
            slopes.append(torch.full((z.numel(),), slope, dtype=torch.float64))
            return F.leaky_relu(z, slope)

        self._classes = len(self.run(x, unit))
        return layers, torch.cat(slopes) if slopes else torch.zeros(0, dtype=torch.float64)

    def _check(self, double: nn.Module, x: Tensor) -> None:
        """The units give the network's own logits, here and elsewhere: nothing was missed, and nothing is random."""
        noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for point in (x, x + 0.05 * noise, noise):
            with torch.no_grad():
                own = double(point)[0]
            if not torch.allclose(own, self.at(point).logits, atol=1e-7, rtol=1e-7):
                raise NotApplicable("the network is another function than its trace")

    # -- evaluating it ----------------------------------------------------------------------------------------

    def run(self, x: Tensor, unit: Unit) -> Tensor:
        """Logits ``(K,)`` of one input, with the units as ``unit`` says."""
        places = self._places

        class Run(torch.fx.Interpreter):
            def run_node(self, n: torch.fx.Node) -> object:
                if n not in places:
                    return super().run_node(n)
                args, kwargs = self.fetch_args_kwargs_from_env(n)
                operation = n.target.overloadpacket  # type: ignore[union-attr]
                if operation in _LAYOUT:
                    return args[_LAYOUT[operation]].expand(n.meta["val"].shape)
                return _in_units(operation, args, kwargs, unit)

        logits: Tensor = Run(self._graph).run(x)
        return logits[0]

    @torch.no_grad()
    def at(self, x: Tensor) -> Piece:
        """The piece that ``x (1, *shape)`` lies in."""
        inputs = list[Tensor]()

        def unit(z: Tensor, slope: float) -> Tensor:
            inputs.append(z.flatten())
            return F.leaky_relu(z, slope)

        x = x.double().cpu().view(self.shape)
        logits = self.run(x, unit)
        z = torch.cat(inputs) if inputs else torch.zeros(0, dtype=torch.float64)
        return Piece(x, logits, z, z > 0)

    def _on(self, active: Tensor, x: Tensor, free: Tensor | None, outputs: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits and inputs of all units on a piece; ``free`` units (bool ``(U,)``) put out ``outputs (U,)``."""
        inputs, places = list[Tensor](), iter(self.layers)

        def unit(z: Tensor, slope: float) -> Tensor:
            layer = next(places)
            inputs.append(z.flatten())
            out = torch.where(active[layer].view(z.shape), z, slope * z)
            if free is not None and outputs is not None:
                out = torch.where(free[layer].view(z.shape), outputs[layer].view(z.shape), out)
            return out

        logits = self.run(x, unit)
        return logits, torch.cat(inputs) if inputs else torch.zeros(0, dtype=torch.float64)

    @torch.no_grad()
    def affine(self, active: Tensor, chunk: int = 128) -> Affine:
        """The network on the piece of a pattern ``active`` (bool ``(U,)``)."""
        size = math.prod(self.shape)
        a, b = self._on(active, torch.zeros(self.shape, dtype=torch.float64), None, None)
        along = torch.vmap(lambda x: self._on(active, x.view(self.shape), None, None))
        parts = [along(rows) for rows in torch.eye(size, dtype=torch.float64).split(chunk)]
        steep, units = (torch.cat([p[k] for p in parts]).T for k in (0, 1))
        return Affine(steep - a[:, None], a, units - b[:, None], b)

    @torch.no_grad()
    def outputs_of(self, active: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """How logits ``(K, F)`` and inputs of units ``(U, F)`` depend on what each of the ``free`` units puts out.

        Args:
            active: the pattern of all others, bool ``(U,)``.
            free: units, int64 ``(F,)``.
        """
        if not len(free):
            return torch.zeros(self._classes, 0, dtype=torch.float64), torch.zeros(len(active), 0, dtype=torch.float64)
        mask = torch.zeros(len(active), dtype=torch.bool)
        mask[free] = True
        x = torch.zeros(self.shape, dtype=torch.float64)
        a, b = self._on(active, x, mask, torch.zeros(len(active), dtype=torch.float64))
        rows = torch.zeros(len(free), len(active), dtype=torch.float64)
        rows[torch.arange(len(free)), free] = 1.0
        logits, inputs = torch.vmap(lambda out: self._on(active, x, mask, out))(rows)
        return (logits - a).T, (inputs - b).T

    def influence(self, piece: Piece, weights: Tensor) -> Tensor:
        """Derivatives ``(U,)`` of ``weights (K,) · logits`` in what every unit puts out, on the piece of an input."""
        if not self.layers:
            return torch.zeros(0, dtype=torch.float64)
        places = iter(self.layers)
        outs = list[Tensor]()

        def unit(z: Tensor, slope: float) -> Tensor:
            out = torch.where(piece.active[next(places)].view(z.shape), z, slope * z).requires_grad_()
            outs.append(out)
            return out

        with torch.enable_grad():
            logits = self.run(piece.x.clone().requires_grad_(), unit)
            grads = torch.autograd.grad(logits @ weights, outs, allow_unused=True)
        return torch.cat([
            torch.zeros(out.numel(), dtype=torch.float64) if g is None else g.flatten()
            for g, out in zip(grads, outs, strict=True)
        ])  # fmt: skip


def _bends(node: torch.fx.Node) -> bool:
    """Whether the arguments make an operation that is affine by its name another one."""
    operation, more = getattr(node.target, "overloadpacket", None), node.kwargs
    rounds = more.get("rounding_mode") is not None or more.get("dtype") not in _PRECISE
    rounds = rounds or getattr(node.target, "_overloadname", "") == "dtype"  # a view of the same bits
    # Statistics of the batch depend on the input.
    return rounds or (operation in _BATCH_NORMS and bool(node.args[5]))


def _slope(args: tuple[Any, ...]) -> float:
    """Of a leaky ReLU."""
    return float(args[1]) if len(args) > 1 else 0.01


def _in_units(operation: object, args: tuple[Any, ...], kwargs: dict[str, Any], unit: Unit) -> object:
    """The value of an operation, written in units."""
    z = args[0]
    more = dict(zip(("min", "max"), args[1:], strict=False)) | kwargs
    if operation == _ATEN.relu:
        return unit(z, 0.0)
    if operation == _ATEN.leaky_relu:
        return unit(z, _slope(args))
    if operation == _ATEN.abs:
        return 2 * unit(z, 0.0) - z
    if operation == _ATEN.maximum:
        return z + unit(args[1] - z, 0.0)
    if operation == _ATEN.minimum:
        return z - unit(z - args[1], 0.0)
    if operation in (_ATEN.max_pool2d, _ATEN.max_pool2d_with_indices):
        pooled = _max_pool(z, args[1:], kwargs, unit)
        return pooled if operation == _ATEN.max_pool2d else (pooled, None)
    if operation == _ATEN.hardtanh:
        given = (*args[1:], *(-1.0, 1.0)[len(args) - 1 :])
        low, high = given[0], given[1]
    elif operation == _ATEN.clamp_max:
        low, high = None, args[1]
    else:
        low, high = more.get("min"), more.get("max")
    if low is not None:
        z = low + unit(z - low, 0.0)
    return z if high is None else high - unit(high - z, 0.0)


def _max_pool(z: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], unit: Unit) -> Tensor:
    """Max-pooling as a tournament of maxima; a window that reaches over the border meets values of its own twice."""
    given = dict(zip(("kernel_size", "stride", "padding", "dilation", "ceil_mode"), args, strict=False)) | kwargs
    if given.get("ceil_mode"):
        raise NotApplicable("max-pooling with ceil_mode is not known to the search")
    kernel, stride = given["kernel_size"], given.get("stride") or given["kernel_size"]
    lengths = [kernel, stride, given.get("padding", 0), given.get("dilation", 1)]
    size, step, pad, spread = ((v, v) if isinstance(v, int) else (v[0], v[-1]) for v in lengths)
    # Places count from one, so that the zeros of the padding are none of them.
    places = torch.arange(1.0, z.shape[-1] * z.shape[-2] + 1, dtype=torch.float64).view(1, 1, *z.shape[-2:])
    windows = F.unfold(places, size, dilation=spread, padding=pad, stride=step)[0].long() - 1
    windows = torch.where(windows < 0, windows.amax(0), windows)
    rivals: list[Tensor] = list(z.flatten(-2)[..., windows].unbind(-2))
    while len(rivals) > 1:
        first, second, rest = rivals[0:-1:2], rivals[1::2], rivals[len(rivals) // 2 * 2 :]
        a, b = torch.stack(first), torch.stack(second)
        rivals = [*(a + unit(b - a, 0.0)), *rest]
    height = (z.shape[-2] + 2 * pad[0] - spread[0] * (size[0] - 1) - 1) // step[0] + 1
    pooled: Tensor = rivals[0].unflatten(-1, (height, -1))
    return pooled
