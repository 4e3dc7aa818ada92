"""Whether a file is what its name says, found out without running, unpacking or allocating what it asks for.

Three kinds: JSON, Python source, and safetensors, whose header says where each tensor lies. Nothing in a bundle is
compressed, so nothing can unfold, and nothing is pickled, so nothing runs by being read.
"""

from __future__ import annotations

import ast
import json
import math
import warnings
from pathlib import Path
from typing import Any

from bench.contracts.errors import InputError, one_line

#: The kinds of files, and the bytes that one may have.
LIMITS = {".json": 32 << 20, ".py": 2 << 20, ".safetensors": 4 << 30}
_HEADER = 4 << 20
#: Bytes of a value of each type of a safetensors file.
_WIDTHS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


def check(path: Path, name: str) -> None:
    """Raise :class:`InputError` unless the file ``path``, called ``name`` in messages, is what its suffix says."""
    kind = path.suffix
    try:
        if kind == ".json":
            json.loads(path.read_bytes())
        elif kind == ".py":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ast.parse(path.read_bytes().decode())
        else:
            tensors(path, name)
    except InputError:
        raise
    except (ValueError, SyntaxError, RecursionError, MemoryError, OverflowError) as error:
        what = {".json": "JSON", ".py": "Python source"}[kind]
        raise InputError(f"bundle {name}: is no {what} ({one_line(str(error))[:120]})") from None


def tensors(path: Path, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor of a safetensors file, from its header alone.

    Raises:
        InputError: when the header is no header, or says other places than the file has: tensors have to fill it from
            the first byte to the last, without holes and without sharing.
    """

    def refused(why: str) -> InputError:
        return InputError(f"bundle {name}: is no safetensors file: {why}")

    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(_HEADER, size - 8):
            raise refused("its header is longer than itself")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise refused("its header is not JSON") from None
    if not isinstance(header, dict):
        raise refused("its header is no mapping")
    words = header.pop("__metadata__", {})
    if not isinstance(words, dict) or not all(isinstance(value, str) for value in words.values()):
        raise refused("its metadata are no words")
    found, places = {}, []
    for key, entry in header.items():
        kind, shape, begin, end = _entry(entry)
        if kind not in _WIDTHS or end - begin != _WIDTHS[kind] * math.prod(shape):
            raise refused(f"the tensor {one_line(key)[:60]!r} has not the bytes of its type and shape")
        found[key] = (kind, shape)
        places.append((begin, end))
    at = 0
    for begin, end in sorted(places):
        if begin != at:
            raise refused("its tensors do not follow each other")
        at = end
    if at != size - 8 - length:
        raise refused("its tensors do not end where it does")
    return found


def _entry(entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape and place of a tensor; ("", …) where the entry is none."""
    try:
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        return "", (), 0, 0
    whole = all(type(n) is int and 0 <= n < 1 << 48 for n in (*shape, begin, end))
    return (str(kind), shape, begin, end) if whole and len(shape) <= 8 and begin <= end else ("", (), 0, 0)
