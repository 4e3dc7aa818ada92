"""In the judge's own process the cheats work, and every one of them is refused or flagged."""

from __future__ import annotations

import cheating
import pytest
from cheating import CHEATS, HONEST, Found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """What all of them get without isolation."""
    return cheating.measure(cheating.in_a_process, tmp_path_factory.mktemp("none"), "none")


def test_each_is_refused_or_flagged_or_gets_nothing(found: dict[str, Found]) -> None:
    assert found.keys() == {HONEST, *CHEATS}
    honest = found[HONEST].worst
    assert honest is not None and honest.value < 0.05
    assert cheating.unnoticed(found) == {}


def test_they_work(found: dict[str, Found]) -> None:
    """Else the flags would be of nothing."""
    whole = {name for name, got in found.items() if got.worst is not None and got.worst.value > 0.9}
    assert {"nearest_test_image", "notes_in_a_temporary_file", "labels_from_the_stack", "sees_the_attack"} <= whole
    assert "memorised" in found["nearest_test_image"].warnings
    assert "memorised" in found["a_few_from_the_table"].warnings
    assert "stateful" in found["notes_in_a_temporary_file"].warnings
    assert "inconsistent" in found["sees_the_attack"].warnings
