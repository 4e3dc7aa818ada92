"""Data sets by name."""

from __future__ import annotations

import pytest

from bench.contracts.errors import InputError
from bench.data.load import load_data


def test_loaded_once_per_process() -> None:
    assert load_data("digits") is load_data("digits")


@pytest.mark.parametrize(("reference", "hint"), [("digit", "'digits'"), ("cifar-10", "'cifar10'"), ("folder:", "")])
def test_unknown_reference(reference: str, hint: str) -> None:
    with pytest.raises(InputError, match="does not exist") as caught:
        load_data(reference)
    assert hint in str(caught.value)
