"""`bench check`: every rule passes for a sound defense and catches what it is there for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stand_ins import Means, Noisy, plugin, write_config
from torch import Tensor

from bench.contracts.defense import Approximation, Defense, DefenseSpec
from bench.data.load import load_data
from bench.judging import check
from bench.judging.check import Finding, check_defense
from bench.plugins.resolve import LoadedDefense
from bench.suites.reading import load_config

INFO = load_data("digits").info


@pytest.fixture
def findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Check a class of defenses; the findings by the first words of their rules."""
    suite = load_config(write_config(tmp_path / "bench.yaml", {"noise": None})).suite("tiny")

    def run(cls: type[Defense]) -> dict[str, Finding]:
        monkeypatch.setattr(check, "open_defense", lambda *_, **__: LoadedDefense(cls(INFO), None, None, {}, 1, {}))
        return {finding.rule: finding for finding in check_defense(DefenseSpec("mine"), suite)}

    return run


def verdict(found: dict[str, Finding], words: str) -> Finding:
    (finding,) = (finding for rule, finding in found.items() if words in rule)
    return finding


def test_a_sound_defense_passes_every_rule(findings: Any) -> None:
    found = findings(Means)
    assert len(found) == 13
    assert {finding.verdict for finding in found.values()} == {"pass"}
    assert all(rule.endswith(".") and rule[0].isalpha() for rule in found)
    assert verdict(found, "forward(x) returns").detail == "(32, 1, 8, 8) -> (32, 10) float32"
    assert verdict(found, "better than chance").detail.endswith("% of 256")


@pytest.mark.parametrize(("hits", "verdict_"), [(1, "warn"), (26, "warn"), (38, "warn"), (40, "pass")])
def test_better_than_chance_means_significantly(findings: Any, hits: int, verdict_: str) -> None:
    """Of 256 digits a guess gets 26 to 28 right; only from 40 on is luck a poor explanation."""
    validation = load_data("digits").validation.take(256)
    known = {x.numpy().tobytes(): (int(y), i) for i, (x, y) in enumerate(zip(validation.x, validation.y, strict=True))}

    def forward(self: Defense, x: Tensor) -> Tensor:
        labels = [known.get(one.numpy().tobytes(), (0, 999)) for one in x.detach()]
        guesses = [label if i < hits else (label + 1) % 10 for label, i in labels]
        return torch.nn.functional.one_hot(torch.tensor(guesses), 10) + 0 * x.sum((1, 2, 3))[:, None]

    assert verdict(findings(type("Lucky", (Means,), {"forward": forward})), "better than chance").verdict == verdict_


def test_a_declaration_of_randomness_without_any_is_a_warning(findings: Any) -> None:
    finding = verdict(findings(type("Quiet", (Means,), {"randomized": True})), "randomised")
    assert finding.verdict == "warn"
    assert "although passes do not differ" in finding.detail


def test_a_randomised_defense_that_says_so_passes(findings: Any) -> None:
    found = findings(Noisy)
    assert {finding.verdict for finding in found.values()} == {"pass"}
    assert verdict(found, "randomised").detail == "randomised"


def _approximating(through: Any, exact_forward: bool = False) -> dict[str, Any]:
    return {"approximations": lambda self: {"soft": Approximation(through, exact_forward)}}


