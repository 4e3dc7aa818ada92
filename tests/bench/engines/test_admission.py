"""Whether another machine may work for a run: what is compared, and what is said."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import pytest

from bench.engines import admission
from bench.engines.admission import facts, objections


def package(folder: Path, name: str = "attacks_there", **files: str) -> Path:
    root = folder / name
    root.mkdir(parents=True, exist_ok=True)
    for file, text in {"__init__": "", **files}.items():
        (root / f"{file}.py").write_text(text)
    return root


def code(monkeypatch: pytest.MonkeyPatch, root: Path) -> str:
    class Spec:
        submodule_search_locations = (str(root),)

    monkeypatch.setattr(admission, "find_spec", lambda _: Spec)
    return admission._code(root.name)


def test_facts_name_the_versions_and_the_code() -> None:
    found = facts()
    assert found["python"] == platform.python_version()
    assert found["torch"] == version("torch") and found["numpy"] == version("numpy")
    assert {f"the code of {name}" for name in ("attacks", "bench", "defenses")} <= found.keys()
    assert facts() == found


def test_what_is_not_installed_is_a_fact_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_LIBRARIES", ("no-such-library",))
    monkeypatch.setattr(admission, "_OURS", ("no_such_package",))
    assert facts() == {
        "python": platform.python_version(),
        "no-such-library": "not installed",
        "the code of no_such_package": "not installed",
    }


def test_the_code_is_the_same_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = code(monkeypatch, package(tmp_path / "here", pgd="steps = 40\n"))
    there = package(tmp_path / "there", pgd="steps = 40\n")
    (there / "__pycache__").mkdir()
    (there / "__pycache__" / "pgd.pyc").write_bytes(b"made by Python")
    assert code(monkeypatch, there) == here


_OTHERS = [{"pgd": "steps = 41\n"}, {"fab": "steps = 40\n"}, {"pgd": "steps = 40\n", "fab": ""}]


@pytest.mark.parametrize("files", _OTHERS)
def test_a_changed_a_renamed_and_a_further_file_is_other_code(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = code(monkeypatch, package(tmp_path / "here", pgd="steps = 40\n"))
    assert code(monkeypatch, package(tmp_path / "there", **files)) != here


def test_the_same_is_admitted() -> None:
    assert objections(facts(), facts()) == []


def test_every_difference_is_named_with_both_sides() -> None:
    here = {"python": "3.12.1", "torch": "2.6.0", "the code of bench": "0a1b"}
    there = {"python": "3.12.1", "torch": "2.7.0", "numpy": "2.1"}
    assert objections(here, there) == [
        "numpy is 2.1 there, unknown here",
        "the code of bench is unknown there, 0a1b here",
        "torch is 2.7.0 there, 2.6.0 here",
    ]
