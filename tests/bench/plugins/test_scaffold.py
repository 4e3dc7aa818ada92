"""What ``bench new`` writes works as it is."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.contracts.defense import DefenseSpec
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.plugins.resolve import build_defense
from bench.plugins.scaffold import new_attack, new_defense
from bench.suites.attacks import resolve_attacks
from bench.suites.reading import load_config

DATA = DataInfo("digits", InputSpec((1, 8, 8)), 10)
New = Callable[[str, Path], Path]


def run_tests(file: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a written test file's functions as pytest would; returns how many there were."""
    monkeypatch.syspath_prepend(file.parent)
    tests = {name: f for name, f in runpy.run_path(str(file)).items() if name.startswith("test_")}
    for test in tests.values():
        test()
    sys.modules.pop(file.stem.removeprefix("test_"))
    return len(tests)


def test_a_new_defense_builds_from_its_file_and_passes_its_own_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_defense("half-tone", tmp_path)
    assert folder == tmp_path / "half-tone"
    names = {path.name for path in folder.iterdir()}
    assert names == {"README.md", "pyproject.toml", "half_tone.py", "test_half_tone.py"}
    assert run_tests(folder / "test_half_tone.py", monkeypatch) == 3
    defense = build_defense(DefenseSpec(str(folder / "half_tone.py"), {"levels": "4"}), DATA)
    assert type(defense).__name__ == "HalfTone" and defense.randomized
    with pytest.raises(InputError, match="half-tone: levels 1 must be at least 2"):
        build_defense(DefenseSpec(str(folder / "half_tone.py"), {"levels": "1"}), DATA)


def test_a_new_attack_runs_in_its_own_suite_and_passes_its_own_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_attack("zig-zag", tmp_path)
    assert run_tests(folder / "test_zig_zag.py", monkeypatch) == 1
    monkeypatch.chdir(folder)
    attacks = resolve_attacks(load_config(Path("suite.yaml")).suite("zig-zag"))
    assert [entry.name for entry in attacks] == ["noise", "pgd", "zig-zag"]
    assert attacks[-1].params == {"steps": 20, "step_size": 0.1, "estimator": "identity"}


@pytest.mark.parametrize(("new", "group", "target"), [
    (new_defense, "bench.defenses", "mine_2:Mine2"), (new_attack, "bench.attacks", "mine_2:mine_2"),
])  # fmt: skip
def test_installed_it_is_registered_under_its_name(tmp_path: Path, new: New, group: str, target: str) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML")
    project = tomllib.loads((new("mine-2", tmp_path) / "pyproject.toml").read_text())
    assert project["project"]["entry-points"][group] == {"mine-2": target}
    assert project["tool"]["setuptools"]["py-modules"] == ["mine_2"]


@pytest.mark.parametrize("new", [new_defense, new_attack])
def test_no_placeholder_is_left(tmp_path: Path, new: New) -> None:
    for path in new("mine", tmp_path).iterdir():
        assert "$" not in path.read_text(), path.name


@pytest.mark.parametrize(("name", "message"), [
    ("My Defense", "expected lower-case words joined by hyphens"),
    ("../mine", "expected lower-case words"),
    ("class", "class means something else in Python"),
    ("random", "random means something else in Python"),
    ("bench", "bench means something else in Python"),
    ("ours", "is taken by worst-case-bench"),
])  # fmt: skip
def test_a_bad_name_is_refused_and_nothing_is_written(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        new_defense(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="exists already; nothing was written"):
        new_defense("mine", tmp_path)
    assert list((tmp_path / "mine").iterdir()) == []