BROKEN: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "batch of one input",
        {"forward": lambda self, x: self.classifier(x) if len(x) > 1 else self.classifier(x).squeeze(0)},
        "fail",
        "expected logits of shape (1, 10), got (10,)",
    ),
    ("leaves its input", {"forward": lambda self, x: self.classifier(x.mul_(0.5))}, "fail", "work on a copy"),
    ("not probabilities", {"forward": lambda self, x: self.classifier(x).softmax(1)}, "warn", "final softmax"),
    ("says whether", {"transform": lambda self, x: x + 0.1 * torch.rand_like(x)}, "warn", "although randomized"),
    ("do not depend", {"transform": lambda self, x: (x - x.mean(0)).clamp(0, 1)}, "warn", "permuted or split"),
    ("classifier(transform(x))", {"transform": lambda self, x: 1 - x, "forward": None}, "warn", "something else"),
    ("has a gradient", {"transform": lambda self, x: x.round()}, "warn", "gradient zero (100 % of images)"),
    ("better than chance", {"transform": lambda self, x: x * 0}, "warn", "The usual causes: inputs normalised twice"),
    ("declared approximation", _approximating(lambda x: x[:, :, :4]), "fail", "soft: expected shape (32, 1, 8, 8)"),
    ("declared approximation", _approximating(lambda x: x.detach()), "fail", "soft: no gradient reaches the input"),
    ("declared approximation", _approximating(lambda x: x * torch.nan), "fail", "missing, NaN or infinite"),
    ("declared approximation", _approximating(lambda x: x * 0.5, True), "fail", "exact_forward is declared"),
]


@pytest.mark.parametrize(("words", "members", "expected", "detail"), BROKEN)
def test_each_rule_catches_what_it_is_there_for(
    findings: Any, words: str, members: dict[str, Any], expected: str, detail: str
) -> None:
    if members.get("forward", plain) is None:
        members = {**members, "forward": plain}
    found = findings(type("Broken", (Means,), members))
    finding = verdict(found, words)
    assert finding.verdict == expected
    assert detail in finding.detail
    assert len(found) == 13  # the other rules are checked all the same


def plain(self: Defense, x: Tensor) -> Tensor:
    return self.classifier(x)


def test_a_defense_that_writes_into_its_input_spoils_no_data(findings: Any) -> None:
    before = load_data("digits").validation.x.clone()
    findings(type("Writing", (Means,), {"forward": lambda self, x: self.classifier(x.mul_(0.5))}))
    assert torch.equal(load_data("digits").validation.x, before)


def test_a_gradient_that_is_declared_instead_is_no_warning(findings: Any) -> None:
    members = {"transform": lambda self, x: x.round(), **_approximating(lambda x: x)}
    assert verdict(findings(type("Declared", (Means,), members)), "has a gradient").verdict == "pass"


@pytest.mark.parametrize(
    ("forward", "detail"),
    [
        (lambda self, x: self.classifier(x)[:, :3], "expected logits of shape (32, 10), got (32, 3)"),
        (lambda self, x: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_without_a_working_forward_there_is_nothing_more_to_check(findings: Any, forward: Any, detail: str) -> None:
    found = findings(type("Broken", (Means,), {"forward": forward}))
    assert len(found) == 3
    assert verdict(found, "forward(x) returns").verdict == "fail"
    assert detail in verdict(found, "forward(x) returns").detail


def test_weights_that_differ_from_one_build_to_the_next_are_caught(findings: Any) -> None:
    class Drifting(Means):
        def __init__(self, data: Any) -> None:
            super().__init__(data)
            self.classifier[1].bias.data += 1e-3 * torch.randn(10)

    assert verdict(findings(Drifting), "Building it twice").verdict == "fail"


def test_a_defense_that_is_not_found_is_the_only_finding(tmp_path: Path) -> None:
    suite = load_config(write_config(tmp_path / "bench.yaml", {"noise": None})).suite("tiny")
    (finding,) = check_defense(DefenseSpec(plugin("Nothing")), suite)
    assert finding.verdict == "fail"
    assert "defines no 'Nothing'" in finding.detail


def test_the_data_are_looked_for_below_the_given_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = load_config(write_config(tmp_path / "bench.yaml", {"noise": None})).suite("tiny")
    asked = []

    def load(reference: str, root: Path | None) -> Any:
        asked.append((reference, root))
        return load_data(reference)

    monkeypatch.setattr(check, "load_data", load)
    next(check_defense(DefenseSpec(plugin("Means")), suite, root=tmp_path))
    assert asked == [("digits", tmp_path)]
