"""Masks: which values of an input an attack may change."""

from __future__ import annotations

from typing import Annotated, Any

import pydantic
import torch
from torch import Tensor

from bench.contracts.errors import InputError


def as_mask(value: Any) -> Tensor | None:
    """A mask from its written form: None, a tensor, or nested lists of 0 and 1; bool.

    Raises:
        InputError: for anything else, and for a mask that selects nothing.
    """
    if value is None:
        return None
    try:
        mask = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"mask: expected a tensor or nested lists of 0 and 1, got {value!r}") from None
    if not ((mask == 0) | (mask == 1)).all() or not mask.any():
        raise InputError("mask: expected zeros and at least one 1")
    return mask.bool()


#: Annotation for attack parameters: a mask or its written form.
MaskLike = Annotated[Any, pydantic.AfterValidator(as_mask)]


def fitted(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """``mask`` expanded to one example of ``x (N, …)``, on its device; None stays None.

    Raises:
        InputError: when it does not broadcast to that shape.
    """
    if mask is None:
        return None
    try:
        return mask.to(x.device).expand(x.shape[1:])
    except RuntimeError:
        raise InputError(f"mask: shape {tuple(mask.shape)} does not broadcast to {tuple(x.shape[1:])}") from None
