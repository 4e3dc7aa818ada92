"""Values of ``bench.yaml`` that are written in a way of their own."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, Strict, StringConstraints, WithJsonSchema

from bench.contracts.words import parse_eps


def _no_truth_value(value: object) -> object:
    """YAML reads ``yes`` and ``true`` as truth values, which would count as 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


#: A whole number, written as one.
Whole = Annotated[int, Strict()]

#: A radius: a number, or a fraction such as ``"8/255"``.
Eps = Annotated[
    float,
    BeforeValidator(parse_eps),
    BeforeValidator(_no_truth_value),
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
