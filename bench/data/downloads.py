"""Published data sets on disk: downloaded only on request, every byte checked by SHA-256 before it is read.

Files that torchvision or a Linux distribution has already put below the root are used as they are.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from bench.contracts.errors import InputError

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """A file to download.

    Attributes:
        url: where it is published.
        folder: where it and its members lie below the root (torchvision's layout).
        sha256: of the archive as published.
        members: the files inside, name → SHA-256 of the content. A ``.gz`` archive has one.
    """

    url: str
    folder: str
    sha256: str
    members: dict[str, str]

    @property
    def name(self) -> str:
        """File name of the archive."""
        return self.url.rpartition("/")[2]


_BATCHES = "cifar-10-batches-py"
#: Hashes of the batches are those of the files inside the published archive.
CIFAR10 = (
    Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        {
            f"{_BATCHES}/data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
            f"{_BATCHES}/data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
            f"{_BATCHES}/data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
            f"{_BATCHES}/data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
            f"{_BATCHES}/data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
            f"{_BATCHES}/test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
        },
    ),
)

_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_MNIST = (
    Archive(
        _FASHION + "train-images-idx3-ubyte.gz",
        "FashionMNIST/raw",
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        {"train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"},
    ),
    Archive(
        _FASHION + "train-labels-idx1-ubyte.gz",
        "FashionMNIST/raw",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        {"train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"},
    ),
    Archive(
        _FASHION + "t10k-images-idx3-ubyte.gz",
        "FashionMNIST/raw",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        {"t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"},
    ),
    Archive(
        _FASHION + "t10k-labels-idx1-ubyte.gz",
        "FashionMNIST/raw",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        {"t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"},
    ),
)


def contents(archive: Archive, root: Path, *, download: bool) -> dict[str, bytes]:
    """The members of an archive, name → content, each with its SHA-256 checked.

    Looks for the unpacked members and for the archive, in ``root`` and in the archive's folder below it;
    downloads the archive only when ``download`` is set and nothing is there.

    Raises:
        InputError: when nothing is there, the download fails, or a hash differs. A download whose hash
            differs is removed; a file that was already there is left for its owner to look at.
    """
    for folder in (root / archive.folder, root):
        found = _members_in(archive, folder)
        if found is not None:
            return found
    if not download:
        how = "download it (--download) or name its folder (--data-root)"
        raise InputError(f"{archive.name}: not found below {root}; {how}")
    path = root / archive.folder / archive.name
    fetch(archive.url, path, archive.sha256)
    return _from_archive(archive, path)


def fetch(url: str, path: Path, sha256: str) -> None:
    """Download ``url`` to ``path``. The file appears under its name only if its SHA-256 is the expected one.

    Raises:
        InputError: when the server cannot be read or the SHA-256 differs (the file is removed).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written to: {error.strerror}") from None
    digest = hashlib.sha256()
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=60) as response:
            while chunk := response.read(_CHUNK):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != sha256:
            found = digest.hexdigest()
            raise InputError(f"{url}: SHA-256 is {found}, expected {sha256}; the file was removed")
        Path(temporary).replace(path)
    except (urllib.error.URLError, OSError) as error:
        raise InputError(f"{url}: cannot be downloaded: {error}") from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def _members_in(archive: Archive, folder: Path) -> dict[str, bytes] | None:
    """Members found in a folder, unpacked, gzipped or in the archive; None when they are not all there."""
    if all((folder / name).is_file() for name in archive.members):
        return {name: _checked(archive, name, folder / name) for name in archive.members}
    if (folder / archive.name).is_file():
        return _from_archive(archive, folder / archive.name)
    return None


def _from_archive(archive: Archive, path: Path) -> dict[str, bytes]:
    if not path.name.endswith(".tar.gz"):
        (name,) = archive.members
        return {name: _checked(archive, name, path)}
    try:
        with tarfile.open(path) as tar:
            files = {m.name: tar.extractfile(m).read() for m in tar if m.name in archive.members}  # type: ignore[union-attr]
    except (tarfile.TarError, OSError, EOFError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    missing = sorted(set(archive.members) - set(files))
    if missing:
        raise InputError(f"{path}: has no member {missing[0]}")
    return {name: _checked(archive, name, path, content) for name, content in files.items()}


def _checked(archive: Archive, name: str, path: Path, content: bytes | None = None) -> bytes:
    """The content of a member, read from ``path`` unless given, after checking its SHA-256."""
    if content is None:
        try:
            raw = path.read_bytes()
            content = gzip.decompress(raw) if path.suffix == ".gz" else raw
        except (OSError, EOFError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != archive.members[name]:
        raise InputError(f"{path}: SHA-256 of {name} is {found}, expected {archive.members[name]}")
    return content
