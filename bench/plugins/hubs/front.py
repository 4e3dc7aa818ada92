"""What stands in front of a published network: the checks of the data against it, scaling, its own normalisation."""

from __future__ import annotations

import difflib
import importlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo

#: One number per channel: from Python a sequence, from the command line ``0.49,0.48,0.45``.
Channels = str | Sequence[float]


@dataclass(frozen=True)
class Expects:
    """What a published network takes and gives.

    Attributes:
        size: height and width of its images.
        mean, std: one per channel, for images in [0, 1].
        classes: how many it was trained for.
        bgr: whether its channels are blue, green, red.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    bgr: bool = False


class Front(nn.Module):
    """Images ``(N, C, H, W)`` in [0, 1] to what the network was trained on. Differentiable.

    Args:
        mean, std: one per channel. They are buffers, and so part of the hash of the weights.
        size: what the images are scaled to, bilinear with antialiasing; None: they are left as they are.
        bgr: whether to turn the order of the channels around.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], size: tuple[int, int] | None = None, bgr: bool = False
    ) -> None:
        super().__init__()
        self.size, self.bgr = size, bgr
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The scaled and normalised images."""
        if self.size is not None:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        return ((x.flip(1) if self.bgr else x) - self.mean) / self.std


def front_for(
    what: str,
    expects: Expects,
    data: DataInfo,
    *,
    own_weights: bool = False,
    resize: bool = False,
    size: int | None = None,
    mean: Channels | None = None,
    std: Channels | None = None,
) -> Front:
    """The :class:`Front` of a network for a data set.

    Args:
        what: the reference, for messages.
        expects: what the network takes as it is published.
        data: the data set.
        own_weights: whether the weights are a user's own: the network is then built for the classes of the data.
        resize: scale images of another size to the network's.
        size: height and width that the network takes, where that is not what was published.
        mean, std: in place of the published ones.

    Raises:
        InputError: where channels, size, classes or the box differ, or a parameter makes no sense.
    """
    if size is not None and size < 1:
        raise InputError(f"{what}: size {size} must be at least 1")
    means, stds = (_numbers(what, *given) for given in (("mean", mean, expects.mean), ("std", std, expects.std)))
    if min(stds) <= 0:
        raise InputError(f"{what}: std {min(stds):g} must be above 0")
    if (data.input.low, data.input.high) != (0, 1):
        raise InputError(
            f"{what}: takes images in [0, 1]; those of {data.name} are in [{data.input.low:g}, {data.input.high:g}]"
        )
    wanted = (len(means), *((size, size) if size else expects.size))
    if data.shape[0] != wanted[0]:
        raise InputError(f"{what}: takes images of {_shape(wanted)}; those of {data.name} are {_shape(data.shape)}")
    if data.shape != wanted and not resize:
        raise InputError(
            f"{what}: takes images of {_shape(wanted)}; those of {data.name} are {_shape(data.shape)}: --set "
            f"resize=true scales them inside the model, --set size={data.shape[1]} says that it takes them as they are"
        )
    if data.num_classes != expects.classes and not own_weights:
        raise InputError(f"{what}: tells {expects.classes} classes apart; {data.name} has {data.num_classes}")
    return Front(means, stds, None if data.shape == wanted else wanted[1:], expects.bgr)


def joined(front: Front, network: nn.Module) -> nn.Module:
    """The front and the network behind it, in single precision and evaluation mode."""
    return nn.Sequential(OrderedDict(front=front, network=network)).float().eval()


def need(what: str, module: str, extra: str | None) -> Any:
    """Import a library, or say in a line which extra brings it."""
    try:
        return importlib.import_module(module)
    except Exception as error:
        hint = f"; pip install 'worst-case-bench[{extra}]'" if extra else ""
        lines = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"{what}: {module.partition('.')[0]} cannot be imported ({lines[0]}){hint}") from error


def no_such_model(what: str, name: str, known: Iterable[str], listing: str) -> InputError:
    """The error for an unknown name: what is close, or what lists them all; there are too many to name."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return InputError(f"{what}: no such model ({f'did you mean {close[0]!r}?' if close else f'see {listing}'})")


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _numbers(what: str, name: str, given: Channels | None, default: Sequence[float]) -> tuple[float, ...]:
    if given is None:
        return tuple(default)
    parts = given.split(",") if isinstance(given, str) else given
    try:
        numbers = tuple(float(part) for part in parts)
    except ValueError:
        numbers = ()
    if len(numbers) != len(default):
        raise InputError(f"{what}: {name} {given!r} must be {len(default)} numbers, one per channel: 0.49,0.48,0.45")
    return numbers
