"""After the attacks, a defense is asked once more about what they have found."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_bench import Bench
from stand_ins import HERE

from bench.storing.records import Afterwards, DefenseRecord

#: Behaves otherwise at one mark alone, which only the attack beside it sets.
PLUGIN = f"""
import sys
sys.path.insert(0, {str(HERE.parent)!r})
import torch
from stand_ins import Means
from bench.contracts.attack import attack

MARK = 0.123


@attack("marking", knowledge="decision", norms=("linf",))
def marking(target, x, y):
    target.labels(x)
    x_adv = x.clone()
    x_adv[:, :, 0, 0] = MARK
    return x_adv


class Plain(Means):
    pass


class Lucky(Means):
    def forward(self, x):
        marked = (x[:, 0, 0, 0] == MARK)[:, None]
        return torch.where(marked, torch.randn(len(x), 10), super().forward(x))


class Crowded(Means):
    def forward(self, x):
        marked = (x[:, 0, 0, 0] == MARK)[:, None]
        return super().forward(x) * torch.where(marked & torch.tensor(len(x) > 5), -1.0, 1.0)
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "marked.py").write_text(PLUGIN, encoding="utf-8")
    return Bench(tmp_path / "work").configure(
        {"marking": {"attack": f"{tmp_path / 'marked.py'}:marking"}}, protocol=1  # a mark is no grey level
    )


def evaluated(bench: Bench, name: str) -> DefenseRecord:
    assert bench.evaluate(f"{bench.folder.parent / 'marked.py'}:{name}").code == 0
    record = bench.store.defense(f"marked.{name}")
    assert record is not None
    return record


def flags(bench: Bench) -> list[str]:
    (found,) = bench.summary.defenses
    return [flag.id for flag in found.flags if flag.id in ("hidden-randomness", "batch-dependent", "inconsistent")]


def test_an_honest_defense_answers_as_before(bench: Bench) -> None:
    record = evaluated(bench, "Plain")
    assert record.afterwards == Afterwards(points=12, random=False, batch_dependent=False, differing=0)
    assert flags(bench) == []


def test_randomness_at_the_attacks_points_alone_is_judged_over_draws(bench: Bench) -> None:
    record = evaluated(bench, "Lucky")
    assert record.afterwards is not None and record.afterwards.random
    assert record.probe.random_at == ["inputs that attacks found"]
    assert flags(bench) == ["hidden-randomness"]
    shards = bench.cell("marking", "marked.Lucky")
    assert len(shards) == 3 and all(shard.draws_report > 1 for shard in shards)
    # One draw of ten classes would have let some rows survive as a whole: none does over several.
    assert all(0 < sum(row.report_robust for row in shard.rows) < 4 * shard.draws_report for shard in shards)
    again = evaluated(bench, "Lucky")  # nothing is left to be run
    # But for the inputs that are made anew for every probe.
    one, other = (found.probe.model_copy(update={"memory": None}) for found in (again, record))
    assert one == other and again.afterwards == record.afterwards


def test_another_answer_and_dependence_on_the_batch_at_the_attacks_points_are_flagged(bench: Bench) -> None:
    record = evaluated(bench, "Crowded")
    assert record.afterwards is not None
    assert record.afterwards.batch_dependent and not record.afterwards.random and record.afterwards.differing > 6
    assert not record.probe.batch_dependent
    assert flags(bench) == ["batch-dependent", "inconsistent"]


def test_results_of_before_have_nothing_to_say(bench: Bench) -> None:
    record = evaluated(bench, "Crowded")
    bench.store.write_defense(record.model_copy(update={"afterwards": None}))
    assert flags(bench) == []
