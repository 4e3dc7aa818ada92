from __future__ import annotations

import math

import pytest

from bench.summary.numbers import Estimate
from leaderboard import formatting


def test_an_estimate_reads_as_percent_with_interval() -> None:
    text = formatting.with_interval(Estimate(0.4615, 0.416, 0.508, 500))
    assert text.replace("\N{NO-BREAK SPACE}", " ") == "46.2 % [41.6, 50.8]"


@pytest.mark.parametrize(
    "write", [formatting.percent, formatting.ratio, formatting.count, formatting.duration, formatting.points]
)
@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_missing_values_are_a_dash(write, value) -> None:
    assert write(value) == "–"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.0421, "42.1 ms"), (60.5, "60.5 s"), (512, "8.5 min"), (7200, "2.0 h")],
)
def test_durations_take_the_unit_that_reads_best(seconds, text) -> None:
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(14.25, "14.2×"), (1.0, "1.0×"), (0.0044, "0.0044×")])
def test_a_ratio_never_reads_as_nothing(value, text) -> None:
    assert formatting.ratio(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.125, "+12.5"), (-0.02, "-2.0"), (0.0, "0.0"), (-1e-6, "0.0")])
def test_differences_are_signed_points(value, text) -> None:
    assert formatting.points(value) == text


@pytest.mark.parametrize(
    ("norm", "eps", "text"),
    [("linf", 8 / 255, "ℓ∞, ε = 8/255"), ("l2", 0.5, "ℓ2, ε = 0.5"), ("l0", 5, "ℓ0, ε = 5 pixels")],
)
def test_threat_models_read_as_the_field_writes_them(norm, eps, text) -> None:
    assert formatting.radius(norm, eps) == text


def test_a_name_may_break_after_punctuation_and_stays_text() -> None:
    assert formatting.breakable("ours(external=a_b,n=1)") == "ours(<wbr>external=<wbr>a_<wbr>b,<wbr>n=<wbr>1)"
    assert formatting.breakable("a-<b>-") == "a-<wbr>&lt;b&gt;-"


def test_an_empty_mapping_reads_as_none() -> None:
    assert formatting.parameters({"params": {}}) == "params none"


def test_parameters_name_every_setting_of_a_nested_estimator() -> None:
    params = {
        "steps": 100,
        "step_size": 0.25,
        "random_start": True,
        "seed": None,
        "estimator": {"eot": {"samples": 16, "of": {"bpda": "tanh"}}},
        "plain": {"exact": {}},
        "grid": [1, 2.5],
    }
    assert formatting.parameters(params) == (
        "steps 100, step_size 0.25, random_start yes, seed none, estimator eot(samples 16, of bpda(tanh)), "
        "plain exact, grid [1, 2.5]"
    )


@pytest.mark.parametrize("url", ["javascript:alert(1)", " javascript:x", "data:text/html,x", "ftp://a/b", "", "//a"])
def test_only_web_addresses_become_links(url) -> None:
    assert formatting.web_address(url) == ""


def test_ordinary_names_are_their_own_file_names() -> None:
    assert formatting.file_name("bpda-i_eot.v2", set()) == "bpda-i_eot.v2"


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", "", "a/b", "<script>", 'x"y', "ours(a=1)", "ü" * 300, "."])
def test_hostile_names_become_safe_file_names(name) -> None:
    safe = formatting.file_name(name, set())
    assert set(safe) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
    assert not safe.startswith(".")
    assert 0 < len(safe) < 100


def test_file_names_never_meet_even_where_case_is_ignored() -> None:
    taken: set[str] = set()
    names = [formatting.file_name(name, taken) for name in ("a/b", "a-b", "A-b", "a b", "a-b")]
    assert len({name.casefold() for name in names}) == 5
