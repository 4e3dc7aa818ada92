"""The shards of a cell in one compressed file, as ``bench compact`` leaves them.

Most of a shard is what the others of its cell say as well: its key, its provenance, the names of its columns. Together
they take a third of the room. The file is a JSON list with one shard a line: ``xz -dc shards.json.xz``.
"""

from __future__ import annotations

import functools
import json
import lzma
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: Name of the file in the folder of a cell.
JOINED = "shards.json.xz"

#: A shard as JSON has it.
Document = dict[str, Any]


def join(shards: Iterable[Document]) -> bytes:
    """What the file of these shards holds."""
    lines = ",\n".join(json.dumps(shard, separators=(",", ":"), ensure_ascii=False) for shard in shards)
    return lzma.compress(f"[\n{lines}\n]\n".encode(), preset=9)


def joined(path: Path) -> dict[int, Document]:
    """The shards in such a file by their numbers; none where there is no file.

    Raises:
        ValueError: when it is damaged.
        OSError: when it cannot be read.
    """
    try:
        about = path.stat()
    except FileNotFoundError:
        return {}
    return dict(_joined(path, (about.st_mtime_ns, about.st_size, about.st_ino)))


@functools.lru_cache(maxsize=1)
def _joined(path: Path, mark: tuple[int, ...]) -> dict[int, Document]:
    """Remembered for one cell, whose shards are read one after the other; ``mark`` tells the file from a newer one."""
    try:
        shards: Any = json.loads(lzma.decompress(path.read_bytes()))
    except lzma.LZMAError as error:
        raise ValueError(error) from None
    found: dict[int, Document] = {}
    for shard in shards if isinstance(shards, list) else [{}]:
        number = shard.get("shard") if isinstance(shard, dict) else None
        if not isinstance(number, int) or number in found:
            raise ValueError("is no list of shards")
        found[number] = shard
    return found
