"""``timm:NAME``: a model of timm (Wightman, 2019), such as ``timm:resnet18`` or ``timm:resnet18.a1_in1k``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from bench.contracts.errors import InputError
from bench.plugins.hubs.files import from_hugging_face, from_url, load_weights_
from bench.plugins.hubs.front import Expects, need, no_such_model
from bench.plugins.hubs.model import Build, HubModel


class TimmModel(HubModel):
    """A model of timm with its published weights, or with a user's own. Parameters: the base's."""

    version = 1
    depends = ("timm",)
    hub = "timm"
    site = "timm"

    @classmethod
    def find(cls, what: str, classes: int, weights: Path | None) -> tuple[Expects, Build]:
        timm = need(what, "timm", "timm")
        found = _published(what, cls.published, timm)

        def build() -> nn.Module:
            if weights is None:
                overlay = {"file": str(_file(what, found))}
                published: nn.Module = timm.create_model(cls.published, pretrained=True, pretrained_cfg_overlay=overlay)
                return published
            network: nn.Module = timm.create_model(cls.published, pretrained=False, num_classes=classes)
            load_weights_(what, network, weights)
            return network

        return Expects(tuple(found.input_size[1:]), tuple(found.mean), tuple(found.std), found.num_classes), build


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
