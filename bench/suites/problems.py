"""What is wrong with a configuration, in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pydantic import ValidationError

from bench.contracts.errors import did_you_mean


def first_problem(error: ValidationError, fields: Mapping[str, Iterable[str]]) -> str:
    """``suites.demo.threat_model.eps: -1 must be greater than 0``

    Args:
        fields: the known fields below a field, by its name, to suggest one for a typo; ``""``: those of the file,
            ``"*"``: those of a suite.
    """
    first = error.errors()[0]
    loc = [str(part) for part in first["loc"] if part != "[key]"]
    where = ".".join(loc)
    if first["type"] == "extra_forbidden":
        known = fields.get(loc[-2] if len(loc) > 1 else "", fields.get("*", ()))
        return f"{where}: there is no such field{did_you_mean(loc[-1], known)}"
    if first["type"] == "missing":
        return f"{where}: is required"
    if first["type"] == "value_error" and not loc:
        return first["msg"].removeprefix("Value error, ")
    if first["type"] in ("dict_type", "model_type", "model_attributes_type"):
        rule = "must be a mapping, `name: value` on lines of their own"
        said = "is empty" if first["input"] is None else f"{_short(first['input'])} {rule}"
        return f"{where}: {said}" if where else said
    message = re.sub(r"^(Input|String|Dictionary|Value) should", "must", first["msg"]).removeprefix("Value error, ")
    return f"{where or 'the file'}: {_short(first['input'])} {message[0].lower()}{message[1:]}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
