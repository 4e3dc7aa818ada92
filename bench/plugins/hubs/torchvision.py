"""``torchvision:NAME``: a classifier of torchvision, such as ``torchvision:resnet50`` or, with the name of its weights,
``torchvision:resnet50.IMAGENET1K_V1``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from bench.contracts.defense import BareModel, Card
from bench.contracts.inputs import DataInfo
from bench.plugins.hubs.files import from_url, load_weights_
from bench.plugins.hubs.front import Channels, Expects, front_for, joined, no_such_model

#: What torchvision sets by itself where it loads the published weights of these two.
_AS_PUBLISHED: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}


#: The published files of its DenseNets have names of before 2018: ``denselayer1.norm.1`` for ``denselayer1.norm1``.
_OLD_NAMES = (r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2")


class TorchvisionModel(BareModel):
    """A classifier of torchvision with its published weights, or with a user's own in the same architecture.

    Args:
        data: name, image shape and class count of the data set.
        weights: a local file in place of the published weights; the network then has the classes of the data.
        resize: scale images of another size to the network's.
        size: height and width that the network takes, where that is not what was published.
        mean, std: in place of the published ones, one per channel: ``0.49,0.48,0.45``.
    """

    version = 1
    kinds = ("image",)
    depends = ("torchvision",)
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
        what = f"torchvision:{self.published}"
        import torchvision  # takes a second, which whoever names no such model need not wait for

        name, found = _published(what, self.published)
        given = found.transforms()
        side = given.crop_size[0]
        expects = Expects((side, side), tuple(given.mean), tuple(given.std), len(found.meta["categories"]))
        front = front_for(
            what, expects, data, own_weights=weights is not None, resize=resize, size=size, mean=mean, std=std
        )
        options = _AS_PUBLISHED.get(name, {})
        network = torchvision.models.get_model(name, weights=None, num_classes=data.num_classes, **options)
        load_weights_(what, network, from_url(what, found.url) if weights is None else weights, _OLD_NAMES)
        super().__init__(joined(front, network), data)
        self.card = Card(title=f"{self.published} (torchvision)", family="published model")


def _published(what: str, written: str) -> tuple[str, Any]:
    """The model's name and its weights' entry: the one named after the dot, or torchvision's default."""
    import torchvision

    name, _, tag = written.partition(".")
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise no_such_model(what, name, known, "torchvision.models.list_models(torchvision.models)")
    entries = torchvision.models.get_model_weights(name)
    if not tag:
        return name, entries.DEFAULT
    if tag not in entries.__members__:
        raise no_such_model(what, tag, entries.__members__, f"{', '.join(entries.__members__)}")
    return name, entries[tag]
