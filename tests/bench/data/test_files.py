"""Arrays in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from bench.contracts.errors import InputError
from bench.data.load import load_data

Arrays = dict[str, NDArray[Any]]


def _arrays(n: int = 12) -> Arrays:
    """Test and training images, uint8 ``(N, 3, 5, 4)``; the first value of an image is its label."""
    rng = np.random.default_rng(0)
    found: Arrays = {}
    for part in ("test", "train"):
        x, y = rng.integers(0, 256, (n, 3, 5, 4), dtype=np.uint8), np.arange(n) % 4
        x[:, 0, 0, 0] = y
        found |= {f"x_{part}": x, f"y_{part}": y}
    return found


def _write(path: Path, arrays: Arrays) -> Path:
    tensors = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    elif path.suffix == ".pt":
        torch.save(tensors, path)
    else:
        safetensors.torch.save_file(tensors, path)
    return path


@pytest.mark.parametrize("ending", [".npz", ".pt", ".safetensors"])
def test_the_same_data_from_every_kind_of_file(tmp_path: Path, ending: str) -> None:
    arrays = _arrays()
    data = load_data(f"file:{_write(tmp_path / f'mine{ending}', arrays)}")
    assert (data.info.name, data.info.shape, data.info.num_classes) == ("mine", (3, 5, 4), 4)
    assert data.info.input.levels == 256
    assert (len(data.train) + len(data.validation), len(data.test)) == (12, 12)
    assert len(data.validation) >= 4
    for split, part in ((data.train, "train"), (data.validation, "train"), (data.test, "test")):
        for x, y, name in zip(split.inputs, split.y.tolist(), split.ids, strict=True):
            row = int(name.split("/")[1])
            assert np.array_equal(x.numpy(), arrays[f"x_{part}"][row])
            assert y == arrays[f"y_{part}"][row] == x[0, 0, 0]


def test_layouts_and_types_do_not_matter(tmp_path: Path) -> None:
    arrays = _arrays()
    x, y = arrays["x_test"], arrays["y_test"]
    whole = load_data(f"file:{_write(tmp_path / 'a.npz', {'x': x, 'y': y})}").test
    others = {
        "last": (x.transpose(0, 2, 3, 1), y),
        "floats": (x.astype(np.float32) / 255, y.astype(np.uint8)),
        "doubles": (x / 255, y[:, None]),
    }
    for name, (images, labels) in others.items():
        split = load_data(f"file:{_write(tmp_path / f'{name}.npz', {'x': images, 'y': labels})}").test
        assert split.digest == whole.digest, name
        assert split.inputs.dtype == torch.uint8, name
    pair = tmp_path / "pair.pt"
    torch.save((torch.from_numpy(x), torch.from_numpy(y)), pair)
    assert load_data(f"file:{pair}").test.digest == whole.digest


def test_grey_images_without_a_channel_and_values_between_the_levels(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((6, 5, 4), dtype=np.float32)
    data = load_data(f"file:{_write(tmp_path / 'grey.npz', {'x': x, 'y': np.arange(6)})}")
    assert data.info.shape == (1, 5, 4)
    assert data.info.input.levels is None
    assert (len(data.train), len(data.validation), len(data.test)) == (0, 0, 6)
    rows = [int(name.split("/")[1]) for name in data.test.ids]
    assert np.array_equal(data.test.x[:, 0].numpy(), x[rows])


def test_the_number_of_classes_may_be_given(tmp_path: Path) -> None:
    arrays = {"x": np.zeros((3, 3, 8, 8), np.uint8), "y": np.array([0, 7, 3]), "num_classes": np.array(1000)}
    assert load_data(f"file:{_write(tmp_path / 'few.npz', arrays)}").info.num_classes == 1000
    arrays["num_classes"] = np.array(7)
    with pytest.raises(InputError, match="has the label 7, but num_classes is 7"):
        load_data(f"file:{_write(tmp_path / 'fewer.npz', arrays)}")


def test_a_file_that_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.data import files

    arrays = _arrays()
    path = _write(tmp_path / "mine.npz", arrays)
    first = files.load(path)
    arrays["x_test"][0, 0, 1, 1] ^= 1
    _write(path, arrays)
    assert files.load(path).test.digest != first.test.digest
    monkeypatch.setattr(files, "_read", lambda *args: pytest.fail("read again"))
    assert files.load(path).train.digest == first.train.digest


def test_a_file_called_like_a_published_data_set_is_another(tmp_path: Path) -> None:
    assert load_data(f"file:{_write(tmp_path / 'cifar10.npz', _arrays())}").info.name == "file-cifar10"


X, Y = np.zeros((4, 3, 8, 8), np.uint8), np.arange(4)
WRONG: dict[str, tuple[Arrays, str]] = {
    "no x": ({"y": Y}, "has no array 'x'; it has y"),
    "no y": ({"x": X}, "has no array 'y'; it has x"),
    "another name": ({"x": X, "y": Y, "x_tran": X}, "has an array 'x_tran' (did you mean 'x_train'?)"),
    "two tests": ({"x": X, "y": Y, "x_test": X, "y_test": Y}, "has both x and x_test"),
    "lengths": ({"x": X, "y": Y[:3]}, "x has 4 examples, y has 3"),
    "empty": ({"x": X[:0], "y": Y[:0]}, "x has no examples"),
    "range": ({"x": X.astype(np.float32) + 255, "y": Y}, "x: spans [255, 255], expected floats in [0, 1] (or uint8)"),
    "nan": ({"x": np.full(X.shape, np.nan), "y": Y}, "x: spans [nan, nan]"),
    "whole": ({"x": X.astype(np.int64), "y": Y}, "x: is int64, expected uint8"),
    "flat": ({"x": X.reshape(4, -1), "y": Y}, "x: has the shape (4, 192), expected (N, C, H, W)"),
    "channels": ({"x": np.zeros((4, 2, 8, 8), np.uint8), "y": Y}, "neither the first nor the last is channels"),
    "either": ({"x": np.zeros((4, 3, 8, 3), np.uint8), "y": Y}, "both the first and the last could be channels"),
    "one-hot": ({"x": X, "y": np.eye(4)}, "y: is float64 (4, 4), expected whole numbers (N,)"),
    "negative": ({"x": X, "y": Y - 1}, "y: has the label -1, expected classes from 0 on"),
    "sizes": ({"x": X, "y": Y, "x_train": X[..., :4], "y_train": Y}, "training images are uint8 (3, 8, 4), test"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_in_a_line(tmp_path: Path, case: str) -> None:
    arrays, expected = WRONG[case]
    path = _write(tmp_path / "wrong.npz", arrays)
    with pytest.raises(InputError) as caught:
        load_data(f"file:{path}")
    message = str(caught.value)
    assert message.startswith(f"data file {path}: ")
    assert expected in message
    assert "\n" not in message


class Sly:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("touched"),))


def test_damaged_files_and_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for ending in (".npz", ".pt", ".safetensors"):
        path = _write(tmp_path / f"cut{ending}", _arrays())
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(InputError, match=rf"cut\{ending}: cannot be read: ") as caught:
            load_data(f"file:{path}")
        assert "\n" not in str(caught.value)
    torch.save({"x": Sly()}, "sly.pt")
    with pytest.raises(InputError, match=r"sly\.pt: cannot be read"):
        load_data("file:sly.pt")
    np.savez("sly.npz", x=np.array([Sly()], dtype=object), y=Y)
    with pytest.raises(InputError, match=r"sly\.npz: cannot be read"):
        load_data("file:sly.npz")
    assert not Path("touched").exists()
    with pytest.raises(InputError, match=r"nowhere\.npz: cannot be read: No such file"):
        load_data("file:nowhere.npz")
    with pytest.raises(InputError, match=r"x\.csv: ends with none of \.npz, \.pt, \.safetensors"):
        load_data("file:x.csv")


def test_a_path_without_its_kind_gets_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _write(Path("mine.npz"), _arrays())
    Path("images").mkdir()
    with pytest.raises(InputError, match=r"data 'mine.npz' does not exist \(did you mean 'file:mine.npz'\?\)"):
        load_data("mine.npz")
    with pytest.raises(InputError, match=r"did you mean 'folder:images'\?"):
        load_data("images")
