"""Whether a suite fits its data: what can only be said once the data are there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bench.contracts.errors import InputError
from bench.contracts.inputs import InputSpec
from bench.contracts.words import format_eps
from bench.suites.config import Suite

if TYPE_CHECKING:
    from bench.data.splits import Data


def check_fit(suite: Suite, data: Data) -> list[str]:
    """Check numbers of examples and radii against the data.

    Returns:
        What is harmless but should be said: lines for the user.

    Raises:
        InputError: for more examples than there are (on the suite's own data), or a ball that holds the whole box.
    """
    there, notes = len(getattr(data, suite.split)), []
    where = f"the {there} {suite.split} examples of {data.info.name}"
    if suite.examples is not None and suite.examples > there:
        if not suite.moved:
            raise InputError(f"suite {suite.name}: examples: {suite.examples} is more than {where}")
        notes.append(f"suite {suite.name}: takes all {there} {suite.split} examples of {data.info.name}")
    for name, entry in suite.attacks.items():
        if (entry.examples or 0) > there and not suite.moved:
            raise InputError(f"suite {suite.name}: attacks.{name}.examples: {entry.examples} is more than {where}")
    radii = {"eps": suite.threat_model.eps}
    radii |= {f"attacks.{name}.eps": entry.eps for name, entry in suite.attacks.items() if entry.eps is not None}
    for field, eps in radii.items():
        _check_radius(suite, data.info.input, field, eps)
    return notes


def _check_radius(suite: Suite, spec: InputSpec, field: str, eps: float) -> None:
    norm, side = suite.threat_model.norm, spec.high - spec.low
    values = math.prod(spec.shape)
    widest = {"linf": side, "l2": side * math.sqrt(values), "l1": side * values, "l0": values // spec.shape[0]}[norm]
    if eps > widest:
        written = f"{eps:g}/255"
        hint = f" (did you mean {written}?)" if norm in ("linf", "l2") and eps / 255 <= widest else ""
        box = f"[{spec.low:g}, {spec.high:g}]"
        rule = f"is more than {format_eps(widest)}, the {norm} diameter of the box {box}"
        raise InputError(f"suite {suite.name}: {field}: {format_eps(eps)} {rule}{hint}")
