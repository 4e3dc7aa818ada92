"""The examples still at work: state with a row for each of them, and how those that are finished leave."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor


def take(going: Tensor, *parts: Any) -> tuple[Any, ...]:
    """``parts`` with the rows of the examples that go on.

    Args:
        going: bool ``(M,)``.
        *parts: each with a row per example: tensors ``(M, …)``, lists of tensors, or what has a method ``at`` that
            picks rows, such as a goal. Anything else is returned as it is.

    Raises:
        ValueError: for a tensor that has not M rows. Its rows would go on with other examples.
    """
    rows = going.nonzero().squeeze(1)
    return tuple(_rows(part, rows, len(going)) for part in parts)


class Active:
    """The state of the examples still at work: a base class, or that of a dataclass.

    Every tensor among the attributes has a row per example, unless it is ``shared``, and so has everything else
    that :func:`take` can pick rows from. Nothing has to be listed, so nothing can be forgotten.
    """

    #: Names of tensors that belong to no single example.
    shared: ClassVar[tuple[str, ...]] = ()

    def keep(self, going: Tensor) -> None:
        """Drop all rows but ``going``, bool ``(M,)``."""
        rows = going.nonzero().squeeze(1)
        for name, value in list(vars(self).items()):
            if name not in self.shared:
                setattr(self, name, _rows(value, rows, len(going)))


def _rows(part: Any, rows: Tensor, total: int) -> Any:
    if isinstance(part, Tensor):
        if not part.ndim or len(part) != total:
            raise ValueError(f"a tensor of shape {tuple(part.shape)} has no row for each of {total} examples")
        return part[rows]
    if isinstance(part, list):
        return [_rows(value, rows, total) for value in part]
    at = getattr(part, "at", None)
    return part if at is None else at(rows)
