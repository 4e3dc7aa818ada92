"""``timm:NAME``: a model of timm (Wightman, 2019), such as ``timm:resnet18`` or ``timm:resnet18.a1_in1k``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from bench.contracts.defense import BareModel, Card
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from bench.plugins.hubs.files import from_hugging_face, from_url, load_weights_
from bench.plugins.hubs.front import Channels, Expects, front_for, joined, need, no_such_model


class TimmModel(BareModel):
    """A model of timm with its published weights, or with a user's own in the same architecture.

    Args:
        data: name, image shape and class count of the data set.
        weights: a local file in place of the published weights; the network then has the classes of the data.
        resize: scale images of another size to the network's.
        size: height and width that the network takes, where that is not what was published.
        mean, std: in place of the published ones, one per channel: ``0.49,0.48,0.45``.
    """

    version = 1
    kinds = ("image",)
    depends = ("timm",)
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
        what = f"timm:{self.published}"
        timm = need(what, "timm", "timm")
        found = _published(what, self.published, timm)
        expects = Expects(tuple(found.input_size[1:]), tuple(found.mean), tuple(found.std), found.num_classes)
        front = front_for(
            what, expects, data, own_weights=weights is not None, resize=resize, size=size, mean=mean, std=std
        )
        if weights is None:
            overlay = {"file": str(_file(what, found))}
            network = timm.create_model(self.published, pretrained=True, pretrained_cfg_overlay=overlay)
        else:
            network = timm.create_model(self.published, pretrained=False, num_classes=data.num_classes)
            load_weights_(what, network, weights)
        super().__init__(joined(front, network), data)
        self.card = Card(title=f"{self.published} (timm)", family="published model")


def _published(what: str, name: str, timm: Any) -> Any:
    """The ``PretrainedCfg`` of a name with or without the tag of its weights."""
    architecture, _, tag = name.partition(".")
    known = timm.list_pretrained()
    if not timm.is_model(architecture):
        raise no_such_model(what, name, {*timm.list_models(), *known}, "timm.list_models()")
    if tag and name not in known:
        raise no_such_model(what, name, known, f"timm.list_pretrained('{architecture}*')")
    return timm.get_pretrained_cfg(name)


def _file(what: str, found: Any) -> Path:
    """The file with the published weights: of the Hugging Face hub in safetensors, else by its address."""
    if found.hf_hub_id:
        return from_hugging_face(what, found.hf_hub_id, found.hf_hub_filename or "model.safetensors", extra="timm")
    if found.url and not found.custom_load:
        return from_url(what, found.url)
    raise InputError(f"{what}: has no published weights that can be loaded; give your own: --set weights=PATH")
