"""Every warning is there when it should be, and absent when it should not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from written_results import Results, attack_record, defense_record, probe_record, row, suite_record

from bench.storing.records import Memory, Row, Slopes
from bench.summary.flags import ABOVE_CHANCE, BEATS, BEATS_RANDOMIZED, OVERRATED
from bench.summary.numbers import Flag
from bench.summary.summarise import summarise

N = 1000
CASCADE = attack_record("autoattack", params={"queries": 200, "steps": 50})
WHITE, STEP = attack_record("pgd"), attack_record("fgsm")
SCORE = attack_record("square", knowledge="score")
DECISION = attack_record("hopskipjump", knowledge="decision")
TRANSFER = attack_record("transfer", knowledge="transfer")
ADAPTED = attack_record("bpda-i", params={"estimator": "identity"})


def left(share: float) -> list[int]:
    """Rows in which the last ``share`` of the examples survive."""
    return [int(i >= round(N * (1 - share))) for i in range(N)]


def memory(**fields: int) -> Memory:
    """Of a network to which test inputs are as fresh ones, unless ``fields`` say otherwise."""
    same = {"examples": 64, "clean": 62, "near": 62, "moved": 20}
    fresh = {f"fresh_{name}": value for name, value in same.items()}
    return Memory(**{**same, **fresh, **fields})


def made(kept: int, of: int, made_kept: int, made_of: int, expected: float | None = None) -> Memory:
    """Of one to which they are as fresh ones of the data, and how many of 256 made ones it keeps of those it knows."""
    same = {"moved": kept, "clean": of, "near": of, "examples": max(64, of)}
    same |= {f"fresh_{name}": value for name, value in same.items()}
    found = memory(**same, made_examples=256, made_clean=made_of, made_moved=made_kept)
    return found.model_copy(update={"made_expected": expected})


def flags(tmp_path: Path, cells: dict[str, Sequence[int] | Sequence[Row]], **probe: Any) -> dict[str, Flag]:
    """Flags by id of a defense with the named cells; every example is right when clean."""
    known = {a.name: a for a in (WHITE, STEP, CASCADE, SCORE, DECISION, TRANSFER, ADAPTED)}
    known["adaptive"] = attack_record("adaptive", adapts=True)
    known["unbounded"] = attack_record("unbounded", eps=1.0, counted=False)
    known["large"] = attack_record("large", eps=0.3, counted=False)
    suite = suite_record([known[name] for name in cells], n=N, shard_size=N)
    results = Results(tmp_path, suite)
    results.write_defense(defense_record("d", probe_record(**probe)), {"clean": left(1.0), **cells})
    (found,) = summarise(tmp_path, "made").defenses
    return {flag.id: flag for flag in found.flags}


def test_nothing_to_say_about_a_sound_result(tmp_path: Path) -> None:
    cells = {"pgd": left(0.3), "square": left(0.5), "hopskipjump": left(0.6), "transfer": left(0.8)}
    assert flags(tmp_path, {**cells, "unbounded": left(0.0)}) == {}


# -- the probe's findings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probe", "flag", "kind"),
    [
        ({"randomized": True, "declared_randomized": True}, "randomized", "info"),
        ({"outputs_are_probabilities": True}, "probabilities", "warning"),
        ({"gradient": "missing", "zero_gradient_share": 1.0}, "missing-gradient", "warning"),
        ({"gradient": "zero", "zero_gradient_share": 0.25}, "zero-gradient", "warning"),
        ({"gradient": "nonfinite"}, "nonfinite-gradient", "warning"),
        ({"batch_dependent": True}, "batch-dependent", "warning"),
        ({"precision_lost": 0.02}, "precision", "warning"),
        ({"stateful": True}, "stateful", "warning"),
        ({"mode_dependent": True}, "gradient-of-something-else", "warning"),
        ({"slopes": Slopes(points=32, along=0.02, across=0.9)}, "gradient-of-something-else", "warning"),
        ({"slopes": Slopes(points=32, along=1.0, across=0.1)}, "gradient-of-something-else", "warning"),
        ({"memory": memory(moved=64, fresh_moved=20)}, "memorised", "warning"),
        ({"memory": memory(clean=64, fresh_clean=40)}, "memorised", "warning"),
        ({"memory": memory(near=40)}, "memorised", "warning"),
        ({"memory": made(kept=62, of=62, made_kept=40, made_of=250)}, "memorised", "warning"),
        ({"memory": made(kept=26, of=62, made_kept=38, made_of=250)}, "memorised", "warning"),
        ({"memory": made(kept=111, of=187, made_kept=65, made_of=159, expected=110.0)}, "memorised", "warning"),
        # However its margins are, no network keeps a third more.
        ({"memory": made(kept=170, of=187, made_kept=90, made_of=159, expected=90.0)}, "memorised", "warning"),
    ],
)
def test_what_the_probe_found_is_flagged(tmp_path: Path, probe: dict[str, Any], flag: str, kind: str) -> None:
    found = flags(tmp_path, {"pgd": left(0.3)}, **probe)
    assert list(found) == [flag]
    assert found[flag].kind == kind


@pytest.mark.parametrize(
    "probe",
    [
        {"stateful": None, "slopes": None, "memory": None, "mode_dependent": None, "random_at": None},  # of before
        {"stateful": False, "slopes": Slopes(points=32, along=0.28, across=0.22), "memory": memory()},
        {"precision_lost": 0.01},
        {"precision_lost": None},
        {"memory": memory(moved=29, fresh_moved=20)},  # 2 standard errors
        {"memory": memory(moved=20, fresh_moved=40, fresh_clean=64)},  # fresh ones are easier
        {"memory": made(kept=30, of=62, made_kept=85, made_of=250)},  # 14 points
        {"memory": made(kept=40, of=62, made_kept=65, made_of=100)},  # harder to make out, kept as often
        {"memory": made(kept=10, of=62, made_kept=0, made_of=0)},
        {"memory": made(kept=111, of=187, made_kept=65, made_of=159, expected=74.0)},  # smaller margins fall first
    ],
)
def test_what_an_honest_defense_shows_is_not_flagged(tmp_path: Path, probe: dict[str, Any]) -> None:
    assert flags(tmp_path, {"pgd": left(0.3)}, **probe) == {}


def test_places_are_named_where_they_are_known(tmp_path: Path) -> None:
    hidden = {"randomized": True, "declared_randomized": False}
    found = flags(tmp_path / "a", {"pgd": left(0.3)}, **hidden, random_at=["adversarial points"])
    assert "seen at: adversarial points" in found["hidden-randomness"].text
    assert "seen at" not in flags(tmp_path / "b", {"pgd": left(0.3)}, **hidden)["hidden-randomness"].text
    found = flags(tmp_path / "c", {"pgd": left(0.3)}, batch_dependent=True, batch_dependent_at=["clean inputs"])
    assert "seen at: clean inputs" in found["batch-dependent"].text


def test_the_share_of_zero_gradients_is_named(tmp_path: Path) -> None:
    found = flags(tmp_path, {"pgd": left(0.3)}, gradient="zero", zero_gradient_share=0.25)
    assert "25 %" in found["zero-gradient"].text


def test_undeclared_randomness_is_a_warning(tmp_path: Path) -> None:
    declared = flags(tmp_path / "a", {"pgd": left(0.3)}, randomized=True, declared_randomized=True)
    measured = flags(tmp_path / "b", {"pgd": left(0.3)}, randomized=True, declared_randomized=False)
    assert list(declared) == ["randomized"]
    assert list(measured) == ["hidden-randomness", "randomized"]
    assert measured["hidden-randomness"].kind == "warning"


def test_attacks_that_are_not_adapted_must_not_overrate_the_defense(tmp_path: Path) -> None:
    for excess, fires in ((0.01, True), (-0.01, False)):
        cells = {"pgd": left(0.2 + OVERRATED + excess), "bpda-i": left(0.2)}
        assert list(flags(tmp_path / str(fires), cells)) == ["gradient-masking"] * fires
    (flag,) = flags(tmp_path, {"pgd": left(0.95), "bpda-i": left(0.01), "square": left(0.01)}).values()
    assert "pgd, the strongest of these attacks, leaves 95.0 %" in flag.text and "leave 1.0 %" in flag.text


def test_a_single_plain_step_that_leaves_much_is_no_sign_of_masking_where_more_steps_leave_nothing(
    tmp_path: Path,
) -> None:
    assert flags(tmp_path / "a", {"fgsm": left(0.188), "pgd": left(0.0), "bpda-i": left(0.0)}) == {}
    (flag,) = flags(tmp_path / "b", {"fgsm": left(0.9), "pgd": left(0.6), "bpda-i": left(0.0)}).values()
    assert flag.id == "gradient-masking" and "pgd" in flag.text and "fgsm" not in flag.text


def test_a_weak_attack_that_is_adapted_says_nothing_about_masking(tmp_path: Path) -> None:
    assert flags(tmp_path, {"pgd": left(0.2), "bpda-i": left(0.9)}) == {}


def test_an_attack_that_adapts_itself_does_not_hide_masking(tmp_path: Path) -> None:
    (flag,) = flags(tmp_path, {"pgd": left(0.9), "adaptive": left(0.0)}).values()
    assert flag.id == "gradient-masking" and "pgd" in flag.text


def test_a_cascade_that_ends_in_a_black_box_attack_does_not_hide_masking(tmp_path: Path) -> None:
    (flag,) = flags(tmp_path, {"pgd": left(0.9), "autoattack": left(0.0)}).values()
    assert flag.id == "gradient-masking" and "pgd" in flag.text


# -- one kind of attack against another -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "flag"),
    [("square", "black-box-wins"), ("hopskipjump", "black-box-wins"), ("transfer", "transfer-wins")],
)
@pytest.mark.parametrize("randomized", [False, True])
def test_an_attack_without_gradients_must_not_beat_those_with(
    tmp_path: Path, name: str, flag: str, randomized: bool
) -> None:
    limit = BEATS_RANDOMIZED if randomized else BEATS
    for excess, fires in ((0.001, True), (-0.001, False), (-0.1, False)):
        cells = {"pgd": left(0.5), name: left(0.5 - limit - excess)}
        found = flags(tmp_path / str(excess), cells, randomized=randomized, declared_randomized=randomized)
        assert (flag in found) is fires, excess
        if fires:
            assert name in found[flag].text and f"{100 * (limit + excess):.1f} points" in found[flag].text


def test_examples_that_only_a_black_box_attack_breaks_count_too(tmp_path: Path) -> None:
    others = [1 - v for v in left(0.6)]  # as strong as the white-box attack, on other examples
    assert "black-box-wins" in flags(tmp_path, {"pgd": left(0.5), "square": others})


def test_without_a_white_box_attack_there_is_nothing_to_compare(tmp_path: Path) -> None:
    assert flags(tmp_path, {"square": left(0.1), "transfer": left(0.2)}) == {}


# -- sanity checks ----------------------------------------------------------------------------------------------


def test_an_unbounded_attack_must_come_down_to_chance(tmp_path: Path) -> None:
    for share, fires in ((0.1 + ABOVE_CHANCE + 0.01, True), (0.1 + ABOVE_CHANCE - 0.01, False)):
        found = flags(tmp_path / str(fires), {"pgd": left(0.1), "unbounded": left(share)})
        assert ("unbounded-fails" in found) is fires
    assert "chance is 10 %" in flags(tmp_path / "a", {"pgd": left(0.1), "unbounded": left(0.5)})["unbounded-fails"].text


@pytest.mark.parametrize(
    ("inside", "has_detector", "expected"),
    [(0.1, True, "unbounded-coarse"), (0.1, False, "unbounded-fails"), (0.4, True, "unbounded-fails")],
)
def test_behind_a_detector_what_gradients_fool_inside_the_ball_is_not_held_against_them(
    tmp_path: Path, inside: float, has_detector: bool, expected: str
) -> None:
    found = flags(tmp_path, {"pgd": left(inside), "unbounded": left(0.5)}, has_detector=has_detector)
    assert [id_ for id_ in found if id_.startswith("unbounded")] == [expected]
    assert ("inside the threat model 10.0 %" in found[expected].text) is (expected == "unbounded-coarse")


def test_a_larger_radius_that_cannot_paint_any_image_is_not_held_to_chance(tmp_path: Path) -> None:
    assert flags(tmp_path, {"pgd": left(0.5), "large": left(0.5)}) == {}


# -- the run itself ---------------------------------------------------------------------------------------------


def test_an_unfinished_attack_is_named_first(tmp_path: Path) -> None:
    found = flags(tmp_path, {"pgd": left(0.5), "square": []}, randomized=True, declared_randomized=True)
    assert list(found) == ["incomplete", "randomized"]  # warnings before information
    assert "square (missing)" in found["incomplete"].text


def test_refused_inputs_are_counted_per_attack(tmp_path: Path) -> None:
    refused = [row(f"e{i}", 1, reason="not finite" if i < 3 else "ok") for i in range(N)]
    found = flags(tmp_path, {"pgd": refused, "square": left(1.0)})
    assert list(found) == ["violations"]
    assert "pgd (3)" in found["violations"].text and "square" not in found["violations"].text


# -- chance -----------------------------------------------------------------------------------------------------


def at(tmp_path: Path, right: int, n: int, classes: int = 10, share: float = 1.0) -> list[str]:
    """Flags of a defense that has so many of n examples of evenly spread classes right, each in a share of draws."""
    draws = {"draws_select": 10, "draws_report": 10}
    suite = suite_record([], n=n, shard_size=n, class_names=[str(k) for k in range(classes)], **draws)
    hits = [round(10 * share) if i < right else 0 for i in range(n)]
    rows = [row(f"e{i}", hit, label=i % classes) for i, hit in enumerate(hits)]
    results = Results(tmp_path, suite)
    results.write_defense(defense_record("d", probe_record(randomized=True)), {"clean": rows})
    (found,) = summarise(tmp_path, "made").defenses
    return [flag.text for flag in found.flags if flag.id == "chance"]


def test_one_of_256_right_is_chance_and_the_flag_says_what_causes_it(tmp_path: Path) -> None:
    (text,) = at(tmp_path, right=1, n=256)
    assert "0.4 % of 256" in text and "chance (10." in text
    for cause in ("normalised", "0..255", "channels", "labels", "training mode", "weights"):
        assert cause in text


def test_chance_is_a_matter_of_significance(tmp_path: Path) -> None:
    assert at(tmp_path / "a", right=15, n=100)  # P(at least 15) = 0.07
    assert not at(tmp_path / "b", right=20, n=100)  # P(at least 20) = 0.002
    assert at(tmp_path / "c", right=30, n=100, share=0.5)
    assert not at(tmp_path / "d", right=40, n=100, share=0.5)
    assert not at(tmp_path / "e", right=0, n=1)  # even the one right would prove nothing
    assert not at(tmp_path / "f", right=0, n=50, classes=1)
