"""Image folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from bench.contracts.errors import InputError
from bench.data.load import load_data


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
    with pytest.raises(InputError, match=r"nowhere: has no folder 'train'; expected an image folder \{train,test\}"):
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
