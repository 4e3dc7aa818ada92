"""Results on disk: whole or absent, readable by a person, and never mixed with those of another setting."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shlex
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from bench.contracts.errors import InputError, did_you_mean
from bench.storing.images import STEPS, Images, decode
from bench.storing.joined import JOINED, Document, join, joined
from bench.storing.names import readable, slug
from bench.storing.reading import ShardFile, read_record, shard_files
from bench.storing.records import DefenseRecord, Record, Row, ShardRecord, SuiteRecord


def write_atomically(path: Path, data: bytes, flush: bool = True) -> None:
    """Write to a temporary name in the same folder, flush to disk, rename.

    Args:
        flush: False for what can be made again and is checked when it is read: a crash may leave it damaged.

    Raises:
        OSError: with the path, also where the system names none, as on a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if flush:
                os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def check_writable(folder: Path, what: str = "results folder") -> None:
    """Raise :class:`InputError` unless files can be written in ``folder`` (which need not exist yet)."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"{what} {folder}: {existing} is not a folder")
    try:  # trying is the only test that also knows about read-only file systems
        with tempfile.TemporaryFile(dir=existing, buffering=0) as file:
            file.write(bytes(4096))  # on a full disk files can be made, but not filled
    except OSError as error:
        raise InputError(f"{what} {folder}: {existing} is not writable ({error.strerror})") from None


def to_json(record: Record) -> str:
    """Indented JSON; rows are arrays under a list of ``columns``, one line each."""
    raw: dict[str, Any] = record.model_dump(mode="json")
    rows = raw.pop("rows", None)
    text = json.dumps(raw, indent=1, ensure_ascii=False)
    if rows is None:
        return text + "\n"
    columns = list(rows[0] if rows else Row.model_fields)
    lines = ",\n".join("  " + json.dumps([row[c] for c in columns], ensure_ascii=False) for row in rows)
    return f'{text[:-2]},\n "columns": {json.dumps(columns)},\n "rows": [\n{lines}\n ]\n}}\n'


@dataclass(frozen=True)
class PackedShard:
    """A shard as its files hold it, packed where it was run and written where the results are.

    ``record`` is the JSON of its record, ``x_adv`` the safetensors file of its adversarial inputs, None without any.
    """

    defense: str
    attack: str
    number: int
    status: str
    record: bytes
    x_adv: bytes | None


def pack_shard(record: ShardRecord, images: Images | None) -> PackedShard:
    """Pack a shard: its record then vouches for the adversarial inputs by SHA-256."""
    data = None
    if images is not None:
        data = pack_tensors(images.tensors, images.header or None)
        record = record.model_copy(update={"x_adv_sha256": hashlib.sha256(data).hexdigest()})
    return PackedShard(record.defense, record.attack, record.shard, record.status, to_json(record).encode(), data)


def pack_tensors(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file of tensors on any device, with a few words beside them."""
    owned = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}  # no shared memory
    return safetensors.torch.save(owned, metadata)


