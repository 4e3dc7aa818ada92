"""The whole way on real images of other sizes: train an epoch, attack, judge, judge again, build the site.

Fashion-MNIST is read where Debian's ``dataset-fashion-mnist`` puts it. Of Tiny ImageNet a folder of the layout
``{train,test}/<class>/<file>`` is read, which ``BENCH_TINY_IMAGENET`` names: all of it or some images of each class.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from stand_ins import Ended, run_bench, write_config

from bench.summary.summarise import summarise

DEFENSE = f"{Path(__file__).with_name('one_epoch.py')}:OneEpoch"
FASHION = Path("/usr/share/datasets/fashion-mnist")
ATTACKS = {
    "pgd": {"attack": "pgd", "steps": 10},
    "cascade": {"attack": "cascade", "targets": 3, "restarts": 1, "halvings": 1, "rounds": 1, "queries": 50},
    "hopskipjump": {"attack": "hopskipjump", "examples": 8, "queries": 300},
    "noise": {"attack": "noise", "draws": 10},
}


@dataclass(frozen=True)
class Set:
    """How a data set is named, its radius, what one epoch gives at least, and the shape of its images."""

    data: tuple[str, ...]
    eps: float
    learned: float
    shape: tuple[int, int, int]


def _fashion(folder: Path) -> Set:
    if not FASHION.is_dir():
        pytest.skip(f"{FASHION} does not exist (Debian: dataset-fashion-mnist)")
    raw = folder / "data" / "FashionMNIST" / "raw"
    raw.parent.mkdir(parents=True)
    raw.symlink_to(FASHION)
    return Set(("--data", "fashion-mnist", "--data-root", str(folder / "data")), 0.1, 0.7, (1, 28, 28))


def _tiny_imagenet(folder: Path) -> Set:
    where = os.environ.get("BENCH_TINY_IMAGENET", "")
    if not Path(where, "train").is_dir():
        pytest.skip("BENCH_TINY_IMAGENET names no folder with train/ and test/ of Tiny ImageNet")
    return Set(("--data", f"folder:{where}"), 8 / 255, 0.02, (3, 64, 64))


@pytest.mark.slow
@pytest.mark.parametrize("of", [_fashion, _tiny_imagenet])
def test_an_epoch_is_trained_attacked_judged_and_shown(
    of: Callable[[Path], Set], tmp_path: Path
) -> None:
    images = of(tmp_path)
    write_config(
        tmp_path / "bench.yaml", ATTACKS, examples=48, shard_size=20, reference=DEFENSE,
        threat_model={"norm": "linf", "eps": images.eps},
    )  # fmt: skip
    results = tmp_path / "results"
    one = ("--suite", "tiny", "--config", tmp_path / "bench.yaml", "--defense", DEFENSE, *images.data)
    weights = ("--checkpoints", tmp_path / "checkpoints")

    _well(run_bench("train", *one, *weights, "--device", "cpu", "--quiet"))
    _well(run_bench("evaluate", *one, *weights, "--device", "cpu", "--results", results, "--quiet"))
    (suite,) = [path.name for path in results.iterdir() if path.is_dir()]
    (defense,) = summarise(results, suite).defenses
    assert defense.complete and defense.standard.n == 48 and defense.standard.value >= images.learned
    assert not [cell.record.name for cell in defense.attacks if cell.violations]
    left = {cell.record.name: cell.robust.value for cell in defense.attacks if cell.robust is not None}
    assert set(left) == set(ATTACKS)
    assert defense.worst_case.value <= left["cascade"] < left["noise"] <= defense.standard.value

    again = _well(run_bench("verify", "--suite", suite, "--results", results, *images.data, *weights, "--json"))
    assert json.loads(again.out)["confirmed"]
    _well(run_bench("leaderboard", "--results", results, "--out", tmp_path / "site"))
    pages = list((tmp_path / "site").rglob("*.html"))
    assert any("OneEpoch" in page.read_text(encoding="utf-8") for page in pages)


def _well(ended: Ended) -> Ended:
    assert ended.code == 0, ended.err
    return ended
