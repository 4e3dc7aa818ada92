"""Keys name what differs, in a phrase each, and nothing else makes a difference."""

from __future__ import annotations

from typing import Any

import pytest
from written_results import attack_record, defense_record, probe_record, suite_record

from bench.storing.keys import PROTOCOL, Key, differences

PGD = attack_record("pgd", params={"steps": 40, "loss": "ce"})
PLAIN = defense_record("plain", libraries={"pillow": "12.0.0"})
SUITE = suite_record([PGD])


def key(suite: Any = SUITE, defense: Any = PLAIN, attack: Any = PGD, torch: str = "2.15", device: str = "cpu") -> Key:
    return suite.cell_key(defense, attack, torch=torch, device=device)(0, 2)


CHANGES = {
    "the protocol's version: was 2, is 3": {"suite": SUITE.model_copy(update={"protocol": PROTOCOL + 1})},
    "the norm: was linf, is l2": {"suite": SUITE.model_copy(update={"norm": "l2"})},
    "the radius: was 0.2, is 0.1": {"suite": SUITE.model_copy(update={"eps": 0.1})},
    "the seed: was 0, is 5": {"suite": SUITE.model_copy(update={"seed": 5})},
    "the data set's version: was 1, is 2": {"suite": suite_record([PGD], data_version=2)},
    "the split: was test, is validation": {"suite": suite_record([PGD], split="validation")},
    "the defense's version: was 1, is 2": {"defense": PLAIN.model_copy(update={"version": 2})},
    "the defense's parameters: radius was none, is 3": {"defense": PLAIN.model_copy(update={"params": {"radius": 3}})},
    "the defense's weights: was weights of plain, is others": {
        "defense": PLAIN.model_copy(update={"weights": "others"})
    },
    "a library that the defense depends on: pillow was 12.0.0, is 13.0.0": {
        "defense": PLAIN.model_copy(update={"libraries": {"pillow": "13.0.0"}})
    },
    "the attack's version: was 1, is 2": {"attack": attack_record("pgd", params=PGD.params, version=2)},
    "the attack's parameters: steps was 40, is 100": {
        "attack": attack_record("pgd", params={"steps": 100, "loss": "ce"})
    },
    "the attack's radius: was 0.2, is 1.0": {"attack": attack_record("pgd", params=PGD.params, eps=1.0)},
    "the attack's knowledge: was gradient, is score": {
        "attack": attack_record("pgd", params=PGD.params, knowledge="score")
    },
    "torch: was 2.15, is 2.16": {"torch": "2.16"},
    "the device: was cpu, is cuda": {"device": "cuda"},
}


@pytest.mark.parametrize("sentence", CHANGES)
def test_every_component_that_differs_is_named(sentence: str) -> None:
    assert differences(key(), key(**CHANGES[sentence])) == [sentence]


def test_the_threshold_of_a_detector_is_named() -> None:
    low, high = (defense_record("plain", probe_record(threshold=value)) for value in (0.25, 0.5))
    assert differences(key(defense=low), key(defense=high)) == ["the detector's threshold: was 0.25, is 0.5"]


def test_other_examples_are_named_by_their_hash() -> None:
    digests = ["another", *SUITE.digests[1:]]
    (sentence,) = differences(key(), key(suite_record([PGD], digests=digests)))
    assert sentence.startswith("the examples themselves: was ") and "…" in sentence


def test_only_the_examples_of_the_shard_count() -> None:
    changed = suite_record([PGD], digests=[*SUITE.digests[:2], "another", "another"])
    assert differences(key(), key(changed)) == []


@pytest.mark.parametrize("fields", [
    {"shard_size": 3}, {"name": "other"}, {"description": "reworded"}, {"reference": "madry"}, {"draws_report": 50},
    {"false_positive_rate": 0.01}, {"class_names": ["other"]},
])  # fmt: skip
def test_how_a_suite_is_cut_and_described_makes_no_difference(fields: dict[str, Any]) -> None:
    assert differences(key(), key(suite_record([PGD], **fields))) == []


@pytest.mark.parametrize("fields", [{"title": "Reworded"}, {"tags": ["new"]}, {"claims": []}, {"num_parameters": 3}])
def test_what_a_card_says_makes_no_difference(fields: dict[str, Any]) -> None:
    assert differences(key(), key(defense=PLAIN.model_copy(update=fields))) == []


def test_draws_count_where_the_defense_is_randomised() -> None:
    random = defense_record("plain", probe_record(randomized=True), libraries=PLAIN.libraries)
    more = suite_record([PGD], draws_report=50)
    assert differences(key(defense=random), key(more, random)) == [
        "the draws on which an attack is scored: was 1, is 50"
    ]


def test_several_differences_are_all_named() -> None:
    now = key(attack=attack_record("pgd", params={"steps": 1}), torch="2.16")
    assert differences(key(), now) == [
        "the attack's parameters: loss was ce, is none, steps was 40, is 1",
        "torch: was 2.15, is 2.16",
    ]
    assert differences(key(attack=None), key())[0].startswith("the attack: was none, is ")