def unpack_tensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and the words beside them."""
    tensors = safetensors.torch.load(data)  # first, as it refuses what is no such file
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, header.get("__metadata__", {})


def unzipped(path: Path) -> bytes:
    """The content of a file that is compressed if its name ends in ``.gz``.

    Raises:
        OSError: when it cannot be read.
        InputError: when it is cut off.
    """
    data = path.read_bytes()
    try:
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise InputError(f"{path}: is cut off or no such file") from None


def read_vouched(path: Path, sha256: str) -> bytes:
    """The content of a file, compressed or not, that a record vouches for.

    Raises:
        InputError: when it is missing, cut off, or its SHA-256 differs.
    """
    if not path.is_file():
        raise InputError(f"{path}: is missing")
    data = unzipped(path)
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise InputError(f"{path}: SHA-256 is {found}, the record says {sha256}")
    return data


def _compressed(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


def _stored(plain: Path) -> Path:
    """Where the file is that may be compressed: as it is, unless only the compressed one is there."""
    return _compressed(plain) if not plain.exists() and _compressed(plain).exists() else plain


def _write(plain: Path, content: bytes, small: bool) -> None:
    """Store a file, compressed where ``small``, in place of the one in the other form."""
    path, other = (_compressed(plain), plain) if small else (plain, _compressed(plain))
    write_atomically(path, gzip.compress(content, mtime=0) if small else content)
    other.unlink(missing_ok=True)


class Store:
    """The results of one suite below a results folder (layout: ``bench.storing.records``)."""

    def __init__(self, root: Path, suite: str) -> None:
        self.root, self.folder = root, root / readable(suite)

    def defense_folder(self, defense: str) -> Path:
        return self.folder / slug(defense)

    def shard_path(self, defense: str, attack: str, shard: int) -> Path:
        return self.defense_folder(defense) / slug(attack) / f"{shard:03d}.json"

    def gallery_path(self, defense: str) -> Path:
        """Where a defense's gallery is, compressed where no plain one is there."""
        return _stored(self.defense_folder(defense) / "gallery.safetensors")

    def artefact_path(self, key: str) -> Path:
        """Where an attack's preparation is kept; never published."""
        return self.folder / ".prepared" / f"{key}.safetensors"

    def headers_path(self, defense: str, attack: str) -> Path:
        """Where the headers of a cell's shards are noted (``bench.storing.headers``); never published."""
        return self.folder / ".headers" / slug(defense) / slug(attack)

    # -- reading --------------------------------------------------------------------------------------------

    def suite(self) -> SuiteRecord | None:
        path = self.folder / "suite.json"
        return read_record(path, SuiteRecord) if path.exists() else None

    def defense(self, name: str) -> DefenseRecord | None:
        path = self.defense_folder(name) / "defense.json"
        return read_record(path, DefenseRecord) if path.exists() else None

    def defenses(self) -> Iterator[Path]:
        """The files ``defense.json`` of the suite, in name order."""
        yield from sorted(self.folder.glob("*/defense.json"))

    def shard(self, defense: str, attack: str, shard: int) -> ShardRecord | None:
        file = self.shards(defense, attack).get(shard)
        return None if file is None else file.read()

    def shards(self, defense: str, attack: str) -> dict[int, ShardFile]:
        """Where a cell's shards are, by their numbers, in order."""
        folder = self.shard_path(defense, attack, 0).parent
        return shard_files(folder, [path.name for path in folder.iterdir()] if folder.is_dir() else [])

    def remove_shard(self, defense: str, attack: str, shard: int) -> None:
        """Remove a shard and its adversarial inputs; -1: joined shards that cannot be read."""
        plain = self.shard_path(defense, attack, shard)
        together = plain.with_name(JOINED)
        others = _readable(together)
        if others.pop(shard, None) is not None or shard < 0:
            _write_joined(together, others)
        images = plain.with_suffix(".safetensors")
        for path in (plain, images, _compressed(images)):
            path.unlink(missing_ok=True)

    def images_path(self, record: ShardRecord) -> Path:
        """The file of a shard's adversarial inputs: compressed where that is the one that is there."""
        return _stored(self.shard_path(record.defense, record.attack, record.shard).with_suffix(".safetensors"))

    def images(self, record: ShardRecord) -> Images:
        """The adversarial inputs of a shard, or of its ``x_adv_rows``, as they are stored.

        Raises:
            InputError: when the file is missing or its SHA-256 differs from the record's.
        """
        return Images(*unpack_tensors(read_vouched(self.images_path(record), record.x_adv_sha256)))

    def x_adv(self, record: ShardRecord, x: Tensor | None = None) -> Tensor:
        """The adversarial inputs of a shard, float32 ``(N, C, H, W)``, or of its ``x_adv_rows``.

        Args:
            x: the clean inputs of these rows, from which steps of grey levels start (``bench.storing.images``).

        Raises:
            InputError: when the file is missing, its SHA-256 differs from the record's, or ``x`` does not fit it.
        """
        return decode(self.images(record), x)

    def cut_off(self, record: ShardRecord) -> str:
        """Why the adversarial inputs that a shard vouches for cannot all be there; empty where nothing says so.

        The file's size is looked at, not its content: that is left to :meth:`x_adv`.
        """
        if not record.x_adv_sha256:
            return ""
        path = self.images_path(record)
        if path.suffix == ".gz":
            try:
                self.images(record)
            except InputError as error:
                return str(error)
            return ""
        try:
            with safetensors.safe_open(path, framework="np"):
                return ""
        except FileNotFoundError:
            return f"{path}: is missing"
        except (OSError, safetensors.SafetensorError):
            return f"{path}: is cut off or no such file"

    # -- writing --------------------------------------------------------------------------------------------

    def write_suite(self, record: SuiteRecord) -> None:
        write_atomically(self.folder / "suite.json", to_json(record).encode())

    def write_defense(self, record: DefenseRecord) -> None:
        write_atomically(self.defense_folder(record.name) / "defense.json", to_json(record).encode())

    def write_gallery(self, defense: str, images: bytes, small: bool = False) -> None:
        """Store a defense's gallery, a safetensors file, compressed where ``small``."""
        _write(self.defense_folder(defense) / "gallery.safetensors", images, small)

    def write_shard(self, record: ShardRecord, images: Images | None) -> None:
        """Store a shard and its adversarial inputs."""
        self.write_packed(pack_shard(record, images))

    def write_packed(self, shard: PackedShard) -> None:
        """Store a shard: the images first, then the record that vouches for them by SHA-256."""
        path = self.shard_path(shard.defense, shard.attack, shard.number)
        if shard.x_adv is not None:
            _write(path.with_suffix(".safetensors"), shard.x_adv, small=False)
        write_atomically(path, shard.record)

    def is_compact(self, record: ShardRecord, rows: list[int]) -> bool:
        """Whether a shard is stored with the adversarial inputs of ``rows`` and nothing else, and joined."""
        plain, images = self.shard_path(record.defense, record.attack, record.shard), self.images_path(record)
        return record.x_adv_rows == rows and not plain.exists() and images.exists() == bool(rows)

    def compact_shard(self, record: ShardRecord, rows: list[int], images: Images | None) -> None:
        """Store a shard again, with the adversarial inputs ``images`` of ``rows`` alone, these compressed.

        Whenever it is interrupted, the record that is found vouches for the images that are there, or for none.
        """
        path = self.shard_path(record.defense, record.attack, record.shard)
        record = record.model_copy(update={"x_adv_rows": [], "x_adv_sha256": ""})
        write_atomically(path, to_json(record).encode())
        plain = path.with_suffix(".safetensors")
        if rows:
            packed = pack_shard(record.model_copy(update={"x_adv_rows": rows}), images)
            if packed.x_adv is not None:
                # Steps of grey levels shrink to less than half, float32 hardly at all.
                _write(plain, packed.x_adv, small=images is not None and STEPS in images.tensors)
            write_atomically(path, packed.record)
        else:
            for file in (plain, _compressed(plain)):
                file.unlink(missing_ok=True)

    def join(self, defense: str, attack: str) -> None:
        """Put the shards of a cell that are in files of their own into the joined one; damaged files stay."""
        kept, paths = dict[int, Document](), list[Path]()
        for number, file in self.shards(defense, attack).items():
            document = None if file.is_joined else _document(file.path)
            if document is not None and document.get("shard") == number:
                kept[number] = document
                paths.append(file.path)
        if kept:
            together = self.shard_path(defense, attack, 0).with_name(JOINED)
            _write_joined(together, _readable(together) | kept)
            for path in paths:
                path.unlink()


