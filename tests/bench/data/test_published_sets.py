"""Published data sets, read from local stand-ins of the same layout."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from bench.contracts.errors import InputError
from bench.data.load import PUBLISHED, load_data
from bench.data.published import cifar100, mnist, svhn, tiny_imagenet
from bench.data.splits import Data

RNG = np.random.default_rng(0)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _whole(data: Data) -> dict[str, tuple[torch.Tensor, int]]:
    """Image, as bytes, and label of every id."""
    splits = (data.train, data.validation, data.test)
    return {i: (x, int(y)) for s in splits for i, x, y in zip(s.ids, s.inputs, s.y, strict=True)}


def test_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {name: RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8) for name, n in (("train", 40), ("t10k", 20))}
    archives = []
    for real in mnist.ARCHIVES:
        (name,) = real.members
        part = images[name.split("-")[0]]
        raw = bytes(16) + part.tobytes() if "images" in name else bytes(8) + bytes(i % 10 for i in range(len(part)))
        (tmp_path / real.name).write_bytes(gzip.compress(raw))
        archives.append(replace(real, members={name: _sha256(raw)}))
    monkeypatch.setattr(mnist, "ARCHIVES", tuple(archives))
    data = load_data("mnist", tmp_path)
    assert (data.info.name, data.info.shape, len(data.test)) == ("mnist", (1, 28, 28), 20)
    found = _whole(data)
    assert len(found) == 60
    for i in range(20):
        x, y = found[f"test/{i:05d}"]
        assert y == i % 10 and (x[0].numpy() == images["t10k"][i]).all()


def test_svhn_calls_the_digit_zero_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archives, images = [], {}
    for real, n in zip(svhn.ARCHIVES, (40, 20), strict=True):
        images[real.name] = RNG.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        labels = np.array([[1 + i % 10] for i in range(n)], np.uint8)
        scipy.io.savemat(tmp_path / real.name, {"X": images[real.name], "y": labels}, do_compression=True)
        digest = _sha256((tmp_path / real.name).read_bytes())
        archives.append(replace(real, sha256=digest, members={real.name: digest}))
    monkeypatch.setattr(svhn, "ARCHIVES", tuple(archives))
    data = load_data("svhn", tmp_path)
    assert (data.info.name, data.info.shape, data.info.num_classes) == ("svhn", (3, 32, 32), 10)
    found = _whole(data)
    for i in range(20):
        x, y = found[f"test/{i:05d}"]
        assert y == (i + 1) % 10
        assert (x.numpy().transpose(1, 2, 0) == images["test_32x32.mat"][..., i]).all()


def _cifar100(path: Path) -> dict[str, Any]:
    names = [b"apple", b"bear", b"chair"]
    files: dict[str, Any] = {"meta": {b"fine_label_names": names}}
    for part, n in (("train", 30), ("test", 12)):
        files[part] = {
            b"data": RNG.integers(0, 256, (n, 3072), dtype=np.uint8),
            b"fine_labels": [i % 3 for i in range(n)],
            b"coarse_labels": [0] * n,
            b"filenames": [f"{part}_{i:04d}.png".encode() for i in range(n)],
        }
    with tarfile.open(path, "w:gz") as tar:
        for name, held in files.items():
            content = pickle.dumps(held)
            entry = tarfile.TarInfo(f"cifar-100-python/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return files


def test_cifar100_has_the_names_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cifar-100-python.tar.gz"
    files = _cifar100(path)
    monkeypatch.setattr(cifar100, "SHA256", _sha256(path.read_bytes()))
    data = load_data("cifar100", tmp_path)
    assert (data.info.name, data.class_names, len(data.test)) == ("cifar100", ["apple", "bear", "chair"], 12)
    found = _whole(data)
    assert len(found) == 42
    x, y = found["test/bear/test_0004.png"]
    assert y == 1 and (x.flatten().numpy() == files["test"][b"data"][4]).all()


def test_a_pickle_that_is_not_the_published_one_is_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _cifar100(tmp_path / "cifar-100-python.tar.gz")
    monkeypatch.setattr(pickle, "loads", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(InputError, match=r"cifar-100-python\.tar\.gz: SHA-256 is [0-9a-f]{64}, expected 85cd44d0"):
        load_data("cifar100", tmp_path)


def test_tiny_imagenet_is_ordered_as_a_folder_of_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive, whose classes are not listed in order, and a folder of the same images under the same names."""
    path, told = tmp_path / "tiny-imagenet-200.zip", []
    classes = ["n02", "n01"]
    with zipfile.ZipFile(path, "w") as archive:

        def add(name: str, also: str, grey: bool) -> None:
            shape = (64, 64) if grey else (64, 64, 3)
            content = io.BytesIO()
            Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(content, "JPEG")
            archive.writestr(f"tiny-imagenet-200/{name}", content.getvalue())
            (tmp_path / "tiny" / also).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "tiny" / also).write_bytes(content.getvalue())

        archive.writestr("tiny-imagenet-200/wnids.txt", "".join(f"{name}\n" for name in classes))
        for wnid in classes:
            for i in range(6):
                add(f"train/{wnid}/images/{wnid}_{i}.JPEG", f"train/{wnid}/{wnid}_{i}.JPEG", grey=i == 0)
        for i in range(4):
            wnid = classes[i % 2]
            add(f"val/images/val_{i}.JPEG", f"test/{wnid}/val_{i}.JPEG", grey=False)
            told.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n")
        archive.writestr("tiny-imagenet-200/val/val_annotations.txt", "".join(told))
    monkeypatch.setattr(tiny_imagenet, "SHA256", _sha256(path.read_bytes()))
    data, folder = load_data("tiny-imagenet", tmp_path), load_data(f"folder:{tmp_path / 'tiny'}")
    assert (data.info.name, data.info.shape, data.class_names) == ("tiny-imagenet", (3, 64, 64), ["n01", "n02"])
    for name in ("train", "validation", "test"):
        assert getattr(data, name).ids == getattr(folder, name).ids
        assert getattr(data, name).digest == getattr(folder, name).digest


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - {"digits"}))
def test_what_is_not_there_is_asked_for(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"not found .*download it \(--download\) or name its folder \(--data-root\)"):
        load_data(name, tmp_path)
