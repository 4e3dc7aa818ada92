"""How values are written on the pages. A value that is missing is always an en dash."""

from __future__ import annotations

import hashlib
import math
import re
from typing import Any

from markupsafe import Markup, escape

from bench.contracts.errors import one_line
from bench.contracts.words import format_eps
from bench.summary.columns import MISSING, in_percent
from bench.summary.numbers import Estimate

#: The field's way of writing the norms.
NORM_SYMBOLS = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1", "l0": "ℓ0"}

#: What an input of each kind is made of.
PARTS = {"image": "pixels", "waveform": "samples"}


def _absent(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


def percent(share: float | None) -> str:
    """A share in [0, 1] as ``46.2 %``, with a space that does not break; ``–`` where there is none."""
    return MISSING if share is None or _absent(share) else in_percent(share)


def claimed(value: float | None) -> str:
    """A number of a paper, which is in per cent already."""
    return percent(None if value is None else value / 100)


def interval(estimate: Estimate | None) -> str:
    """The 95 % interval in percent: ``[41.6, 50.8]``."""
    return MISSING if estimate is None else f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def with_interval(estimate: Estimate | None) -> str:
    """``46.2 % [41.6, 50.8]``."""
    return MISSING if estimate is None else f"{percent(estimate.value)} {interval(estimate)}"


def points(difference: float | None) -> str:
    """A difference of two shares in percentage points, signed: ``+12.5``."""
    if difference is None or _absent(difference):
        return MISSING
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def ratio(value: float | None) -> str:
    """``3.2×``; below 1 with two significant digits, so that nothing reads as ``0.0×``."""
    if value is None or _absent(value):
        return MISSING
    return f"{value:.1f}×" if value >= 1 else f"{value:.2g}×"


def count(value: float | None) -> str:
    """A count or a mean count: ``1,204``, ``3.5``."""
    if value is None or _absent(value):
        return MISSING
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that reads best: ``0.8 ms``, ``42 s``, ``3.3 min``, ``1.5 h``."""
    if seconds is None or _absent(seconds):
        return MISSING
    if seconds == 0:
        return "0 s"
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def radius(norm: str, eps: float, kind: str = "image") -> str:
    """A threat model: ``ℓ∞, ε = 8/255``; for ``l0`` the radius is a number of pixels, or of a waveform's samples."""
    size = f"{eps:g} {PARTS[kind]}" if norm == "l0" else format_eps(eps)
    return f"{symbol(norm)}, ε = {size}"


def symbol(norm: str) -> str:
    """``ℓ∞`` for ``linf``."""
    return NORM_SYMBOLS.get(norm, norm)


def compact(value: Any) -> str:
    """A parameter value on one line; nested mappings read as calls: ``eot(samples 16, of bpda(tanh))``."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        if not value:
            return "none"
        if len(value) == 1:
            ((name, settings),) = value.items()
            inner = parameters(settings) if isinstance(settings, dict) else compact(settings)
            return f"{name}({inner})" if inner else str(name)
        return f"({parameters(value)})"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(compact, value))}]"
    return str(value)


def parameters(params: dict[str, Any], separator: str = ", ") -> str:
    """All parameters on one line: ``steps 40, step_size 0.25``."""
    return separator.join(f"{name} {compact(value)}" for name, value in params.items())


def breakable(name: str) -> Markup:
    """A name in a narrow column: it may break after punctuation, and nowhere else while it fits."""
    return Markup(re.sub(r"([-(=,_]+)(?=.)", r"\1<wbr>", str(escape(one_line(name)))))


def day(timestamp: str) -> str:
    """The date of an ISO 8601 timestamp, or the text as it is when it is something else."""
    return timestamp[:10] if re.match(r"\d{4}-\d{2}-\d{2}", timestamp) else timestamp


def web_address(url: str) -> str:
    """``url`` when it is an ordinary web address, otherwise nothing: a card must not smuggle in a script."""
    return url if re.match(r"https?://[^\s]+$", url) else ""


def file_name(text: str, taken: set[str]) -> str:
    """A file name for ``text`` that no file system, URL or path traversal can trip over; added to ``taken``.

    Letters, digits, ``.``, ``_`` and ``-`` stay; anything else is replaced and a hash of the text appended, so that
    two names never meet, not even where case is ignored.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:80]
    if not name or name != text:
        name = f"{name or 'name'}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    while name.casefold() in taken:
        name += "_"
    taken.add(name.casefold())
    return name
