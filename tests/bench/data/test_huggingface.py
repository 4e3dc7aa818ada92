"""Data sets of the Hugging Face library, from folders that stand in for the hub; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import run_bench

from bench.contracts.errors import InputError
from bench.data import load as loading
from bench.data.huggingface import Asked
from bench.data.load import load_data
from bench.data.splits import Data

NAMES = ["cat", "dog", "eel"]


def _library() -> Any:
    return pytest.importorskip("datasets", reason="the extra hf is not installed (pip install 'worst-case-bench[hf]')")


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing loaded before is remembered, and neither cache is that of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "_loaded", {})
    if importlib.util.find_spec("datasets") is not None:
        monkeypatch.setattr(_library().config, "HF_DATASETS_CACHE", tmp_path / "hf")


def _pixels(n: int, shape: tuple[int, ...] = (6, 5, 3), seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def _rows(pixels: np.ndarray[Any, Any], labels: list[Any] | None = None, **columns: list[Any]) -> Any:
    """A split with the columns ``img`` and ``label``."""
    datasets = _library()
    values = {"img": [Image.fromarray(image) for image in pixels], **columns}
    features = {"img": datasets.Image(), **{key: datasets.Value("string") for key in columns}}
    if labels is None:
        labels = [k % 3 for k in range(len(pixels))]
        features["label"] = datasets.ClassLabel(names=NAMES)
    elif isinstance(labels[0], str):
        features["label"] = datasets.Value("string")
    else:
        features["label"] = datasets.Value("int64")
    return datasets.Dataset.from_dict({**values, "label": labels}, features=datasets.Features(features))


def _saved(folder: Path, **splits: Any) -> str:
    """The reference of splits that ``save_to_disk`` wrote."""
    _library().DatasetDict(splits).save_to_disk(str(folder))
    return f"hf:{folder}"


def _by_id(data: Data, split: str) -> dict[str, tuple[torch.Tensor, int]]:
    found = getattr(data, split)
    return {name: (x, int(y)) for name, x, y in zip(found.ids, found.inputs, found.y, strict=True)}


def test_images_labels_and_names_of_classes_are_those_of_the_data_set(tmp_path: Path) -> None:
    train, test = _pixels(12), _pixels(7, seed=1)
    data = load_data(_saved(tmp_path / "pets", train=_rows(train), test=_rows(test)))
    assert (data.info.name, data.info.shape, data.info.num_classes) == ("pets", (3, 6, 5), 3)
    assert data.info.input.levels == 256 and data.class_names == NAMES
    assert (len(data.train) + len(data.validation), len(data.test)) == (12, 7) and len(data.validation) >= 3
    rows = _by_id(data, "test")
    for number, image in enumerate(test):
        x, y = rows[f"test/{number:05d}"]
        assert torch.equal(x, torch.from_numpy(image).permute(2, 0, 1)) and y == number % 3


def test_read_a_second_time_nothing_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = _saved(tmp_path / "pets", train=_rows(_pixels(6)), test=_rows(_pixels(6)))
    first = load_data(reference)
    monkeypatch.setattr(loading, "_loaded", {})
    monkeypatch.setattr("bench.data.huggingface.decode", lambda *_: pytest.fail("decoded again"))
    assert load_data(reference).test.digest == first.test.digest


def test_another_content_in_the_same_place_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_data(_saved(tmp_path / "pets", test=_rows(_pixels(6))))
    monkeypatch.setattr(loading, "_loaded", {})
    second = load_data(_saved(tmp_path / "pets", test=_rows(_pixels(6, seed=1))))
    assert first.test.digest != second.test.digest


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    for part, n in (("train", 9), ("test", 4)):
        _rows(_pixels(n)).to_parquet(str(tmp_path / "own" / f"{part}-00000-of-00001.parquet"))
    data = load_data(f"hf:{tmp_path / 'own'}")
    assert (len(data.train) + len(data.validation), len(data.test)) == (9, 4) and data.class_names == NAMES


def test_grey_images_have_one_channel_and_a_validation_split_is_taken_as_it_is(tmp_path: Path) -> None:
    parts = {"train": 5, "validation": 4, "test": 3}
    splits = {part: _rows(_pixels(n, (6, 5), seed)) for seed, (part, n) in enumerate(parts.items())}
    data = load_data(_saved(tmp_path / "grey", **splits))
    assert data.info.shape == (1, 6, 5)
    assert {part: len(getattr(data, part)) for part in parts} == parts
    assert set(data.validation.ids) == {f"validation/{k:05d}" for k in range(4)}


def test_without_a_training_split_there_are_test_images_alone(tmp_path: Path) -> None:
    data = load_data(_saved(tmp_path / "pets", validation=_rows(_pixels(4))))
    assert (len(data.train), len(data.validation), len(data.test)) == (0, 0, 4)


@pytest.mark.parametrize(("labels", "names"), [
    (["b", "a", "c", "a"], ["a", "b", "c"]),
    ([2, 0, 2, 1], ["0", "1", "2"]),
])  # fmt: skip
def test_labels_without_a_type_of_their_own(tmp_path: Path, labels: list[Any], names: list[str]) -> None:
    data = load_data(_saved(tmp_path / "pets", test=_rows(_pixels(4), labels)))
    assert data.class_names == names
    rows = _by_id(data, "test")
    assert [names[rows[f"test/{k:05d}"][1]] for k in range(4)] == [str(label) for label in labels]


def test_columns_and_splits_can_be_named(tmp_path: Path) -> None:
    datasets = _library()
    rows = _rows(_pixels(6)).add_column("fine", [0, 1, 1, 0, 1, 0], feature=datasets.ClassLabel(names=["x", "y"]))
    reference = _saved(tmp_path / "pets", fit=rows, held=rows)
    with pytest.raises(InputError, match=r"the labels may be those of label, fine; name one of .*: ,label=COLUMN"):
        load_data(f"{reference},test=held")
    data = load_data(f"{reference},label=fine,train=fit,test=held,image=img")
    assert data.class_names == ["x", "y"] and data.info.name == "pets-fine-held"
    assert [int(_by_id(data, "test")[f"test/{k:05d}"][1]) for k in range(6)] == [0, 1, 1, 0, 1, 0]
    assert len(data.train) + len(data.validation) == 6


def test_a_data_set_with_the_name_of_a_published_one_is_not_taken_for_it(tmp_path: Path) -> None:
    assert load_data(_saved(tmp_path / "cifar10", test=_rows(_pixels(4)))).info.name == "hf-cifar10"


def test_it_is_evaluated_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = _saved(tmp_path / "pets", train=_rows(_pixels(20, (8, 8))), test=_rows(_pixels(8, (8, 8))))
    suite = "suites: {tiny: {data: digits, examples: 4, seed: 1, shard_size: 4, threat_model: {norm: linf, eps: 0.1}"
    (tmp_path / "bench.yaml").write_text(f"{suite}, attacks: {{noise: {{draws: 2}}}}}}}}")
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef flat(info):\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, info.num_classes)).eval()\n"
    )
    where = ["--config", tmp_path / "bench.yaml", "--results", tmp_path / "results", "--device", "cpu"]
    model = ["--defense", f"{tmp_path}/net.py:flat", "--suite", "tiny", "--data", reference]
    ended = run_bench("evaluate", *model, *where)
    assert ended.code == 0, ended.err
    assert "tiny@pets" in ended.out


# -- what the hub is asked ----------------------------------------------------------------------------------------


def test_the_hub_is_asked_for_what_is_named_if_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets, asked = _library(), []

    def load_dataset(name: str, config: str | None, *, revision: str | None) -> Any:
        asked.append((name, config, revision, datasets.config.HF_HUB_OFFLINE))
        return datasets.DatasetDict(test=_rows(_pixels(4)))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    load_data("hf:owner/pets@abc:small,test=test")
    load_data("hf:owner/pets", download=True)
    assert asked == [("owner/pets", "small", "abc", True), ("owner/pets", None, None, False)]
    assert datasets.config.HF_HUB_OFFLINE is False


def test_what_is_not_there_is_a_line_that_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _library()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"hf:nobody/nothing: cannot be loaded \(--download fetches") as error:
        load_data("hf:nobody/nothing")
    assert "\n" not in str(error.value)


# -- what is wrong is a line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reference", "message"), [
    ("hf:a/b,labels=x", "no option 'labels' (did you mean 'label'?)"),
    ("hf:a/b,label=", "label needs one value"),
    ("hf:a/b,label=x,label=y", "label needs one value"),
    ("hf::small", "names no data set"),
])  # fmt: skip
def test_a_reference_that_says_nothing_known(reference: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        load_data(reference)
    assert message in str(error.value)


def test_a_reference_is_taken_apart() -> None:
    asked = Asked.of("owner/pets@v1:small,label=fine")
    assert (asked.name, asked.revision, asked.config, asked.options) == ("owner/pets", "v1", "small", {"label": "fine"})
    assert asked.title == "pets-small-fine-v1"


def test_without_the_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"datasets cannot be imported .*pip install 'worst-case-bench\[hf\]'"):
        load_data("hf:owner/pets")


@pytest.mark.parametrize(("more", "message"), [
    (",test=dev", "has no split 'dev' (known: test, train)"),
    (",train=test", "'test' cannot both be trained on and evaluated"),
    (",label=lable", "has no column 'lable' (did you mean 'label'?)"),
    (",image=text", "column 'text' holds no images"),
    (",label=text", ""),
])  # fmt: skip
def test_columns_and_splits_that_do_not_fit(tmp_path: Path, more: str, message: str) -> None:
    rows = {"train": _rows(_pixels(4), text=["a", "b", "a", "b"]), "test": _rows(_pixels(3), text=["a", "b", "b"])}
    reference = _saved(tmp_path / "pets", **rows) + more
    if not message:
        assert load_data(reference).class_names == ["a", "b"]
        return
    with pytest.raises(InputError) as error:
        load_data(reference)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_hidden_labels_other_sizes_and_missing_folders(tmp_path: Path) -> None:
    hidden = _saved(tmp_path / "hidden", test=_rows(_pixels(3), [-1, -1, -1]))
    with pytest.raises(InputError, match="the labels of test are not published"):
        load_data(hidden)
    sizes = _saved(tmp_path / "sizes", train=_rows(_pixels(3)), test=_rows(_pixels(3, (4, 4, 3))))
    with pytest.raises(InputError, match="its splits have images of other sizes: train 5x6, test 4x4"):
        load_data(sizes)
    with pytest.raises(InputError, match="is no folder"):
        load_data("hf:./absent")
    nothing = _saved(tmp_path / "nothing", dev=_rows(_pixels(3)), more=_rows(_pixels(3)))
    with pytest.raises(InputError, match=r"which split is to be evaluated\? It has dev, more"):
        load_data(nothing)