def _document(path: Path) -> Document | None:
    """What a JSON file holds; None where it is damaged or holds something else."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _write_joined(together: Path, shards: Mapping[int, Document]) -> None:
    if shards:
        write_atomically(together, join(shard for _, shard in sorted(shards.items())))
    else:
        together.unlink(missing_ok=True)


def _readable(together: Path) -> dict[int, Document]:
    """The joined shards; none where the file is damaged."""
    try:
        return joined(together)
    except ValueError:
        return {}


def suites(root: Path) -> list[str]:
    """Folder names below ``root`` that hold a suite's results."""
    return sorted(path.parent.name for path in root.glob("*/suite.json"))


def stored_suites(root: Path, names: Sequence[str] = ()) -> list[str]:
    """The suites asked for, or all of which there are results below ``root``.

    Raises:
        InputError: when there are no results at all, or none of a suite asked for.
    """
    if root.exists() and not root.is_dir():
        raise InputError(f"results {root}: is a file, expected a folder of results")
    known = suites(root)
    for name in names:
        if readable(name) not in known:
            hint = did_you_mean(name, known) if known else f"; run: {_command(root, name)}"
            raise InputError(f"no results of suite {name!r} in {root}{hint}")
    if not known:
        raise InputError(f"no results in {root}; run: {_command(root)}")
    return list(dict.fromkeys(names)) or known


def _command(root: Path, suite: str | None = None) -> str:
    """A command that puts results below ``root``; it works as it stands."""
    named = [] if suite is None else ["--suite", suite]
    return shlex.join(["bench", "evaluate", "--defense", "ours", *named, "--results", str(root)])


def open_suite(root: Path, name: str) -> tuple[Store, SuiteRecord]:
    """What is stored of a suite below ``root``.

    Raises:
        InputError: when nothing is stored of it, or its record cannot be read.
    """
    stored_suites(root, [name])
    store = Store(root, name)
    return store, read_record(store.folder / "suite.json", SuiteRecord)
