"""What published models of timm, torchvision and the Hugging Face hub have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from torch import nn

from bench.contracts.defense import BareModel, Card
from bench.contracts.inputs import DataInfo
from bench.plugins.hubs.front import Channels, Expects, front_for, joined

#: Makes the network with published weights, once the data are known to fit it.
Build = Callable[[], nn.Module]


class HubModel(BareModel):
    """A published model, with the normalisation that it was trained with in front.

    Args:
        data: name, image shape and class count of the data set.
        weights: a local file in place of the published weights; the network then has the classes of the data.
        resize: scale images of another size to the network's.
        size: height and width that the network takes, where that is not what was published.
        mean, std: in place of the published ones, one per channel: ``0.49,0.48,0.45``.
    """

    kinds = ("image",)
    hub: ClassVar[str]
    site: ClassVar[str]
    published: ClassVar[str]

    def __init__(
        self,
        data: DataInfo,
        *,
        weights: Path | None = None,
        resize: bool = False,
        size: int | None = None,
        mean: Channels | None = None,
        std: Channels | None = None,
    ) -> None:
        what = f"{self.hub}:{self.published}"
        expects, build = self.find(what, data.num_classes, weights)
        front = front_for(
            what, expects, data, own_weights=weights is not None, resize=resize, size=size, mean=mean, std=std
        )
        super().__init__(joined(front, build()), data)
        self.card = Card(title=f"{self.published} ({self.site})", family="published model")

    @classmethod
    def find(cls, what: str, classes: int, weights: Path | None) -> tuple[Expects, Build]:
        """What the published model expects, and how the network is made.

        Args:
            what: the reference, for messages.
            classes: of the data.
            weights: a user's own, in which case the network has these classes.

        Raises:
            InputError: when there is no such model, or its library is not installed.
        """
        raise NotImplementedError
