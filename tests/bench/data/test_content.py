"""CIFAR-10 is one data set, whatever it comes in."""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from bench.cli.scene import Scene, in_a_scene
from bench.cli.voice import speaking
from bench.contracts.errors import InputError
from bench.data import cifar10, content, folder
from bench.data.downloads import Archive
from bench.data.load import load_data
from bench.data.splits import Data

CLASSES = content.CIFAR10.class_names
Images = dict[str, NDArray[np.uint8]]


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Images:
    """CIFAR-10 of few images: id → pixels ``(H, W, C)``. Their digest is that of the known data set."""
    rng = np.random.default_rng(0)
    names = [f"train/{c}/{c}_s_{i:06}.png" for c in CLASSES for i in rng.permutation(100)[:10]]
    names += [f"test/{c}/{c}_s_{i:06}.png" for c in CLASSES for i in rng.permutation(100)[:2]]
    found = {name: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in names}
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(f"{name}\n".encode() + hashlib.sha256(found[name].tobytes()).digest())
    monkeypatch.setattr(content, "CIFAR10", replace(content.CIFAR10, sha256=digest.hexdigest()))
    return found


def _folder(root: Path, images: Images) -> Path:
    for name, pixels in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)
    return root


def _archive(root: Path, images: Images, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published archive with these images, in an order of its own."""
    root.mkdir()
    rng = np.random.default_rng(1)
    parts = {part: [n for n in images if n.startswith(part)] for part in ("train", "test")}
    train = rng.permutation(parts["train"]).tolist()
    members = {}
    with tarfile.open(root / cifar10.ARCHIVE.name, "w:gz") as tar:
        for i, member in enumerate(cifar10.ARCHIVE.members):
            names = rng.permutation(parts["test"]).tolist() if "test" in member else train[20 * i : 20 * i + 20]
            batch = pickle.dumps(
                {
                    b"data": np.stack([images[n].transpose(2, 0, 1).ravel() for n in names]),
                    b"labels": [CLASSES.index(n.split("/")[1]) for n in names],
                    b"filenames": [n.split("/")[2].encode() for n in names],
                }
            )
            entry = tarfile.TarInfo(member)
            entry.size = len(batch)
            tar.addfile(entry, io.BytesIO(batch))
            members[member] = hashlib.sha256(batch).hexdigest()
    monkeypatch.setattr(cifar10, "ARCHIVE", Archive("http://127.0.0.1:9/cifar-10-python.tar.gz", "", "", members))
    return root


def _same(one: Data, two: Data) -> None:
    assert (one.info, one.class_names, one.version) == (two.info, two.class_names, two.version)
    for name in ("train", "validation", "test"):
        a, b = getattr(one, name), getattr(two, name)
        assert a.ids == b.ids
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.y, b.y)
        assert a.digest == b.digest


def test_archive_and_folder_are_the_same_data_set(
    tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = _folder(tmp_path / "pictures", images)
    archive = cifar10._read(_archive(tmp_path / "archive", images, monkeypatch), False)
    assert (archive.info.name, archive.version) == ("cifar10", content.CIFAR10.version)
    assert (len(archive.train) + len(archive.validation), len(archive.test)) == (100, 20)
    assert len(archive.validation) >= 10
    for split in (archive.train, archive.validation, archive.test):
        for x, y, name in zip(split.inputs, split.y.tolist(), split.ids, strict=True):
            assert name.split("/")[1] == CLASSES[y]
            assert np.array_equal(x.permute(1, 2, 0).numpy(), images[name])
    _same(load_data(f"folder:{pictures}"), archive)
    _same(cifar10._read(pictures, False), archive)


def test_cifar10_finds_a_folder_below_the_data_root(tmp_path: Path, images: Images) -> None:
    _folder(tmp_path / "cifar10", images)
    data = load_data("cifar10", tmp_path)
    assert data.info.name == "cifar10"
    _same(data, load_data(f"folder:{tmp_path / 'cifar10'}"))


def test_the_digest_is_computed_once(tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _folder(tmp_path / "pictures", images)
    monkeypatch.setattr(folder, "_SETTLED", 0.0)
    first = folder.load(root)
    monkeypatch.setattr(content, "content_digest", lambda data: pytest.fail("computed again"))
    _same(folder.load(root), first)


@pytest.mark.parametrize("change", ["pixel", "name", "class"])
def test_other_content_is_another_data_set(
    tmp_path: Path, images: Images, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = next(n for n in images if n.startswith("test/cat"))
    if change == "pixel":
        images[name][3, 4, 0] ^= 1
    else:
        other = name.replace("_s_", "_") if change == "name" else name.replace("test/cat", "test/dog")
        images[other] = images.pop(name)
    root = _folder(tmp_path / "cifar10", images)
    with pytest.raises(InputError, match=r"cifar10: is not CIFAR-10: its classes, names or pixels differ"):
        load_data("cifar10", tmp_path)
    with caplog.at_level(logging.WARNING):
        data = load_data(f"folder:{root}")
    assert data.info.name == "folder-cifar10"
    assert "has not the content of the published cifar10; its data set is called folder-cifar10" in caplog.text


def test_an_archive_of_other_images_is_refused(tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    next(iter(images.values()))[0, 0, 0] ^= 1
    root = _archive(tmp_path / "archive", images, monkeypatch)
    with pytest.raises(InputError, match=r"cifar-10-python\.tar\.gz: is not CIFAR-10"):
        load_data("cifar10", root)


def test_results_on_a_folder_that_is_cifar10_are_those_of_the_suite(
    tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bench.yaml").write_text(
        "suites:\n  small:\n    data: cifar10\n    examples: 20\n    seed: 1\n"
        "    threat_model: {norm: linf, eps: 0.1}\n    attacks: {pgd: {steps: 2}}\n"
    )
    _folder(tmp_path / "pictures", images)

    @click.command()
    @speaking
    @in_a_scene
    def show(scene: Scene, **_: object) -> None:
        click.echo(f"{scene.suite.name} on {scene.suite.data} below {scene.data_root}")

    def shown(data: str) -> str:
        return CliRunner().invoke(show, ["--suite", "small", "--data", data]).stdout.strip()

    assert shown("folder:pictures") == f"small on cifar10 below {tmp_path / 'pictures'}"
    images[next(iter(images))][0, 0, 0] ^= 1
    _folder(tmp_path / "others", images)
    assert shown("folder:others") == "small@others on folder:others below None"
