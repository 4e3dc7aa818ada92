"""Image folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from stand_ins import run_bench

from attacks.toolkit.surrogates import train_surrogates
from bench.contracts.attack import PrepareContext
from bench.contracts.defense import DefenseSpec
from bench.contracts.errors import InputError
from bench.contracts.threat import Lp
from bench.data.load import load_data
from bench.storing.checkpoints import TrainingSettings
from bench.training.recipe import train_defense


def _folder(root: Path, mode: str = "RGB", size: tuple[int, int] = (6, 4), per_class: int = 3) -> Path:
    """An image folder whose pixel values tell part, class and number."""
    for p, part in enumerate(("train", "test")):
        for c, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(per_class):
                value = 100 * p + 40 * c + i
                Image.new(mode, size, value if mode == "L" else (value, 7, 0)).save(root / part / name / f"{i}.png")
    return root


def test_folder(tmp_path: Path) -> None:
    data = load_data(f"folder:{_folder(tmp_path / 'pets')}")
    assert data.info.name == "pets"
    assert data.info.shape == (3, 4, 6)
    assert data.class_names == ["cat", "dog"]
    assert (len(data.train), len(data.validation), len(data.test)) == (4, 2, 6)
    expected = [f"train/{c}/{i}.png" for c in ("cat", "dog") for i in range(3)]
    assert sorted(data.train.ids + data.validation.ids) == expected
    for split, base in ((data.train, 0), (data.validation, 0), (data.test, 100)):
        for x, y, name in zip(split.x, split.y.tolist(), split.ids, strict=True):
            assert name.split("/")[1] == data.class_names[y]
            assert torch.allclose(x[0] * 255, torch.tensor(base + 40.0 * y + int(name[-5])))
            assert torch.allclose(x[1] * 255, torch.tensor(7.0))


def test_folder_of_grey_images_has_one_channel(tmp_path: Path) -> None:
    root = _folder(tmp_path / "grey", mode="L")
    data = load_data(f"folder:{root}")
    assert data.info.shape == (1, 4, 6)
    assert data.test.x.shape == (6, 1, 4, 6)


def test_folder_with_one_colour_image_has_three_channels(tmp_path: Path) -> None:
    root = _folder(tmp_path / "mixed", mode="L")
    Image.new("RGB", (6, 4), (255, 0, 0)).save(root / "test" / "dog" / "9.JPEG")
    data = load_data(f"folder:{root}")
    assert data.info.shape == (3, 4, 6)
    assert "test/dog/9.JPEG" in data.test.ids
    assert torch.equal(data.train.x[:, 0], data.train.x[:, 2])


def test_folder_errors_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: there is no such folder; expected an image folder \{train,test\}"):
        load_data(f"folder:{tmp_path / 'nowhere'}")
    odd = _folder(tmp_path / "odd")
    Image.new("RGB", (5, 5)).save(odd / "test" / "cat" / "big.png")
    with pytest.raises(InputError, match=r"big\.png: is 5x5, the others are 6x4"):
        load_data(f"folder:{odd}")
    broken = _folder(tmp_path / "broken")
    (broken / "train" / "cat" / "1.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"1\.png: cannot be read"):
        load_data(f"folder:{broken}")
    extra = _folder(tmp_path / "extra")
    (extra / "test" / "fish").mkdir()
    with pytest.raises(InputError, match="'fish' has no folder below 'train'"):
        load_data(f"folder:{extra}")
    empty = _folder(tmp_path / "empty")
    (empty / "train" / "ant").mkdir()
    with pytest.raises(InputError, match="ant: has no images"):
        load_data(f"folder:{empty}")


def test_a_folder_without_training_images(tmp_path: Path) -> None:
    root = _folder(tmp_path / "pets")
    shutil.rmtree(root / "train")
    data = load_data(f"folder:{root}")
    assert (len(data.train), len(data.validation), len(data.test)) == (0, 0, 6)
    assert data.info.shape == data.train.inputs.shape[1:] == (3, 4, 6)
    assert data.class_names == ["cat", "dog"]
    assert data.samples is data.test
    shutil.rmtree(root / "test" / "dog")
    with pytest.raises(InputError, match="has 1 classes below 'test', needs 2"):
        load_data(f"folder:{root.rename(tmp_path / 'cats')}")


def test_what_needs_training_images_says_so(tmp_path: Path) -> None:
    root = _folder(tmp_path / "pets")
    shutil.rmtree(root / "train")
    data = load_data(f"folder:{root}")
    settings = TrainingSettings("pets", data.version, Lp("linf", 0.1), 1)
    with pytest.raises(InputError, match="none: cannot be trained: pets has no training images"):
        train_defense(DefenseSpec("none"), data, settings, folder=tmp_path)
    context = PrepareContext(None, data.info, Lp("linf", 0.1), data.train, torch.device("cpu"))
    with pytest.raises(InputError, match="surrogates: are trained on training images, and the data have none"):
        train_surrogates(context, count=1, epochs=1, training="standard")


def test_a_model_is_evaluated_on_a_folder_without_training_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(_folder(tmp_path / "pets") / "train")
    Path("mine.py").write_text(
        "import torch\n\n\ndef make():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(72, 2)).eval()\n"
    )
    Path("bench.yaml").write_text(
        "suites:\n  small:\n    data: folder:pets\n    examples: 6\n    seed: 1\n"
        "    threat_model: {norm: linf, eps: 0.1}\n    attacks: {pgd: {steps: 2}}\n"
    )
    options = ["--suite", "small", "--results", "runs", "--device", "cpu", "--workers", 1]
    ended = run_bench("evaluate", "--defense", "mine.py:make", "--json", *options)
    assert ended.code == 0, ended.err
    assert len(json.loads(ended.out)["suites"][0]["ids"]) == 6
    detecting = run_bench("evaluate", "--defense", "feature-squeezing", "--set", "classifier=mine.py:make", *options)
    assert detecting.code == 2
    assert "its detector's threshold is set on validation images, and the data have none" in detecting.err
