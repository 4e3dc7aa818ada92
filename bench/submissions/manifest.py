"""What a bundle holds: a file of its own names every other one, with its size and its SHA-256.

A bundle is a folder that somebody else has made. Nothing of it is believed before :func:`take_in` has read it: files
are looked at without following links, never read beyond the size that is allowed and stated, compared with their
SHA-256 while they are copied, and checked for what their names say they are (:mod:`bench.submissions.contents`). All
that comes after works on the copy.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.contracts.errors import InputError, NewerSchemaError, one_line
from bench.storing.store import write_atomically
from bench.submissions.contents import LIMITS, check

#: Raised when the layout of a bundle or the meaning of a field changes.
BUNDLE_SCHEMA = 1
NAME = "manifest.json"
#: Files at the top of a bundle, and the folders below it with what they may hold.
TOP = ("environment.json", "claim.json", "card.json", "checks.json", "suite.json", "defense.json", "images.safetensors")
FOLDERS = {
    "code": (".py", ".json", ".safetensors"),
    "weights": (".json", ".safetensors"),
    "rows": (".json", ".safetensors"),
}
#: Of one bundle: files, bytes, parts of a path.
MOST_FILES, MOST_BYTES, DEEPEST = 20_000, 16 << 30, 12
_MANIFEST_BYTES = 8 << 20
#: Characters of what is said of a submission.
_LONGEST = {"by": 200, "note": 2000}
_PART = re.compile(r"[A-Za-z0-9_.,=()@-]+")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Strict):
    """A file of the bundle."""

    path: str = Field(description="relative to the bundle, with /")
    size: int = Field(ge=0, description="in bytes")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(_Strict):
    """``manifest.json``."""

    schema_version: int = BUNDLE_SCHEMA
    kind: Literal["defense", "attack"]
    suite: str = Field(description="its name in bench.yaml")
    suite_key: str = Field(pattern="^[0-9a-f]{64}$", description="hash of all that it measures")
    defense: str = Field(description="its name in results")
    reference: str = Field(description="code/FILE.py:NAME in the bundle, or the name of a shipped defense")
    params: dict[str, Any] = Field(default={}, description="of the defense")
    by: str = Field(max_length=_LONGEST["by"], description="who submits")
    note: str = Field(default="", max_length=_LONGEST["note"], description="what there is to say, such as a paper")
    created: str = Field(description="ISO 8601, UTC")
    files: list[FileEntry]


def check_author(by: str, note: str) -> None:
    """Raise :class:`InputError` where :class:`Manifest` would not take who submits and what there is to say."""
    if not by.strip():
        raise InputError("--by: say who submits it; the site shows it")
    for name, text in (("by", by), ("note", note)):
        most = _LONGEST[name]
        if len(text) > most:
            raise InputError(f"--{name}: {len(text)} characters; at most {most} are kept")


def write_manifest(folder: Path, **about: Any) -> Manifest:
    """Describe all files below ``folder`` and write its ``manifest.json``; ``about`` are the other fields."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [
        FileEntry(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=_sha256(path))
        for path in found
    ]
    manifest = Manifest(files=files, **about)
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / NAME, text.encode())
    return manifest


def _sha256(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            sha.update(piece)
    return sha.hexdigest()


# -- on the other side ------------------------------------------------------------------------------------------


def take_in(bundle: Path, into: Path) -> Manifest:
    """Copy a bundle to the empty folder ``into``, checking everything that can be checked without running any of it.

    Raises:
        NewerSchemaError: when it was written by a newer version.
        InputError: in one line, for anything else that is not as it has to be.
    """
    if not bundle.is_dir():
        raise InputError(f"bundle {bundle}: is not a folder")
    manifest = _read_manifest(bundle)
    listed = {entry.path: entry for entry in manifest.files}
    _check_list(manifest, listed)
    found = set(_walk(bundle, ""))
    if extra := sorted(found - listed.keys() - {NAME}):
        raise InputError(f"bundle: holds {one_line(extra[0])!r}, which its manifest does not name")
    if missing := sorted(listed.keys() - found):
        raise InputError(f"bundle: lacks {missing[0]}, which its manifest names")
    for entry in manifest.files:
        _copy(bundle / entry.path, into / entry.path, entry)
        check(into / entry.path, entry.path)
    (into / NAME).write_bytes(_read(bundle / NAME, _MANIFEST_BYTES, NAME))
    return manifest


def _read_manifest(bundle: Path) -> Manifest:
    text = _read(bundle / NAME, _MANIFEST_BYTES, NAME)
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"bundle {NAME}: is not JSON") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise InputError(f"bundle {NAME}: has no schema_version")
    if version > BUNDLE_SCHEMA:
        raise NewerSchemaError(
            f"bundle {NAME}: schema version {version} is newer than {BUNDLE_SCHEMA}, the newest this version reads; "
            "upgrade worst-case-bench"
        )
    try:
        return Manifest(**raw)
    except (ValidationError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"bundle {NAME}: {one_line(where)}: {first['msg']}") from None


