"""Three machines in network namespaces, joined by `ray start`: the rows of one machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import three_machines
from small_bench import Bench
from stand_ins import essence, plugin

pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="the extra ray is not installed")


def test_machines_with_addresses_of_their_own_give_the_rows_of_one(tmp_path: Path) -> None:
    if reason := three_machines.missing():
        pytest.skip(reason)
    attacks = {
        "step": {"attack": plugin("one_step")},
        "of-defense": {"attack": plugin("of_defense")},
        "slow": {"attack": plugin("slow"), "seconds": 0.3},
    }
    bench = Bench(tmp_path / "work").configure(attacks, shard_size=2)
    assert bench.evaluate("Means", "Noisy").code == 0
    arguments = [word for word in bench.arguments("Means", "Noisy")[1:] if word != str(bench.results)]
    arguments.remove("--results")
    used = three_machines.on_three_machines(tmp_path / "ray", arguments)
    assert essence(tmp_path / "ray") == essence(bench.results)
    assert sorted(used) == ["machine-1", "machine-2", "machine-3"] and all(used.values())
