"""The harness. The names that a plugin's author needs are importable from here; they are loaded on use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.contracts.attack import attack
    from bench.contracts.defense import Approximation, Card, Claim, Defense
    from bench.contracts.detector import Detector
    from bench.contracts.inputs import DataInfo
    from bench.contracts.target import Target
    from bench.running.front import evaluate

__all__ = ["Approximation", "Card", "Claim", "DataInfo", "Defense", "Detector", "Target", "attack", "evaluate"]

_HOMES = {
    "DataInfo": "contracts.inputs",
    "Detector": "contracts.detector",
    "Target": "contracts.target",
    "attack": "contracts.attack",
    "evaluate": "running.front",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"bench.{_HOMES.get(name, 'contracts.defense')}"), name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