def _check_list(manifest: Manifest, listed: dict[str, FileEntry]) -> None:
    if len(manifest.files) > MOST_FILES:
        raise InputError(f"bundle {NAME}: names {len(manifest.files)} files, of at most {MOST_FILES}")
    if len({path.casefold() for path in listed}) != len(manifest.files):
        raise InputError(f"bundle {NAME}: names a file twice")
    total = sum(entry.size for entry in manifest.files)
    if total > MOST_BYTES:
        raise InputError(f"bundle {NAME}: {total} bytes in all, of at most {MOST_BYTES}")
    for entry in manifest.files:
        _check_path(entry)


def _check_path(entry: FileEntry) -> None:
    shown, parts = one_line(entry.path)[:200], entry.path.split("/")
    if len(parts) > DEEPEST or any(part in (".", "..") or not _PART.fullmatch(part) for part in parts):
        raise InputError(f"bundle {NAME}: {shown!r} is no path inside the bundle")
    suffix = PurePosixPath(entry.path).suffix
    if suffix not in LIMITS:
        kinds = ", ".join(LIMITS)
        raise InputError(f"bundle {shown}: a bundle holds {kinds} alone, no pickles, archives or images")
    if len(parts) == 1 and entry.path not in TOP:
        raise InputError(f"bundle {shown}: a bundle has no such file")
    if len(parts) > 1 and suffix not in FOLDERS.get(parts[0], ()):
        raise InputError(f"bundle {shown}: a bundle has no such file in {parts[0]}/")
    if parts[0] in ("rows", "weights") and (len(parts) != 3 or parts[1].startswith("@")):
        raise InputError(f"bundle {shown}: a file of {parts[0]}/ lies in a folder of its attack or defense")
    if entry.size > LIMITS[suffix]:
        raise InputError(f"bundle {shown}: {entry.size} bytes, of at most {LIMITS[suffix]} for {suffix}")


def _walk(folder: Path, below: str) -> Iterator[str]:
    """Every file below a folder, relative to the bundle; anything that is neither file nor folder is refused."""
    if below.count("/") > DEEPEST:
        raise InputError(f"bundle {one_line(below)}: is too deep")
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries):
            path = f"{below}{entry.name}"
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                raise InputError(f"bundle {one_line(path)!r}: is a symbolic link")
            if stat.S_ISDIR(mode):
                yield from _walk(folder / entry.name, f"{path}/")
            elif stat.S_ISREG(mode):
                yield path
            else:
                raise InputError(f"bundle {one_line(path)!r}: is no file")
            if count > MOST_FILES:
                raise InputError(f"bundle {one_line(below) or '.'}: more than {MOST_FILES} files")


def _open(path: Path, name: str) -> int:
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise InputError(f"bundle {name}: cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputError(f"bundle {name}: is no file")
    return handle


def _read(path: Path, most: int, name: str) -> bytes:
    with os.fdopen(_open(path, name), "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise InputError(f"bundle {name}: more than {most} bytes")
    return data


def _copy(source: Path, target: Path, entry: FileEntry) -> None:
    """Copy what the manifest says, and not a byte more."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sha, left = hashlib.sha256(), entry.size
    with os.fdopen(_open(source, entry.path), "rb") as file, target.open("xb") as copy:
        while piece := file.read(min(1 << 20, left + 1)):
            if len(piece) > left:
                raise InputError(f"bundle {entry.path}: is larger than the {entry.size} bytes of the manifest")
            left -= len(piece)
            sha.update(piece)
            copy.write(piece)
    if left:
        raise InputError(f"bundle {entry.path}: has {entry.size - left} bytes, the manifest says {entry.size}")
    if sha.hexdigest() != entry.sha256:
        raise InputError(f"bundle {entry.path}: SHA-256 is {sha.hexdigest()}, the manifest says {entry.sha256}")
