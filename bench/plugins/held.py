"""Objects that a caller holds in memory, under references like those of plugins: ``memory:NAME``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

PREFIX = "memory:"
_held: dict[str, object] = {}


@contextmanager
def holding(**objects: object) -> Iterator[dict[str, str]]:
    """Hold objects while it lasts; gives the reference of each, which no other object has at the same time."""
    references: dict[str, str] = {}
    try:
        for name, obj in objects.items():
            reference, number = f"{PREFIX}{name}", 1
            while _held.setdefault(reference, obj) is not obj or reference in references.values():
                number += 1
                reference = f"{PREFIX}{name}-{number}"
            references[name] = reference
        yield references
    finally:
        for reference in references.values():
            del _held[reference]


def is_held(reference: str) -> bool:
    """Whether something is held under this reference now."""
    return reference in _held


def held(reference: str) -> object:
    """What is held under a reference."""
    return _held[reference]
