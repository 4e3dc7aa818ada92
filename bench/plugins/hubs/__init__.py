"""Models by name from where they are published: ``timm:NAME``, ``torchvision:NAME``, ``hf:REPO``, ``robustbench:NAME``.

Each is a bare model with the normalisation that it was trained with in front. Its version and its library's are part of
its key, as its weights are. The libraries are extras of this package, imported when a name asks for them.
"""

from __future__ import annotations

from bench.contracts.defense import BareModel
from bench.plugins.hubs.huggingface import HuggingFaceModel
from bench.plugins.hubs.model import HubModel
from bench.plugins.hubs.robustbench import RobustBenchModel
from bench.plugins.hubs.timm import TimmModel
from bench.plugins.hubs.torchvision import TorchvisionModel

#: Prefix → the class behind it. They come before modules of the same name.
HUBS: dict[str, type[HubModel | RobustBenchModel]] = {
    "timm": TimmModel,
    "torchvision": TorchvisionModel,
    "hf": HuggingFaceModel,
    "robustbench": RobustBenchModel,
}


def hub_model(reference: str) -> type[BareModel] | None:
    """The class of one published model, such as ``timm:resnet18``; None where the reference names no hub."""
    hub, colon, name = reference.partition(":")
    if not colon or not name or hub not in HUBS:
        return None
    base = HUBS[hub]
    # A version is never inherited; the class made here adds nothing but a name.
    return type(base.__name__, (base,), {"published": name, "version": base.version, "__module__": base.__module__})


__all__ = ["HUBS", "hub_model"]
