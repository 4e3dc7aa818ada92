"""Data sets from outside: any function that returns a :class:`~bench.data.splits.Data`.

It is named as ``file.py:function``, as ``package.module:function`` or by the name that it has as an entry point of
``bench.data``.
"""

from __future__ import annotations

from bench.contracts.errors import InputError, in_one_line
from bench.data.splits import Data
from bench.plugins.references import resolve
from bench.plugins.registry import DATA


def names_one(reference: str) -> bool:
    """Whether a reference names such a function, by its looks or as an entry point."""
    place, _, function = reference.rpartition(":")
    return reference in DATA.names() or bool(function and (place.endswith(".py") or "." in place))


def load(reference: str) -> Data:
    """What the function behind a reference returns."""
    function = resolve(reference, DATA)
    if not callable(function):
        raise InputError(f"data {reference}: expected a function that returns Data, got {type(function).__name__}")
    with in_one_line(f"data {reference} raised"):
        data = function()
    if not isinstance(data, Data):
        raise InputError(f"data {reference}: returned {type(data).__name__}, expected bench.data.splits.Data")
    return data
