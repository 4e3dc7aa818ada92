"""The whole way on data that are no images: waveforms in [-1, 1], from training to the site."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stand_ins import run_bench, shards, write_config

from bench.storing.store import Store
from bench.summary.numbers import AttackSummary
from bench.summary.summarise import summarise

ROOT = Path(__file__).parents[2]
PLUGIN = "tests/helpers/waveforms.py"
EPS = 0.2
ATTACKS: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 10},
    "apgd": {"steps": 10},
    "bpda-i": {"attack": "pgd", "steps": 10, "estimator": "identity"},
    "reparameterization": {
        "attack": "pgd", "steps": 10, "estimator": {"reparameterized": {"epochs": 2, "width": 8}},
    },
    "square": {"queries": 200},
    "genattack": {"generations": 20},
    "hopskipjump": {"queries": 200},
    "transfer": {"steps": 10, "surrogates": 1, "epochs": 10, "training": "standard", "translation": 1},
    "one-pixel": {"generations": 2, "population": 5},
    "unbounded": {"attack": "pgd", "eps": 2.0, "steps": 20},
}  # fmt: skip
APPLICABLE = [name for name in ATTACKS if name != "one-pixel"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of results of the small network, trained and evaluated."""
    folder = tmp_path_factory.mktemp("waveforms")
    fields = {"data": f"{PLUGIN}:tones", "reference": f"{PLUGIN}:Filters", "examples": 12, "shard_size": 6}
    write_config(folder / "bench.yaml", ATTACKS, **fields, threat_model={"norm": "linf", "eps": EPS})
    where = ["--suite", "tiny", "--config", folder / "bench.yaml", "--checkpoints", folder / "weights"]
    defense = f"{PLUGIN}:Filters"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # so that the stored references, which are relative, can be followed
        for command in (
            ["train", "--defense", defense],
            ["check", defense],
            ["evaluate", "--results", folder / "results", "--defense", defense],
        ):
            ended = run_bench(*command, *where, "--device", "cpu")
            assert ended.code == 0, ended.out + ended.err
        yield folder


@pytest.fixture
def attacks(folder: Path) -> dict[str, AttackSummary]:
    (found,) = summarise(folder / "results", "tiny").defenses
    return {attack.record.name: attack for attack in found.attacks}


def test_gradients_scores_labels_and_surrogates_find_adversarial_waveforms(
    folder: Path, attacks: dict[str, AttackSummary]
) -> None:
    (found,) = summarise(folder / "results", "tiny").defenses
    assert found.standard is not None and found.standard.value > 0.9
    for name in APPLICABLE:
        assert attacks[name].status == "complete" and not attacks[name].violations, name
        assert attacks[name].robust is not None and attacks[name].robust.value < found.standard.value, name
    assert attacks["pgd"].robust.value < 0.5
    assert attacks["unbounded"].robust.value == 0, "any waveform is within reach"
    assert attacks["one-pixel"].status == "not-applicable"


def test_points_are_in_the_box_and_the_ball(folder: Path) -> None:
    store = Store(folder / "results", "tiny")
    lowest = []
    for record in shards(folder / "results").values():
        if record.attack in ATTACKS and record.status == "ok":
            x_adv = store.x_adv(record)
            assert x_adv.shape[1:] == (1, 64) and x_adv.min() >= -1 and x_adv.max() <= 1
            lowest.append(float(x_adv.min()))
            radius = ATTACKS[record.attack].get("eps", EPS)
            assert all(row.linf <= radius * 1.0001 and row.l0 <= 64 for row in record.rows)
    assert min(lowest) < -0.5


def test_stored_waveforms_are_judged_again(folder: Path) -> None:
    where = ["--results", folder / "results", "--checkpoints", folder / "weights"]
    ended = run_bench("verify", "--suite", "tiny", *where, "--device", "cpu")
    assert ended.code == 0, ended.out + ended.err
    for name in APPLICABLE:
        assert f"waveforms.Filters × {name}: 0 of 12 rows differ" in ended.out


def test_the_site_plots_waveforms(folder: Path) -> None:
    ended = run_bench("leaderboard", "--results", folder / "results", "--out", folder / "site")
    assert ended.code == 0, ended.out + ended.err
    pages = "".join(path.read_text() for path in (folder / "site").rglob("*.html"))
    assert "<polyline" in pages and "[-1, 1]" in pages


def test_the_record_says_what_an_input_is(folder: Path) -> None:
    record = Store(folder / "results", "tiny").suite()
    assert record is not None
    assert (record.shape, record.low, record.high, record.kind) == ((1, 64), -1.0, 1.0, "waveform")
