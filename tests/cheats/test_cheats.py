"""Every cheat is refused, flagged with a warning, or gets no more than the network underneath, at every level."""

from __future__ import annotations

import cheating
import pytest
from cheating import CHEATS, HONEST, Found, page

from bench.contracts.isolation import Level
from bench.summary.numbers import Estimate

LEVELS = cheating.levels()
Results = tuple[Level, dict[str, Found]]


@pytest.fixture(scope="module", params=list(dict.fromkeys([LEVELS[0], LEVELS[-1]])))
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What all of them get in the judge's process, and at the strongest level that there is."""
    level: Level = request.param
    return level, cheating.measure(cheating.in_a_process, tmp_path_factory.mktemp(level), level)


def test_each_is_refused_or_flagged_or_gets_nothing(results: Results) -> None:
    _, found = results
    honest = found[HONEST]
    assert honest.worst is not None and honest.worst.value < 0.05 and honest.warnings == ()
    assert found.keys() == {HONEST, *CHEATS}
    assert {name: got for name, got in found.items() if not got.ends_well(honest)} == {}


def test_without_isolation_they_work(results: Results) -> None:
    """Else the flags would be of nothing."""
    level, found = results
    if level != "none":
        pytest.skip("at the level none")
    whole = {name for name, got in found.items() if got.worst is not None and got.worst.value > 0.9}
    assert {"nearest_test_image", "notes_in_a_temporary_file", "labels_from_the_stack", "sees_the_attack"} <= whole
    assert "memorised" in found["nearest_test_image"].warnings
    assert "memorised" in found["a_few_from_the_table"].warnings
    assert "stateful" in found["notes_in_a_temporary_file"].warnings
    assert "inconsistent" in found["sees_the_attack"].warnings


def test_in_a_sandbox_what_they_need_is_not_there(results: Results) -> None:
    level, found = results
    if level not in ("landlock", "bubblewrap"):
        pytest.skip("without a sandbox")
    for name in ("nearest_test_image", "test_set_in_the_weights"):
        assert found[name].worst is None and "No such file" in found[name].refused
    for name in ("labels_from_the_stack", "sees_the_attack", "reads_published_results", "reads_the_command_line"):
        worst = found[name].worst
        assert worst is not None and worst.value < 0.05 and found[name].warnings == ()


def _got(share: float, *warnings: str) -> Found:
    return Found(Estimate(share, share - 0.1, share + 0.1, 64), warnings)


def test_the_page_is_bold_where_nobody_would_notice() -> None:
    ends = {"huge_logits": Found(None, refused="x.Cheat: forward: logits in /tmp/a/b.py (and where); more")}
    ends |= {"nearest_test_image": _got(0.9), "sees_the_attack": _got(0.9, "inconsistent"), HONEST: _got(0.1)}
    level = {name: ends.get(name, _got(0.14)) for name in (HONEST, *CHEATS)}
    lines = page({"none": level, "process": level}).splitlines()
    cells = {line.split("|")[1].strip(" `"): line.split("|")[3].strip() for line in lines if line.startswith("| `")}
    assert cells["nearest_test_image"] == "**90 % [80, 100]**"
    assert cells["sees_the_attack"] == "90 % [80, 100] `inconsistent`"
    assert cells["huge_logits"] == "refused: x.Cheat: forward: logits in b.py"
    assert cells["noise_off_the_grid"] == "14 % [4, 24]"
    assert sum("**90" in line for line in lines) == 1 and any("| nothing " in line for line in lines)
