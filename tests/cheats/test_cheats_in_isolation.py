"""At the strongest level that there is every cheat is refused, flagged, or gets no more than the network underneath."""

from __future__ import annotations

import cheating
import pytest
from cheating import CHEATS, HONEST, Found

from bench.contracts.isolation import Level

Results = tuple[Level, dict[str, Found]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The level, and what all of them get there."""
    level = cheating.strongest()
    if level == "none":
        pytest.skip("no level of isolation can be had here")
    return level, cheating.measure(cheating.in_a_process, tmp_path_factory.mktemp(level), level)


def test_each_ends_well(results: Results) -> None:
    _, found = results
    assert found.keys() == {HONEST, *CHEATS}
    honest = found[HONEST].worst
    assert honest is not None and honest.value < 0.05
    assert cheating.unnoticed(found) == {}


def test_in_a_sandbox_what_they_need_is_not_there(results: Results) -> None:
    level, found = results
    if level == "process":
        pytest.skip("without a sandbox")
    for name in ("nearest_test_image", "test_set_in_the_weights"):
        assert found[name].worst is None
        assert "No such file" in found[name].refused or "Permission denied" in found[name].refused
    for name in ("labels_from_the_stack", "sees_the_attack", "reads_published_results", "reads_the_command_line"):
        worst = found[name].worst  # none: what it reads cannot be read, and it does not make do without
        assert worst is None or (worst.value < 0.05 and found[name].warnings == ())
