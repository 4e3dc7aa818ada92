"""docs/defenses.md is written from the code, and leaves nothing out."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from bench.contracts.defense import Card, Defense
from bench.contracts.detector import Detector
from bench.contracts.inputs import DataInfo
from bench.plugins.references import resolve
from bench.plugins.registry import DEFENSES
from bench.reference import defenses as reference

PAGE = Path(__file__).resolve().parents[3] / "docs" / "defenses.md"
SHIPPED = DEFENSES.built_in()


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference.reference(), "run `make docs`"


@pytest.mark.parametrize("name", SHIPPED)
def test_every_defense_and_each_of_its_parameters_is_on_it(name: str) -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert lines.count(f"## {name}") == 1
    section = lines[lines.index(f"## {name}") + 1 :]
    section = section[: next((i for i, line in enumerate(section) if line.startswith("## ")), None)]
    cls = resolve(name)
    assert isinstance(cls, type) and issubclass(cls, (Defense, Detector))
    for parameter in list(inspect.signature(cls).parameters)[1:]:
        assert sum(line.startswith(f"| `{parameter}` | ") for line in section) == 1, parameter
    for claim in (*cls.card.claims, *cls.card.breaks):
        assert any(line.endswith(f"| {claim.source} |") for line in section)


def test_a_reader_is_given_numbers_and_not_the_names_of_constants() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert not re.findall(r"\b[A-Z]+_[A-Z_]+\b", page)
    assert "Default: 0.2 from 16 pixels on, else 0.4." in page


class _Mute(Defense):
    """Says nothing of its parameter."""

    card = Card(title="Mute")

    def __init__(self, data: DataInfo, strength: int = 1) -> None:
        super().__init__(data)


def test_a_parameter_without_a_word_is_an_error() -> None:
    with pytest.raises(ValueError, match="mute: the docstring does not explain the parameter 'strength'"):
        reference._section("mute", _Mute)


def test_what_borrows_weights_on_larger_images_says_so() -> None:
    page = PAGE.read_text(encoding="utf-8")
    section = {name: page.partition(f"\n## {name}\n")[2].partition("\n## ")[0] for name in ("jpeg", "hedge", "trades")}
    assert "From 32 pixels on it has the weights of `none`" in section["jpeg"]
    assert "From 32 pixels on it has the weights of `madry`" in section["hedge"]
    assert "it has the weights of" not in section["trades"]
