"""What jobs read from this machine: data, weights, preparations, stored images.

A worker on this machine reads it itself. An engine whose workers are elsewhere makes it once, in the driver, and brings
it to them; a worker there needs the code and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")

#: What an engine has brought to this process, by name.
_brought: dict[str, Any] = {}


@dataclass(frozen=True)
class Supply(Generic[T]):
    """Something that jobs need and that is on the driver's machine.

    Attributes:
        name: supplies of one name in one run are the same, and brought once.
        make: reads or computes it; called where the files are, and not before a job starts that needs it.
    """

    name: str
    make: Callable[[], T]

    def brought(self) -> T | None:
        """What an engine has brought here under this name; None where it has brought nothing."""
        return _brought.get(self.name)

    def take(self) -> T:
        """What an engine has brought, or else made here."""
        return _brought[self.name] if self.name in _brought else self.make()


def bring(supplies: Mapping[str, Any]) -> None:
    """In a worker, before a job: hold these, by name, in place of those of the job before."""
    _brought.clear()
    _brought.update(supplies)
