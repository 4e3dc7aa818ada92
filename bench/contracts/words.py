"""Words that suites, records and plugins share, and radii as people write them. Imports no torch."""

from __future__ import annotations

import re
from typing import Literal, get_args

from bench.contracts.errors import InputError

#: The norm that bounds a perturbation; ``l0`` counts positions.
Norm = Literal["linf", "l2", "l1", "l0"]
NORMS: tuple[str, ...] = get_args(Norm)

Knowledge = Literal["transfer", "decision", "score", "gradient"]
#: From least to most: each level may use what the levels before it may.
KNOWLEDGE: tuple[str, ...] = get_args(Knowledge)

#: What an attack is shown of a defense's detector (Carlini & Wagner 2017). ``oblivious``: nothing, it attacks the
#: classifier alone; ``transfer``: its points are made on a copy of classifier and detector, trained by the defense's
#: own recipe with another seed, where it is shown all; ``adaptive``: all that its knowledge allows. The judge rejects
#: in every tier.
Tier = Literal["oblivious", "transfer", "adaptive"]

#: What an attack looks for: an input that is wrong and accepted, or a nearly clean one that the detector rejects.
Seeks = Literal["error", "rejection"]

#: How a targeted suite chooses the class that each example has to reach. ``least-likely``: the one with the smallest
#: clean logit of the defense under attack; ``random``: any other than y, the same for every defense; ``next``: y + 1,
#: modulo the number of classes.
Towards = Literal["least-likely", "random", "next"]

#: How an input is shown.
Kind = Literal["image", "waveform"]
KINDS: tuple[str, ...] = get_args(Kind)


def format_eps(eps: float) -> str:
    """``0.2`` where a short decimal says it, ``8/255`` where that is how the field writes it, else four digits."""
    if abs(eps - round(eps, 3)) < 1e-9:
        return f"{eps:g}"
    scaled = eps * 255
    return f"{round(scaled)}/255" if abs(scaled - round(scaled)) < 1e-6 else f"{eps:.4g}"


def parse_eps(value: object) -> object:
    """``"8/255"`` as a number; anything else is left for the validation of numbers."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([\d.]+)\s*/\s*([\d.]+)\s*", value)):
        try:
            return float(match[1]) / float(match[2])
        except (ValueError, ZeroDivisionError):
            return value
    return value


def as_eps(value: object) -> float:
    """A radius that a caller wrote: a number, of NumPy or torch too, or a fraction such as ``"8/255"``.

    Raises:
        InputError: for anything else. Whether the number is a radius, :class:`bench.contracts.threat.Lp` says.
    """
    try:
        if value is not None and not isinstance(value, bool):
            return float(parse_eps(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        pass
    raise InputError(f'eps: {value!r} is not a number or a fraction such as "8/255"')
