"""Decoded data sets on disk: the same tensors, one file, never those of other content."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench.contracts.inputs import DataInfo, InputSpec
from bench.data import cache as module
from bench.data import cifar10, folder
from bench.data.cache import cached
from bench.data.splits import Data, Split


def _data(value: int = 7) -> Data:
    """Six examples whose first pixel is ``value``."""

    def split(name: str, n: int) -> Split:
        pixels = torch.arange(n * 12, dtype=torch.uint8).view(n, 3, 2, 2)
        pixels[0, 0, 0, 0] = value
        return Split(pixels, torch.arange(n) % 2, [f"{name}/{i}" for i in range(n)])

    info = DataInfo("small", InputSpec((3, 2, 2), levels=256), 2)
    return Data(info, ["a", "b"], split("train", 3), split("validation", 1), split("test", 2), 5)


def _same(one: Data, two: Data) -> bool:
    about = [(d.info, d.class_names, d.version) for d in (one, two)]
    pairs = [(getattr(one, name), getattr(two, name)) for name in ("train", "validation", "test")]
    return about[0] == about[1] and all(
        torch.equal(a.inputs, b.inputs) and torch.equal(a.y, b.y) and a.ids == b.ids and a.digest == b.digest
        for a, b in pairs
    )


def _never() -> Data:
    raise AssertionError("read although a cache file was there")


def test_the_same_data_without_reading_again(cache: Path) -> None:
    first, second = cached("small", 1, _data), cached("small", 1, _never)
    assert _same(first, _data())
    assert _same(second, _data())
    assert len(list(cache.iterdir())) == 1


def test_kept_digests_are_those_of_the_content(cache: Path) -> None:
    split = cached("small", 1, _data).train
    assert split.known_digest is not None
    assert split.digest == Split(split.x, split.y, split.ids).digest


def test_what_is_held_is_mapped_from_the_file(cache: Path) -> None:
    data = cached("small", 1, _data)
    (path,) = cache.iterdir()
    mapped = Path("/proc/self/maps")
    if not mapped.exists():
        pytest.skip("needs /proc")
    assert str(path) in mapped.read_text()
    data.train.inputs[0] = 0  # writes reach neither the file nor other processes
    assert _same(cached("small", 1, _never), _data())


@pytest.mark.parametrize("damage", ["flipped bit", "cut off", "emptied"])
def test_a_damaged_file_is_made_again(cache: Path, damage: str) -> None:
    cached("small", 1, _data)
    (path,) = cache.iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes({"flipped bit": content, "cut off": content[:-5], "emptied": b""}[damage])
    assert _same(cached("small", 1, _data), _data())
    assert _same(cached("small", 1, _never), _data())
    assert len(list(cache.iterdir())) == 1


def test_another_source_is_read_and_takes_the_place_of_the_old(cache: Path) -> None:
    cached("small", 1, _data)
    cached("other", 1, _data)
    assert _same(cached("small", 2, lambda: _data(9)), _data(9))
    assert sorted(path.name.partition("-")[0] for path in cache.iterdir()) == ["other", "small"]


def test_what_changed_while_it_was_read_is_not_kept(cache: Path) -> None:
    assert _same(cached("small", 1, _data, unchanged=lambda: False), _data())
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_leaves_the_data_in_memory(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir()
    cache.write_text("not a folder")
    assert _same(cached("small", 1, _data), _data())
    (note,) = caplog.messages
    assert note.startswith(f"note: {cache}: ") and note.endswith("; each process holds its own copy of the data")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for the superuser")
def test_a_read_only_cache(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    assert _same(cached("small", 1, _data), _data())
    assert len(caplog.messages) == 1


def test_a_full_disk_leaves_nothing_half_written(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def half(tensors: object, path: str, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.safetensors.torch, "save_file", half)
    assert _same(cached("small", 1, _data), _data())
    assert caplog.messages == [
        f"note: {cache}: No space left on device; each process holds its own copy of the data"
    ]
    assert list(cache.iterdir()) == []


def _read_slowly() -> Data:
    time.sleep(0.2)
    return _data()


def _load_at_once(barrier: object, answers: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    answers.put(_same(cached("small", 1, _read_slowly), _data()))  # type: ignore[attr-defined]


def test_two_processes_write_it_at_once(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.SimpleQueue()
    both = [context.Process(target=_load_at_once, args=(barrier, answers)) for _ in range(2)]
    for process in both:
        process.start()
    assert [answers.get() for _ in both] == [True, True]
    for process in both:
        process.join()
    assert len(list(cache.iterdir())) == 1
    assert _same(cached("small", 1, _never), _data())


# -- folders ------------------------------------------------------------------------------------------------


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image folder, whose files count as settled at once."""
    monkeypatch.setattr(folder, "_SETTLED", -1.0)
    for part in ("train", "test"):
        for c, name in enumerate(("cat", "dog")):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (2, 2), (40 * c + i, 7, 0)).save(tmp_path / "pets" / part / name / f"{i}.png")
    return tmp_path / "pets"


