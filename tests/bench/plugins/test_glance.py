"""What plugins say of themselves, read without importing them, is what they say when they are imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from bench.plugins import glance
from bench.plugins.glance import Glimpse, glimpses
from bench.plugins.registry import ATTACKS, DEFENSES, Registry

WRITTEN = """
'''A module.'''
import torch
from bench.contracts.attack import attack
from bench.contracts.defense import Card, Defense
LIMIT = 3

@attack("near", knowledge="score", norms=("linf", "l2"))
def near(target, x, y):
    '''Steps nearer.

    More.
    '''
    return x

class Mine(Defense):
    card = Card(family="own", title="Mine [sic]")

class Bare(Defense):
    pass
"""


@pytest.mark.parametrize("registry", [ATTACKS, DEFENSES], ids=["attacks", "defenses"])
def test_what_is_shipped_is_read_as_it_is_when_imported(registry: Registry) -> None:
    for entry in registry.entries():
        if entry.distribution == "worst-case-bench":
            read = glance._read(entry, registry)
            assert read is not None and read == glance._imported(entry, registry), entry


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A plugin's file on the path, and its entry points."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("bench.plugins.registry.entry_points", lambda group: _points(group))
    file = tmp_path / "glanced_at.py"
    file.write_text(WRITTEN)
    yield file
    sys.modules.pop("glanced_at", None)


def _points(group: str) -> list[EntryPoint]:
    names = {"bench.attacks": ["near"], "bench.defenses": ["Mine", "Bare"]}[group]
    return [EntryPoint(name.lower(), f"glanced_at:{name}", group) for name in names]


def test_a_plain_plugin_is_not_imported(written: Path) -> None:
    assert glimpses(ATTACKS) == ({"near": Glimpse("score; linf, l2", "Steps nearer.", "")}, [])
    assert "glanced_at" not in sys.modules


def test_what_is_not_written_out_is_imported(written: Path) -> None:
    found, problems = glimpses(DEFENSES)
    assert found == {"mine": Glimpse("own", "Mine [sic]", ""), "bare": Glimpse("unspecified", "bare", "")}
    assert not problems and "glanced_at" in sys.modules


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("raise RuntimeError('no such luck')", "RuntimeError: no such luck"),
        ("import no_such_package.part", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("def (:", "SyntaxError"),
        ("print(1 / 0)", "ZeroDivisionError"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_reported(written: Path, line: str, reason: str) -> None:
    written.write_text(f"{WRITTEN}\n{line}\n")
    found, (problem,) = glimpses(ATTACKS)
    assert not found and "attack 'near'" in problem and reason in problem
