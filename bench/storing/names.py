"""Names as file names. Imports no torch."""

from __future__ import annotations

import hashlib
import re

#: Characters of a name that are part of its file name; a suffix, and that of an unfinished file, come on top.
_LONGEST = 160


def readable(name: str) -> str:
    """A name as part of a file name: everything but letters, digits and ``._,=()-`` becomes ``-``."""
    return re.sub(r"[^A-Za-z0-9_.,=()-]+", "-", name).strip("-.") or "unnamed"


def slug(name: str) -> str:
    """A plugin's name as a file name: as :func:`readable`, and no two names share a file.

    Where that changes the name, or it is longer than a file system takes, a hash of the whole name is appended.
    """
    safe = readable(name)[:_LONGEST].rstrip(".-")
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"
