"""The registration of an attack."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from bench.contracts.attack import attack
from bench.contracts.errors import InputError
from bench.contracts.target import Target


def still(target: Target, x: Tensor, y: Tensor) -> Tensor:
    """Stays at x."""
    return x


def test_a_version_is_kept_and_a_plugin_needs_none() -> None:
    assert attack("still", knowledge="transfer", norms=("linf",), version=3)(still).attack.version == 3  # type: ignore[attr-defined]
    assert attack("still", knowledge="transfer", norms=("linf",))(still).attack.version is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", [0, -1, True, 1.0, "1"])
def test_a_version_is_a_whole_number_from_one_on(wrong: Any) -> None:
    with pytest.raises(InputError, match=rf"attack still: version {wrong!r} must be an integer of at least 1"):
        attack("still", knowledge="transfer", norms=("linf",), version=wrong)
