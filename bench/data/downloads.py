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


def default_root() -> Path:
    """Where downloaded data sets are kept unless a root is given."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "worst-case-bench"


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


def contents(archive: Archive, root: Path, *, download: bool) -> dict[str, bytes]:
    """The members of an archive, name → content, each with its SHA-256 checked.

    Looks for the unpacked members and for the archive, in ``root`` and in the archive's folder below it;
    downloads the archive only when ``download`` is set and nothing is there.

    Raises:
        InputError: when nothing is there, the download fails, or a hash differs. A download whose hash
            differs is removed; a file that was already there is left for its owner to look at.
    """
    found = present(archive, root)
    if found is not None:
        return found
    if not download:
        how = "download it (--download) or name its folder (--data-root)"
        raise InputError(f"{archive.name}: not found below {root}; {how}")
    path = root / archive.folder / archive.name
    fetch(archive.url, path, archive.sha256)
    return _from_archive(archive, path)


def present(archive: Archive, root: Path) -> dict[str, bytes] | None:
    """:func:`contents` of what is there already; None when nothing is."""
    for folder in (root / archive.folder, root):
        found = _members_in(archive, folder)
        if found is not None:
            return found
    return None


def whole(url: str, sha256: str, root: Path, *, download: bool) -> Path:
    """A published file in ``root``, its SHA-256 checked; downloaded only when ``download`` is set and it is not there.

    Raises:
        InputError: when it is not there, the download fails, or the hash differs.
    """
    name = url.rpartition("/")[2]
    path = root / name
    if not path.is_file():
        if not download:
            raise InputError(f"{name}: not found in {root}; download it (--download) or name its folder (--data-root)")
        fetch(url, path, sha256)
        return path
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        raise InputError(f"{path}: SHA-256 is {digest.hexdigest()}, expected {sha256}")
    return path


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
