"""Attacks as plain functions, and :func:`run` to use any of them on any model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attacks.library import Result, run

__all__ = ["Result", "run"]


def __getattr__(name: str) -> Any:
    # Loaded on use, and by name: the library is built on the harness, which no attack's code depends on.
    if name in __all__:
        return getattr(importlib.import_module("attacks.library"), name)
    raise AttributeError(f"module 'attacks' has no attribute {name!r}")
