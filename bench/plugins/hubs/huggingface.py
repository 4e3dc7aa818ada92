"""``hf:REPO``: an image classifier of the Hugging Face hub, such as ``hf:google/vit-base-patch16-224``.

``hf:REPO@REVISION`` pins a commit or a tag; ``hf:PATH`` is a folder that ``save_pretrained`` wrote. Only weights in
safetensors are read, and no code of a repository is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from bench.contracts.errors import InputError
from bench.plugins.hubs.files import first_line, from_hugging_face, load_weights_
from bench.plugins.hubs.front import Expects, need
from bench.plugins.hubs.model import Build, HubModel

_WEIGHTS = "model.safetensors"


class HuggingFaceModel(HubModel):
    """An image classifier of the Hugging Face hub, normalised as its processor does. Parameters: the base's."""

    version = 1
    depends = ("transformers",)
    hub = "hf"
    site = "Hugging Face"

    @classmethod
    def find(cls, what: str, classes: int, weights: Path | None) -> tuple[Expects, Build]:
        transformers = need(what, "transformers", "hf")
        folder = _folder(what, cls.published, with_weights=weights is None)
        config = _config(what, folder, transformers)
        expects = _expects(what, _read(what, folder / "preprocessor_config.json"), config.num_labels)
        return expects, lambda: _network(what, folder, config, transformers, classes, weights)


def _folder(what: str, written: str, *, with_weights: bool) -> Path:
    """A local folder, or that of the cache in which all files of one commit lie."""
    local = Path(written).expanduser()
    if local.is_dir():
        return local
    repo, _, revision = written.partition("@")
    if repo.count("/") > 1 or repo.startswith((".", "/", "~")):
        raise InputError(f"{what}: no such folder (a repository is OWNER/NAME)")
    names = [*([_WEIGHTS] if with_weights else []), "config.json", "preprocessor_config.json"]
    commit = revision or None
    for name in names:
        path = from_hugging_face(what, repo, name, commit)
        commit = path.parent.name  # the other files of the very same commit
    return path.parent


def _config(what: str, folder: Path, transformers: Any) -> Any:
    _read(what, folder / "config.json")
    try:
        return transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise InputError(f"{what}: config.json: {first_line(error)}") from error


def _network(
    what: str, folder: Path, config: Any, transformers: Any, classes: int, weights: Path | None
) -> nn.Module:
    auto = transformers.AutoModelForImageClassification
    try:
        if weights is not None:
            config.num_labels = classes
            network: nn.Module = auto.from_config(config, trust_remote_code=False)
        else:
            if not (folder / _WEIGHTS).is_file():
                raise InputError(f"{what}: has no {_WEIGHTS}; other formats are not read")
            network, report = auto.from_pretrained(
                str(folder),
                config=config,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            if missing := sorted(map(str, report["missing_keys"])):
                raise InputError(f"{what}: its weights lack {missing[0]!r}; is it an image classifier?")
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what}: cannot be loaded as an image classifier: {first_line(error)}") from error
    if weights is not None:
        load_weights_(what, network, weights)
    return network


def _expects(what: str, processor: dict[str, Any], classes: int) -> Expects:
    """What the image processor makes of an 8-bit image, said for one in [0, 1]."""
    factor = 255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255.0
    offset = 1.0 if processor.get("rescale_offset") else 0.0
    mean, std = [0.0] * 3, [1.0] * 3
    if processor.get("do_normalize", "image_mean" in processor):
        if "image_mean" not in processor or "image_std" not in processor:
            raise InputError(f"{what}: preprocessor_config.json has no image_mean and image_std")
        mean, std = processor["image_mean"], processor["image_std"]
    return Expects(
        _size(what, processor),
        tuple((value + offset) / factor for value in mean),
        tuple(value / factor for value in std),
        classes,
        bool(processor.get("do_flip_channel_order")),
    )


def _size(what: str, processor: dict[str, Any]) -> tuple[int, int]:
    cropped = processor.get("do_center_crop") and processor.get("crop_size")
    size = processor["crop_size"] if cropped else processor.get("size")
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and "height" in size and "width" in size:
        return size["height"], size["width"]
    if isinstance(size, dict) and "shortest_edge" in size:
        return size["shortest_edge"], size["shortest_edge"]
    raise InputError(f"{what}: preprocessor_config.json says no size of images, got {size!r}")


def _read(what: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{what}: has no {path.name}") from None
    except ValueError as error:
        raise InputError(f"{what}: {path.name} is no JSON: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise InputError(f"{what}: {path.name} is no JSON object")
    return found
