"""docs/attacks.md is written from the code, and leaves nothing out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Lt

from attacks.toolkit.estimators import ESTIMATORS, EstimatorLike, as_estimator
from attacks.toolkit.losses import LOSSES
from bench.contracts.attack import attack
from bench.plugins.registry import ATTACKS
from bench.plugins.resolve import get_attack
from bench.reference import attacks as reference
from bench.reference.markdown import split_docstring

PAGE = Path(__file__).resolve().parents[3] / "docs" / "attacks.md"
SHIPPED = ATTACKS.built_in()


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference.reference(), "run `make docs`"


def test_every_attack_loss_and_estimator_is_on_it() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    for name in SHIPPED:
        assert lines.count(f"## {name}") == 1
        section = lines[lines.index(f"## {name}") + 1 :]
        section = section[: next((i for i, line in enumerate(section) if line.startswith("## ")), None)]
        for parameter in get_attack(name).parameters():
            assert sum(line.startswith(f"| `{parameter}` | ") for line in section) == 1, f"{name}.{parameter}"
    for name in [*LOSSES, *ESTIMATORS]:
        assert any(line.startswith(f"| `{name}` | ") for line in lines), name


@pytest.mark.parametrize("name", SHIPPED)
def test_every_attack_names_its_paper_and_explains_its_parameters(name) -> None:
    spec = get_attack(name)
    assert spec.paper and spec.url.startswith("https://")
    assert spec.summary.endswith("."), "the first line is a sentence"
    _, arguments = split_docstring(spec.function)
    assert set(arguments) - {"target", "x"} == set(spec.parameters())


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int, "int"),
        (bool, "bool"),
        (Annotated[float, Ge(0), Lt(0.5)], "float ≥ 0, \\< 0.5"),
        (Literal["a", "b"], "`a`, `b`"),
        (Annotated[int, Ge(1)] | None, "int ≥ 1 or `null`"),
        (EstimatorLike, "[estimator](#gradient-estimators)"),
    ],
)
def test_types_are_written_for_readers(annotation, text) -> None:
    assert reference._kind(annotation) == text


def test_a_parameter_without_a_word_is_an_error() -> None:
    @attack("mute", knowledge="transfer", norms=("linf",))
    def mute(target, x, y, *, strength: int = 1):
        """Says nothing of its parameter."""

    with pytest.raises(ValueError, match="mute: the docstring does not explain the parameter 'strength'"):
        reference._section(mute.attack)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_estimators_can_be_written_by_their_names(name) -> None:
    as_estimator({name: {"of": "exact"}} if name in ("eot", "selective", "with_guide") else name)
