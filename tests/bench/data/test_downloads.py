"""Published data sets: verified downloads."""

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

from bench.contracts.errors import InputError
from bench.data import cifar10, content, fashion_mnist
from bench.data.downloads import Archive
from bench.data.load import load_data


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


def _fake_cifar10(folder: Path, url: str) -> Archive:
    """A tiny archive with the layout of the published one: 20 images per batch."""
    rng = np.random.default_rng(0)
    members = {}
    path = folder / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in cifar10.ARCHIVE.members:
            images = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
            names = [f"{name[-6:]}_{i}.png".encode() for i in range(20)]
            batch = pickle.dumps({b"data": images, b"labels": [i % 10 for i in range(20)], b"filenames": names})
            entry = tarfile.TarInfo(name)
            entry.size = len(batch)
            tar.addfile(entry, io.BytesIO(batch))
            members[name] = _sha256(batch)
    return Archive(url + path.name, "", _sha256(path.read_bytes()), members)


@pytest.fixture
def _any_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has its classes is CIFAR-10."""
    monkeypatch.setattr(content, "content_digest", lambda data: content.CIFAR10.sha256)


def _fake_fashion(folder: Path, url: str) -> tuple[Archive, ...]:
    archives = []
    for real in fashion_mnist.ARCHIVES:
        (name,) = real.members
        n = 30 if name.startswith("train") else 10
        images, labels = bytes(16) + bytes(range(49)) * 16 * n, bytes(8) + bytes(i % 10 for i in range(n))
        raw = images if "images" in name else labels
        packed = gzip.compress(raw, mtime=0)
        (folder / real.name).write_bytes(packed)
        archives.append(replace(real, url=url + real.name, sha256=_sha256(packed), members={name: _sha256(raw)}))
    return tuple(archives)


@pytest.mark.usefixtures("_any_cifar10")
def test_cifar10_is_downloaded_only_on_request(
    tmp_path: Path, mirror: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10, "ARCHIVE", _fake_cifar10(*mirror))
    root = tmp_path / "root"
    with pytest.raises(InputError, match=r"cifar-10-python\.tar\.gz: not found"):
        load_data("cifar10", root)
    data = load_data("cifar10", root, download=True)
    assert data.info.shape == (3, 32, 32)
    assert len(data.train) + len(data.validation) == 100
    assert len(data.test) == 20
    assert len(data.validation) >= 10
    assert [p.name for p in root.iterdir()] == ["cifar-10-python.tar.gz"]


@pytest.mark.usefixtures("_any_cifar10")
def test_cifar10_already_on_disk_needs_no_network(
    tmp_path: Path, mirror: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = mirror
    archive = _fake_cifar10(folder, url)
    monkeypatch.setattr(cifar10, "ARCHIVE", replace(archive, url="http://127.0.0.1:9/cifar-10-python.tar.gz"))
    unpacked = tmp_path / "unpacked"
    with tarfile.open(folder / "cifar-10-python.tar.gz") as tar:
        tar.extractall(unpacked, filter="data")
    assert load_data("cifar10", unpacked).test.digest == load_data("cifar10", folder).test.digest


def test_corrupted_download_is_refused_and_removed(
    tmp_path: Path, mirror: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = mirror
    monkeypatch.setattr(cifar10, "ARCHIVE", _fake_cifar10(folder, url))
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
    monkeypatch.setattr(cifar10, "ARCHIVE", _fake_cifar10(folder, url))
    unpacked = tmp_path / "unpacked"
    with tarfile.open(folder / "cifar-10-python.tar.gz") as tar:
        tar.extractall(unpacked, filter="data")
    batch = unpacked / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(b"cposix\nsystem\n.")
    with pytest.raises(InputError, match=r"data_batch_3: SHA-256 of .* is"):
        load_data("cifar10", unpacked)


def test_fashion_mnist(tmp_path: Path, mirror: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, url = mirror
    monkeypatch.setattr(fashion_mnist, "ARCHIVES", _fake_fashion(folder, url))
    data = load_data("fashion-mnist", tmp_path / "root", download=True)
    assert data.info.shape == (1, 28, 28)
    assert len(data.train) + len(data.validation) == 30
    assert sorted(data.test.y.tolist()) == list(range(10))
    assert torch.allclose(data.test.x[0, 0].flatten()[:49] * 255, torch.arange(49.0))
    assert load_data("fashion-mnist", folder).test.digest == data.test.digest


def test_unreachable_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = replace(cifar10.ARCHIVE, url="http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.setattr(cifar10, "ARCHIVE", archive)
    with pytest.raises(InputError, match="cannot be downloaded"):
        load_data("cifar10", tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []
