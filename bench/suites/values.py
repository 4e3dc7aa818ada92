"""Values of ``bench.yaml`` that are written in a way of their own."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema


def parse_eps(value: object) -> object:
    """``"8/255"`` as a number; anything else is left for the validation of numbers."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([\d.]+)\s*/\s*([\d.]+)\s*", value)):
        try:
            return float(match[1]) / float(match[2])
        except (ValueError, ZeroDivisionError):
            return value
    return value


#: A radius: a number, or a fraction such as ``"8/255"``.
Eps = Annotated[
    float,
    BeforeValidator(parse_eps),
    Field(gt=0, allow_inf_nan=False),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": r"^\s*[\d.]+\s*/\s*[\d.]+\s*$"},
            ]
        }
    ),
]

#: Names become folder names in the results.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]
