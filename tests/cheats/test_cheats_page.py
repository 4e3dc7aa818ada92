"""docs/cheats.md: what is bold, and what is kept of a level until the others are there."""

from __future__ import annotations

from pathlib import Path

import cheating
import pytest
from cheating import CHEATS, HONEST, Found, page

from bench.contracts.isolation import Level
from bench.summary.numbers import Estimate


def _got(share: float, *warnings: str) -> Found:
    return Found(Estimate(share, share - 0.1, share + 0.1, 64), warnings)


def _level() -> dict[str, Found]:
    ends = {"huge_logits": Found(None, refused="x.Cheat: forward: logits in /tmp/a/b.py (and where); more")}
    ends |= {"nearest_test_image": _got(0.9), "sees_the_attack": _got(0.9, "inconsistent"), HONEST: _got(0.1)}
    return {name: ends.get(name, _got(0.14)) for name in (HONEST, *CHEATS)}


def test_it_is_bold_where_nobody_would_notice() -> None:
    lines = page({"none": _level(), "process": _level()}).splitlines()
    cells = {line.split("|")[1].strip(" `"): line.split("|")[3].strip() for line in lines if line.startswith("| `")}
    assert cells["nearest_test_image"] == "**90 % [80, 100]**"
    assert cells["sees_the_attack"] == "90 % [80, 100] `inconsistent`"
    assert cells["huge_logits"] == "refused: x.Cheat: forward: logits in b.py"
    assert cells["noise_off_the_grid"] == "14 % [4, 24]"
    assert sum("**90" in line for line in lines) == 1 and any("| nothing " in line for line in lines)


def test_what_is_no_better_than_the_network_underneath_or_stands_beside_a_warning_is_noticed() -> None:
    assert cheating.unnoticed(_level()).keys() == {"nearest_test_image"}


def test_an_honest_network_that_is_flagged_or_refused_makes_the_others_worthless() -> None:
    for honest in (_got(0.1, "stateful"), Found(None, refused="no")):
        with pytest.raises(AssertionError):
            cheating.unnoticed({**_level(), HONEST: honest})


def test_a_level_that_is_kept_is_joined_with_the_others(tmp_path: Path) -> None:
    told = {"none": _level(), "landlock": {**_level(), "sees_the_attack": _got(0.1)}}
    levels: list[Level] = ["landlock", "none"]
    for level in levels:
        cheating.keep(tmp_path, level, told[level])
    assert cheating.kept_in(tmp_path) == told
    assert list(cheating.kept_in(tmp_path)) == ["none", "landlock"]  # from the weakest to the strongest
    cheating.keep(tmp_path, "none", {HONEST: _got(0.1)})  # of cheats of another day
    assert list(cheating.kept_in(tmp_path)) == ["landlock"]


def test_a_level_by_itself_is_evaluated_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Level] = []
    monkeypatch.setattr(cheating, "measure", lambda run, folder, level: (asked.append(level), _level())[1])
    cheating.main(["process"], tmp_path)
    cheating.main(["none"], tmp_path)
    assert asked == ["process", "none"]
    assert "here these are `none`, `process`." in capsys.readouterr().out
