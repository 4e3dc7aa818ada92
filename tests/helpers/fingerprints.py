"""Fingerprints: what a built-in answers in a small fixed case, rounded, kept in the repository with its version.

Stored results are told apart by declared versions alone. So a test computes each fingerprint again, and fails where it
differs although the version does not. After raising a version, write its fingerprint anew:

    WRITE_FINGERPRINTS=1 python -m pytest tests -k fingerprint

which replaces those of another version and leaves the others as they are.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "fingerprints"
#: Numbers kept of a tensor besides its mean and its root mean square.
SAMPLES = 30
#: Difference that another processor may make, in units of a tensor's root mean square.
TOLERANCE = 2e-3
#: Share of the samples that may differ by more: a value at the edge of rounding or of a sign falls to either side.
AT_AN_EDGE = 0.07

Fingerprint = dict[str, Any]


def numbers(values: Tensor) -> list[float]:
    """Mean, root mean square and up to ``SAMPLES`` evenly spaced values of a tensor, to four significant digits."""
    flat = values.detach().double().flatten()
    chosen = flat[torch.linspace(0, len(flat) - 1, min(SAMPLES, len(flat))).round().long()]
    return [float(f"{v:.4g}") for v in (flat.mean(), flat.square().mean().sqrt(), *chosen)]


def difference(stored: Fingerprint, now: Fingerprint) -> str:
    """What differs between two fingerprints; empty: nothing. :func:`numbers` within the tolerance, all else exactly."""
    if stored.keys() != now.keys():
        return f"has {', '.join(now)} instead of {', '.join(stored)}"
    for name, old in stored.items():
        new = now[name]
        if not _numeric(old) or not _numeric(new):
            if old != new:
                return f"{name} was {_short(old)}, is {_short(new)}"
        elif problem := _other_numbers(old, new):
            return f"{name}: {problem}"
    return ""


def _numeric(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 2 and all(isinstance(v, float) for v in value)


def _other_numbers(old: list[float], new: list[float]) -> str:
    if len(old) != len(new):
        return f"{len(new)} numbers instead of {len(old)}"
    scale = max(abs(old[1]), 1e-12)
    for what, a, b in zip(("mean", "root mean square"), old, new):  # noqa: B905
        if abs(a - b) > 5 * TOLERANCE * scale:
            return f"{what} was {a:.4g}, is {b:.4g}"
    off = [(a, b) for a, b in zip(old[2:], new[2:], strict=True) if not abs(a - b) <= TOLERANCE * scale]
    if len(off) > AT_AN_EDGE * len(old):
        return f"{len(off)} of {len(old) - 2} values differ, the first was {off[0][0]:.4g}, is {off[0][1]:.4g}"
    return ""


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def complaint(file: str, name: str, version: object, now: Fingerprint) -> str:
    """Why a fingerprint is not the stored one of this version; empty when it is.

    With ``WRITE_FINGERPRINTS`` in the environment, one that is missing or of another version is stored.
    """
    path = FOLDER / file
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    entry = stored.get(name)
    if entry is None or entry["version"] != version:
        if not os.environ.get("WRITE_FINGERPRINTS"):
            was = "none is stored" if entry is None else f"the stored one is of version {entry['version']}"
            return f"{name}: version {version}, but {was}; write it (tests/helpers/fingerprints.py)"
        stored[name] = {"version": version, "answers": now}
        path.parent.mkdir(exist_ok=True)
        path.write_text(_written(stored), encoding="utf-8")
        return ""
    changed = difference(entry["answers"], now)
    return changed and f"{name}: behaves differently under the same version {version}: {changed}; raise the version"


def _written(stored: dict[str, Any]) -> str:
    """JSON with a line for each answer, so that a change shows what changed."""
    blocks = []
    for name, entry in sorted(stored.items()):
        answers = ",\n".join(f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in entry["answers"].items())
        version = json.dumps(entry["version"])
        blocks.append(f' {json.dumps(name)}: {{\n  "version": {version},\n  "answers": {{\n{answers}\n  }}\n }}')
    return "{\n" + ",\n".join(blocks) + "\n}\n"