def _decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Data, bool]:
    """What an image folder holds, and whether its images were decoded for that."""
    calls = []
    real = folder._decode
    monkeypatch.setattr(folder, "_decode", lambda *args: calls.append(1) or real(*args))
    data = folder.load(root)
    monkeypatch.setattr(folder, "_decode", real)
    return data, bool(calls)


def test_a_folder_is_decoded_once(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, decoded = _decoded(pets, monkeypatch)
    second, again = _decoded(pets, monkeypatch)
    assert decoded and not again
    assert _same(first, second)


def _replace(root: Path) -> None:
    """Other pixels under the same name, of the same size and with the same time of modification."""
    path, other = root / "train" / "cat" / "0.png", root / "other.png"
    before = path.stat()
    Image.new("RGB", (2, 2), (99, 7, 0)).save(other)
    assert other.stat().st_size == before.st_size
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def _overwrite(root: Path) -> None:
    """Other pixels in the same file, of the same size, and its time of modification set back."""
    path = root / "train" / "cat" / "0.png"
    before = path.stat()
    time.sleep(0.02)  # the clock of a file system ticks every few milliseconds
    Image.new("RGB", (2, 2), (99, 7, 0)).save(path)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _add(root: Path) -> None:
    shutil.copy2(root / "train" / "cat" / "0.png", root / "train" / "cat" / "3.png")


def _remove(root: Path) -> None:
    (root / "train" / "cat" / "0.png").unlink()


def _rename(root: Path) -> None:
    (root / "test" / "cat" / "0.png").rename(root / "test" / "cat" / "9.png")


def _touch(root: Path) -> None:
    time.sleep(0.02)
    (root / "test" / "dog" / "0.png").touch()


@pytest.mark.parametrize("change", [_replace, _overwrite, _add, _remove, _rename, _touch])
def test_a_changed_folder_is_decoded_again(
    pets: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, change: object
) -> None:
    folder.load(pets)
    change(pets)  # type: ignore[operator]
    data, decoded = _decoded(pets, monkeypatch)
    assert decoded
    assert len(list(cache.iterdir())) == 1, "the old file is removed"
    shutil.rmtree(cache)
    assert _same(data, folder.load(pets))


def test_a_folder_that_has_just_changed_is_not_kept(
    pets: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "_SETTLED", 60.0)
    folder.load(pets)
    assert not cache.exists()


def test_a_new_version_of_the_kind_is_read_anew(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.load(pets)
    monkeypatch.setattr(folder, "VERSION", folder.VERSION + 1)
    data, decoded = _decoded(pets, monkeypatch)
    assert decoded
    assert data.version == folder.VERSION


# -- published data sets ------------------------------------------------------------------------------------


def test_a_published_data_set_is_known_by_the_hashes_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10, "_read", lambda root, download: _data())
    assert _same(cifar10.load(tmp_path, False), _data())
    monkeypatch.setattr(cifar10, "_read", lambda root, download: _never())
    assert _same(cifar10.load(tmp_path / "elsewhere", False), _data())
