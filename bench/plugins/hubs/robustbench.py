"""``robustbench:NAME``: a model of RobustBench (Croce et al., 2021), such as ``robustbench:Carmon2019Unlabeled``.

Its models take images in [0, 1] and normalise inside. It publishes no hash of their weights; the hash of what was
loaded is in the key of every result, as for all defenses.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import ClassVar

from bench.contracts.defense import BareModel, Card
from bench.contracts.errors import InputError, did_you_mean, in_one_line
from bench.contracts.inputs import DataInfo
from bench.plugins.hubs.front import Expects, front_for, joined, need, no_such_model

#: Its data sets: size of the images that a model takes, and classes.
_DATA = {"cifar10": (32, 10), "cifar100": (32, 100), "imagenet": (224, 1000)}


class RobustBenchModel(BareModel):
    """A model of RobustBench.

    Args:
        data: name, image shape and class count of the data set.
        threat: the threat model it was trained for: ``Linf``, ``L2`` or ``corruptions``.
        dataset: ``cifar10``, ``cifar100`` or ``imagenet``; default: the one with the classes of the data.
        folder: where the library keeps weights.
        weights: a local file in place of those it downloads.
        resize: scale images of another size to the network's.
    """

    version = 1
    kinds = ("image",)
    depends = ("robustbench",)
    published: ClassVar[str]

    def __init__(
        self,
        data: DataInfo,
        *,
        threat: str = "Linf",
        dataset: str | None = None,
        folder: Path = Path("models"),
        weights: Path | None = None,
        resize: bool = False,
    ) -> None:
        what = f"robustbench:{self.published}"
        if dataset is None:
            dataset = next((name for name, (_, classes) in _DATA.items() if classes == data.num_classes), "cifar10")
        if dataset not in _DATA:
            raise InputError(f"{what}: dataset {dataset!r} does not exist{did_you_mean(dataset, _DATA)}")
        side, classes = _DATA[dataset]
        front = front_for(what, Expects((side, side), (0.0,) * 3, (1.0,) * 3, classes), data, resize=resize)
        zoo = need(what, "robustbench.model_zoo", "robustbench")
        tables = {str(getattr(key, "value", key)): table for key, table in _models(zoo, dataset).items()}
        if threat not in tables:
            raise InputError(f"{what}: threat {threat!r} does not exist for {dataset}{did_you_mean(threat, tables)}")
        if self.published not in tables[threat]:
            raise no_such_model(what, self.published, tables[threat], "https://robustbench.github.io")
        if weights is not None and not weights.expanduser().is_file():
            raise InputError(f"{what}: weights {weights}: no such file")
        if weights is not None and isinstance(tables[threat][self.published].get("gdrive_id"), list):
            raise InputError(f"{what}: is an ensemble of several files; put them into a folder, --set folder=PATH")
        load = need(what, "robustbench.utils", "robustbench").load_model
        asked = {"model_name": self.published, "dataset": dataset, "threat_model": threat}
        with in_one_line(f"{what}: RobustBench raised"), tempfile.TemporaryDirectory() as temporary:
            if weights is None:
                network = load(**asked, model_dir=folder.expanduser())
            else:  # where the library looks before it downloads, unless the model is one of timm
                place = Path(temporary, dataset, threat, f"{self.published}.pt")
                place.parent.mkdir(parents=True)
                place.symlink_to(weights.expanduser().resolve())
                network = load(**asked, model_dir=temporary, custom_checkpoint=str(place))
        super().__init__(joined(front, network), data)
        self.card = Card(title=f"{self.published} (RobustBench)", family="published model")


def _models(zoo: object, dataset: str) -> dict[object, dict[str, dict[str, object]]]:
    """The library's table of a data set: threat model → name → model."""
    tables: dict[object, dict[object, dict[str, dict[str, object]]]] = zoo.model_dicts  # type: ignore[attr-defined]
    return next(table for key, table in tables.items() if getattr(key, "value", key) == dataset)
