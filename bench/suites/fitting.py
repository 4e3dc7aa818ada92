"""Whether a suite fits its data and the defenses that there are: what can only be said once these are known."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bench.contracts.errors import InputError
from bench.contracts.inputs import InputSpec
from bench.contracts.words import format_eps
from bench.plugins.registry import DEFENSES
from bench.suites.config import Suite

if TYPE_CHECKING:
    from bench.data.splits import Data


def check_fit(suite: Suite, data: Data) -> list[str]:
    """Check numbers of examples and radii against the data, and the names of defenses.

    Returns:
        What is harmless but should be said: lines for the user.

    Raises:
        InputError: for more examples than there are (on the suite's own data), a ball that holds the whole box, or a
            defense that is not registered.
    """
    there, notes = len(getattr(data, suite.split)), []
    where = f"the {there} {suite.split} examples of {data.info.name}"
    if suite.examples is not None and suite.examples > there:
        if not suite.moved:
            raise InputError(f"suite {suite.name}: examples: {suite.examples} is more than {where}")
        notes.append(f"suite {suite.name}: takes all {there} {suite.split} examples of {data.info.name}")
    for field, number in suite.numbers().items():
        if number > there and not suite.moved:
            raise InputError(f"suite {suite.name}: {field}: {number} is more than {where}")
    for name in suite.examples_of:
        try:
            DEFENSES.entry(name)
        except InputError as error:
            raise InputError(f"suite {suite.name}: examples_of.{name}: {error}") from None
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
