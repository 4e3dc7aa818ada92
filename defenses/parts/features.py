"""The hidden layers of any classifier: which there are, and what they answer, differentiable in x.

Nothing is asked of the network but that its layers are modules: one pass of an image of zeros shows which are called,
in which order, and what they answer. So it works for the networks of ``defenses.parts.nets``, for torchvision's and for
a model of a user's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from bench.contracts.defense import Defense
from bench.contracts.errors import InputError, did_you_mean
from bench.contracts.seeding import seeded


@dataclass(frozen=True)
class Layer:
    """A place in a network where activations are read.

    Attributes:
        name: of the module whose output it is; of the last linear layer it is the input.
        shape: of what it answers for one image.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values for one image."""
        return torch.Size(self.shape).numel()


class Features:
    """The hidden layers of a defense's classifier.

    A *stage* is all layers whose answers have one and the same shape; it is read at the last of them. In a residual
    network these are the stages of He et al. 2016, after their last block; in a plain one what lies between two
    changes of width or resolution. What is only flattened is no stage of its own. The last stage is what the last
    linear layer is given, a vector: the *last hidden layer*.

    Args:
        defense: in evaluation mode; its ``classifier``, or else the whole of it, is looked into.

    Raises:
        InputError: where no layer is a module, or logits do not come from a linear one.
    """

    def __init__(self, defense: Defense) -> None:
        network = getattr(defense, "classifier", defense)
        self._modules = {name: module for name, module in network.named_modules() if name}
        self._kind = type(network).__name__
        calls = self._calls(defense)
        linear = [at for at, (name, _) in enumerate(calls) if isinstance(self._modules[name], nn.Linear)]
        if not linear or calls[linear[-1]][1] != (defense.data.num_classes,):
            raise InputError(
                f"features of {self._kind}: its logits do not come from a torch.nn.Linear module, so there is no last "
                "hidden layer to read"
            )
        self.head: str = calls[linear[-1]][0]
        self.stages: tuple[Layer, ...] = tuple(self._stages(calls[: linear[-1]]))

    @property
    def last(self) -> Layer:
        """The last hidden layer, whose answer is a vector."""
        return self.stages[-1]

    @property
    def linear(self) -> nn.Linear:
        """The last linear layer, from the last hidden layer to the logits."""
        head = self._modules[self.head]
        assert isinstance(head, nn.Linear)
        return head

    def named(self, name: str) -> Layer:
        """The stage of that name; ``InputError`` with a suggestion where there is none."""
        names = [stage.name for stage in self.stages]
        if name not in names:
            raise InputError(f"features of {self._kind}: no stage {name!r}{did_you_mean(name, names)}")
        return self.stages[names.index(name)]

    def read(self, defense: Defense, x: Tensor, layers: tuple[Layer, ...]) -> tuple[Tensor, list[Tensor]]:
        """Logits ``(N, K)`` and the answers ``(N, *layer.shape)`` of some layers, from one pass of ``defense(x)``.

        Raises:
            InputError: where a layer answers for another number of images than it was asked about, as behind a
                transform that votes over many copies of one.
        """
        found: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor) -> None:
            found[name] = value

        with self._hooked([layer.name for layer in layers], keep):
            logits = defense(x)
        for layer in layers:
            if layer.name not in found or len(found[layer.name]) != len(x):
                answered = len(found[layer.name]) if layer.name in found else 0
                raise InputError(
                    f"features of {self._kind}: layer {layer.name} answers for {answered} images where {len(x)} were "
                    "asked about"
                )
        # At another size of image than the nominal one the shape is another as well.
        return logits, [found[layer.name].flatten(1) if len(layer.shape) == 1 else found[layer.name]
                        for layer in layers]  # fmt: skip

    @contextmanager
    def _hooked(self, names: list[str], keep: Callable[[str, Tensor], None]) -> Iterator[None]:
        """While it lasts, what the modules answer goes to ``keep``; of the last linear layer, what it is given.

        Where a module is called several times, the last call is the one that classifies.
        """

        def after(name: str) -> Callable[..., None]:
            return lambda module, args, output: keep(name, output) if isinstance(output, Tensor) else None

        def before(name: str) -> Callable[..., None]:
            return lambda module, args: keep(name, args[0])

        handles: list[Any] = []
        head = getattr(self, "head", None)
        try:
            for name in names:
                module = self._modules[name]
                if name == head:
                    handles.append(module.register_forward_pre_hook(before(name)))
                else:
                    handles.append(module.register_forward_hook(after(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _calls(self, defense: Defense) -> list[tuple[str, tuple[int, ...]]]:
        """The modules that are called, in the order in which they answer, with the shape for one image."""
        calls: list[tuple[str, tuple[int, ...]]] = []
        some = next(defense.parameters(), torch.empty(0))
        spec = defense.data.input
        x = torch.full((1, *spec.shape), spec.low, device=some.device)
        # Of a defense that draws, the draws of this one pass change nothing that is drawn later.
        with seeded("features"), self._hooked(list(self._modules), lambda name, v: calls.append((name, v.shape[1:]))):
            defense(x)
        return [(name, tuple(shape)) for name, shape in calls]

    def _stages(self, calls: list[tuple[str, tuple[int, ...]]]) -> list[Layer]:
        ends: dict[tuple[int, ...], Layer] = {}
        for name, shape in calls:
            ends.pop(shape, None)
            ends[shape] = Layer(name, shape)
        ends.pop((self.linear.in_features,), None)
        inner = [layer for layer in ends.values() if layer.shape]
        flattened = {
            after for one, after in pairwise(inner) if len(after.shape) == 1 < len(one.shape) and one.size == after.size
        }
        last = Layer(self.head, (self.linear.in_features,))
        inner = [layer for layer in inner if layer not in flattened]
        if inner and inner[-1].size == last.size:
            inner.pop()
        return [*inner, last]
