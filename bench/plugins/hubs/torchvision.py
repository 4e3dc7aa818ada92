"""``torchvision:NAME``: a classifier of torchvision, such as ``torchvision:resnet50`` or, with the name of its weights,
``torchvision:resnet50.IMAGENET1K_V1``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from bench.plugins.hubs.files import from_url, load_weights_
from bench.plugins.hubs.front import Expects, no_such_model
from bench.plugins.hubs.model import Build, HubModel

#: What torchvision sets by itself where it loads the published weights of these two.
_AS_PUBLISHED: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}


#: The published files of its DenseNets have names of before 2018: ``denselayer1.norm.1`` for ``denselayer1.norm1``.
_OLD_NAMES = (r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2")


class TorchvisionModel(HubModel):
    """A classifier of torchvision with its published weights, or with a user's own. Parameters: the base's."""

    version = 1
    depends = ("torchvision",)
    hub = "torchvision"
    site = "torchvision"

    @classmethod
    def find(cls, what: str, classes: int, weights: Path | None) -> tuple[Expects, Build]:
        import torchvision  # takes a second, which whoever names no such model need not wait for

        name, found = _published(what, cls.published)
        given = found.transforms()
        side = given.crop_size[0]

        def build() -> nn.Module:
            options = _AS_PUBLISHED.get(name, {})
            network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
            load_weights_(what, network, from_url(what, found.url) if weights is None else weights, _OLD_NAMES)
            return network

        return Expects((side, side), tuple(given.mean), tuple(given.std), len(found.meta["categories"])), build


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
