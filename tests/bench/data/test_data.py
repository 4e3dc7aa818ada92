"""Data sets: splits, order, image folders, verified downloads."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.contracts.errors import InputError
from bench.contracts.inputs import InputSpec, check_inputs, check_labels
from bench.data import downloads
from bench.data.sets import Split, balanced_order, data_digest, load_data, validation_ids


def test_digits_splits_are_disjoint_and_cover_everything() -> None:
    data = load_data("digits")
    ids = [*data.train.ids, *data.validation.ids, *data.test.ids]
    assert len(ids) == len(set(ids)) == 1797
    assert (len(data.train), len(data.validation), len(data.test)) == (1007, 340, 450)
    for split in (data.train, data.validation, data.test):
        check_inputs(split.x, data.info.input)
        check_labels(split.y, 10)
        assert split.x.dtype == torch.float32
        assert split.x.shape[1:] == data.info.shape == (1, 8, 8)
    assert data.test.x.max() == 1


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    raw = load_digits()
    test = load_data("digits").test
    for i in (0, 7, 449):
        index = int(test.ids[i].removeprefix("digits/"))
        assert test.y[i] == raw.target[index]
        assert np.array_equal(test.x[i, 0].numpy() * 16, raw.images[index])


def test_every_prefix_is_balanced() -> None:
    test = load_data("digits").test
    for n in (10, 50, 450):
        assert test.take(n).y.bincount(minlength=10).tolist() == [n // 10] * 10
    assert test.y[:20].tolist() != sorted(test.y[:20].tolist())
    few, many = test.take(7), test.take(30)
    assert few.ids == many.ids[:7]
    assert torch.equal(few.x, many.x[:7])
    assert test.take(10_000) is test


def test_loaded_once_per_process() -> None:
    assert load_data("digits") is load_data("digits")


def test_digest_changes_with_pixels_labels_and_ids() -> None:
    base = Split(torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]), ["a", "b"])
    pixel = Split(torch.zeros(2, 1, 2, 2).index_fill(0, torch.tensor([1]), 0.5), base.y, base.ids)
    label = Split(base.x, torch.tensor([1, 1]), base.ids)
    name = Split(base.x, base.y, ["a", "c"])
    digests = {data_digest(s) for s in (base, pixel, label, name)}
    assert len(digests) == 4
    assert data_digest(Split(base.x.clone(), base.y.clone(), ["a", "b"])) == data_digest(base)


@pytest.mark.parametrize(("reference", "hint"), [("digit", "'digits'"), ("cifar-10", "'cifar10'"), ("folder:", "")])
def test_unknown_reference(reference: str, hint: str) -> None:
    with pytest.raises(InputError, match="does not exist") as caught:
        load_data(reference)
    assert hint in str(caught.value)


def test_a_function_can_be_a_data_set() -> None:
    file = Path(__file__).parents[2] / "helpers" / "waveforms.py"
    data = load_data(f"{file}:tones")
    assert data.info.input == InputSpec((1, 64), -1.0, 1.0, "waveform")
    assert load_data(f"{file}:tones") is data, "called once"
    for split in (data.train, data.validation, data.test):
        check_inputs(split.x, data.info.input)
        check_labels(split.y, data.info.num_classes)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("plugin.py:missing", "defines no 'missing'"),
        ("plugin.py:number", "expected a function that returns Data, got int"),
        ("plugin.py:nothing", "returned NoneType, expected bench.data.sets.Data"),
        ("plugin.py:broken", "raised ZeroDivisionError: division by zero"),
        ("absent.py:tones", "no such file"),
        ("no.such.module:tones", "'no.such.module' does not exist"),
    ],
)
def test_a_function_that_gives_no_data_set_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, message: str
) -> None:
    (tmp_path / "plugin.py").write_text("number = 1\ndef nothing(): pass\ndef broken(): return 1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        load_data(reference)


def test_order_is_stable_when_examples_are_added() -> None:
    ids = [f"{i}" for i in range(40)]
    labels = [i % 4 for i in range(40)]
    before = [ids[i] for i in balanced_order(ids[:30], labels[:30]) if labels[i] == 1]
    after = [ids[i] for i in balanced_order(ids, labels) if labels[i] == 1 and i < 30]
    assert before == after


def test_validation_is_stable_when_examples_are_added() -> None:
    ids = [f"train/{i:04d}" for i in range(4000)]
    labels = [i % 2 for i in range(4000)]
    few, many = validation_ids(ids[:2000], labels[:2000]), validation_ids(ids, labels)
    assert few == many & set(ids[:2000])
    assert 300 < len(many) < 500
    assert validation_ids(["only"], [0]) == set()
    assert len(validation_ids(["one", "two"], [0, 0])) == 1


# -- folders ------------------------------------------------------------------------------------------------


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


# -- downloads ----------------------------------------------------------------------------------------------


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder served on the loopback interface, and its address."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _fake_cifar10(folder: Path, url: str) -> downloads.Archive:
    """A tiny archive with the layout of the published one: 20 images per batch."""
    rng = np.random.default_rng(0)
    members = {}
    path = folder / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in downloads.CIFAR10[0].members:
            images = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
            content = pickle.dumps({"data": images, "labels": [i % 10 for i in range(20)]})
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
            members[name] = _sha256(content)
    return downloads.Archive(url + path.name, "", _sha256(path.read_bytes()), members)


def _fake_fashion(folder: Path, url: str) -> tuple[downloads.Archive, ...]:
    archives = []
    for real in downloads.FASHION_MNIST:
        (name,) = real.members
        n = 30 if name.startswith("train") else 10
        images, labels = bytes(16) + bytes(range(49)) * 16 * n, bytes(8) + bytes(i % 10 for i in range(n))
        content = images if "images" in name else labels
        packed = gzip.compress(content, mtime=0)
        (folder / real.name).write_bytes(packed)
        archives.append(replace(real, url=url + real.name, sha256=_sha256(packed), members={name: _sha256(content)}))
    return tuple(archives)


def test_cifar10_is_downloaded_only_on_request(
    tmp_path: Path, mirror: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "CIFAR10", (_fake_cifar10(*mirror),))
    root = tmp_path / "root"
    with pytest.raises(InputError, match=r"cifar-10-python\.tar\.gz: not found"):
        load_data("cifar10", root)
    data = load_data("cifar10", root, download=True)
    assert data.info.shape == (3, 32, 32)
    assert len(data.train) + len(data.validation) == 100
    assert len(data.test) == 20
    assert len(data.validation) >= 10
    assert [p.name for p in root.iterdir()] == ["cifar-10-python.tar.gz"]


def test_cifar10_already_on_disk_needs_no_network(
    tmp_path: Path, mirror: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = mirror
    archive = _fake_cifar10(folder, url)
    monkeypatch.setattr(downloads, "CIFAR10", (replace(archive, url="http://127.0.0.1:9/cifar-10-python.tar.gz"),))
    unpacked = tmp_path / "unpacked"
    with tarfile.open(folder / "cifar-10-python.tar.gz") as tar:
        tar.extractall(unpacked, filter="data")
    assert load_data("cifar10", unpacked).test.digest == load_data("cifar10", folder).test.digest


def test_corrupted_download_is_refused_and_removed(
    tmp_path: Path, mirror: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = mirror
    monkeypatch.setattr(downloads, "CIFAR10", (_fake_cifar10(folder, url),))
    path = folder / "cifar-10-python.tar.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    root = tmp_path / "root"
    with pytest.raises(InputError, match=r"SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}; the file was removed"):
        load_data("cifar10", root, download=True)
    assert list(root.iterdir()) == []


def test_damaged_file_on_disk_is_refused(
    tmp_path: Path, mirror: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = mirror
    monkeypatch.setattr(downloads, "CIFAR10", (_fake_cifar10(folder, url),))
    unpacked = tmp_path / "unpacked"
    with tarfile.open(folder / "cifar-10-python.tar.gz") as tar:
        tar.extractall(unpacked, filter="data")
    batch = unpacked / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(b"cposix\nsystem\n.")
    with pytest.raises(InputError, match=r"data_batch_3: SHA-256 of .* is"):
        load_data("cifar10", unpacked)


def test_fashion_mnist(tmp_path: Path, mirror: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, url = mirror
    monkeypatch.setattr(downloads, "FASHION_MNIST", _fake_fashion(folder, url))
    data = load_data("fashion-mnist", tmp_path / "root", download=True)
    assert data.info.shape == (1, 28, 28)
    assert len(data.train) + len(data.validation) == 30
    assert sorted(data.test.y.tolist()) == list(range(10))
    assert torch.allclose(data.test.x[0, 0].flatten()[:49] * 255, torch.arange(49.0))
    assert load_data("fashion-mnist", folder).test.digest == data.test.digest


def test_unreachable_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = replace(downloads.CIFAR10[0], url="http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.setattr(downloads, "CIFAR10", (archive,))
    with pytest.raises(InputError, match="cannot be downloaded"):
        load_data("cifar10", tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []
