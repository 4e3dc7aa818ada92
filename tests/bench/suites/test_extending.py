"""``extends``: another suite with a radius, a budget, examples or attacks changed, and what each mistake is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.contracts.errors import InputError
from bench.contracts.threat import Lp
from bench.data.load import load_data
from bench.suites.config import Suite
from bench.suites.reading import load_config

BASE: dict[str, Any] = {
    "data": "digits",
    "examples": 64,
    "threat_model": {"norm": "linf", "eps": 0.2, "radii": [0.05, 0.1]},
    "draws": {"select": 3, "report": 7},
    "attacks": {
        "noise": {"draws": 5},
        "naive": {"attack": "pgd", "steps": 3, "restarts": 2},
        "square": {"queries": 50, "examples": 32},
        "unbounded": {"attack": "pgd", "eps": 1.0},
    },
}


def write(folder: Path, **suites: Any) -> Path:
    file = folder / "suites.yaml"
    file.write_text(yaml.safe_dump({"suites": suites}, sort_keys=False))
    return file


def child(folder: Path, **fields: Any) -> Suite:
    return load_config(write(folder, child={"extends": "base", **fields}, base=BASE)).suite("child")


def test_what_is_not_said_is_taken_over(tmp_path: Path) -> None:
    base = load_config(write(tmp_path, base=BASE)).suite("base")
    assert child(tmp_path).model_dump(exclude={"description"}) == base.model_dump(exclude={"description"})
    assert child(tmp_path, examples=32).description == "base, but for its examples."


def test_a_budget_is_changed_parameter_by_parameter_and_attacks_come_and_go(tmp_path: Path) -> None:
    found = child(tmp_path, without=["noise"], attacks={"naive": {"steps": 50}, "apgd": {"steps": 4}})
    assert list(found.attacks) == ["naive", "square", "unbounded", "apgd"]
    assert found.attacks["naive"].attack == "pgd" and found.attacks["naive"].params == {"steps": 50, "restarts": 2}
    other = child(tmp_path, attacks={"naive": {"attack": "noise"}}).attacks["naive"]
    assert (other.attack, other.params) == ("noise", {})  # another attack: parameters of PGD mean nothing to it


def test_nested_fields_are_changed_one_by_one(tmp_path: Path) -> None:
    found = child(tmp_path, draws={"report": 9}, threat_model={"radii": [0.15]})
    assert (found.draws.select, found.draws.report) == (3, 9)
    assert (found.threat_model.norm, found.threat_model.eps, found.threat_model.radii) == ("linf", 0.2, [0.15])
    assert found.trained_for is None


def test_in_another_ball_the_weights_stay_and_what_means_nothing_there_is_left_out(tmp_path: Path) -> None:
    digits = load_data("digits")
    small = child(tmp_path, threat_model={"eps": "0.06"})
    assert (small.threat_model.eps, small.threat_model.radii) == (0.06, [0.05])
    assert small.training(digits).threat == Lp("linf", 0.2)
    assert list(small.attacks) == list(BASE["attacks"])
    l2 = child(tmp_path, threat_model={"norm": "l2", "eps": 0.5}, attacks={"far": {"attack": "pgd", "eps": 2.0}})
    assert l2.threat_model.radii == [] and list(l2.attacks) == ["noise", "naive", "square", "far"]
    retrained = child(tmp_path, threat_model={"eps": 0.1}, trained_for=None)
    assert retrained.training(digits).threat == Lp("linf", 0.1)


def test_fewer_examples_than_an_attack_of_the_parent_has(tmp_path: Path) -> None:
    assert child(tmp_path, examples=16).attacks["square"].examples is None
    assert child(tmp_path, examples=48).attacks["square"].examples == 32


def test_numbers_of_defenses_are_taken_over_one_by_one_as_far_as_there_are_as_many_examples(tmp_path: Path) -> None:
    def numbers(**fields: Any) -> dict[str, int]:
        base = {**BASE, "examples_of": {"ours": 20, "odds": 40}}
        return load_config(write(tmp_path, child={"extends": "base", **fields}, base=base)).suite("child").examples_of

    assert numbers() == {"ours": 20, "odds": 40}
    assert numbers(examples_of={"odds": 30, "rse": 10}) == {"ours": 20, "odds": 30, "rse": 10}
    assert numbers(examples=32) == {"ours": 20}
    with pytest.raises(InputError, match=r"suites\.child\.examples_of\.odds: 40 must be at most the suite's own, 32"):
        numbers(examples=32, examples_of={"odds": 40})


def test_a_shipped_suite_is_extended_even_under_its_own_name(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, digits={"extends": "digits", "examples": 10}, more={"extends": "digits"}))
    assert config.suite("digits").examples == config.suite("more").examples == 10
    assert config.suite("digits").replaces
    assert len(config.suite("digits").attacks) > 10


def test_a_study_is_taken_over_without_the_numbers_of_attacks_that_are_gone(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, mine={"extends": "ours-external", "without": ["bpda-i"]}))
    study = config.suite("mine").study
    assert study is not None and study.variants[0].published.keys() == {"clean"}


@pytest.mark.parametrize(("fields", "message"), [
    ({"extends": "bsae"}, "suites.child.extends: suite 'bsae' does not exist (did you mean 'base'?)"),
    ({"extends": "child"}, "suites.child.extends: child → child is a circle"),
    ({"extends": "other"}, "suites.child.extends: child → other → child is a circle"),
    ({"extends": ["base"]}, "suites.child.extends: ['base'] must be the name of a suite"),
    ({"extends": None, "without": ["noise"]}, "suites.child.without: needs `extends`"),
    ({"without": ["niose"]}, "suites.child.without: base has no attack 'niose' (did you mean 'noise'?)"),
    ({"without": "noise"}, "suites.child.without: 'noise' must be a list of attacks of base"),
    ({"without": [*BASE["attacks"]]}, "suites.child.attacks: {} must have at least 1 item"),
    ({"attacks": {"naive": None}}, "suites.child.attacks.naive: is empty; leave it out to keep that of base"),
    ({"attacks": {"noise": {}}, "without": ["noise"]}, "suites.child.attacks.noise: stands in `without` as well"),
    ({"attacks": ["noise"]}, "suites.child.attacks: ['noise'] must be a mapping"),
    ({"attacks": {"square": {"examples": 65}}}, "suites.child.attacks.square.examples: 65 must be at most"),
    ({"threat_model": {"norm": "l2"}}, "suites.child.threat_model.eps: is required"),
    ({"threat_model": 3}, "suites.child.threat_model: 3 must be a mapping"),
    ({"extend": "base"}, "suites.child.extend: there is no such field (did you mean 'extends'?)"),
])  # fmt: skip
def test_what_cannot_be_extended_is_one_line(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    own = {"extends": "base", **fields} if "extend" not in fields else {**BASE, **fields}
    file = write(tmp_path, base=BASE, child=own, other={"extends": "child"})
    with pytest.raises(InputError) as caught:
        load_config(file)
    line = str(caught.value)
    assert line.startswith(f"{file}: {message}") and "\n" not in line
