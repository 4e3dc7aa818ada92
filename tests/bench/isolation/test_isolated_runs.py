"""`bench evaluate`, `check` and `verify` of a plugin that runs in a server of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import isolated
import pytest
from small_bench import STEP, Bench
from stand_ins import plugin, run_bench

from bench.contracts.defense import DefenseSpec
from bench.data.load import load_data
from bench.isolation import opening
from bench.upkeep.verify import JUDGED

HERE = isolated.__file__
POINTS = {"attack": plugin("slow"), "seconds": 0}


@pytest.fixture(scope="module", autouse=True)
def _no_servers_left() -> None:
    yield  # type: ignore[misc]
    for key in list(opening._nurseries):
        opening._nurseries.pop(key).close()


def strongest(spec: DefenseSpec) -> str:
    """The strongest level that this machine has for a plugin."""
    return opening.decide(spec, "auto", ()).level


def _rows(bench: Bench, attack: str, defense: str) -> list[dict]:
    rows = [row for record in bench.cell(attack, defense) for row in record.rows]
    return [{column: getattr(row, column) for column in (*JUDGED, "linf", "forward", "backward")} for row in rows]


def test_rows_are_those_of_a_run_without_isolation_and_say_how_they_were_made(tmp_path: Path) -> None:
    benches = {}
    for level in ("none", "process"):
        benches[level] = Bench(tmp_path / level).configure({"step": STEP, "points": POINTS})
        ended = benches[level].evaluate(f"{HERE}:Honest", more=("--isolation", level))
        assert ended.code == 0, ended.err
    for attack in ("clean", "step", "points"):
        assert _rows(benches["process"], attack, "isolated.Honest") == _rows(benches["none"], attack, "isolated.Honest")
        for level, bench in benches.items():
            (found,) = bench.summary.defenses
            assert found.isolation == level
            assert ("not-isolated" in [flag.id for flag in found.flags]) is (level == "none")
            for record in bench.cell(attack, "isolated.Honest"):
                assert record.isolation == level
                assert (record.asked_again is None) is (level == "none")
                if record.asked_again is not None:
                    assert record.asked_again.rows == len(record.rows)
                    assert record.asked_again.differing == 0
    # Judged again from the results alone, at whichever level.
    for level in ("none", "process"):
        where = ["--suite", "tiny", "--results", str(benches["process"].results), "--isolation", level]
        verified = run_bench("verify", *where)
        assert verified.code == 0, verified.out
        assert "0 of 12 rows differ" in verified.out


def test_draws_are_the_same_when_they_are_judged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path / "work").configure({"points": POINTS})
    (tmp_path / "noisy.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(HERE).parent)!r})\nfrom isolated import Honest\n"
        "class Noisy(Honest):\n    version = 1\n"
        "    def __init__(self, data):\n        super().__init__(data, noise=0.7)\n"
    )
    ended = bench.evaluate(f"{tmp_path}/noisy.py:Noisy", more=("--isolation", "process"))
    assert ended.code == 0, ended.err
    verified = run_bench("verify", "--suite", "tiny", "--results", str(bench.results), "--isolation", "process")
    assert verified.code == 0, verified.out


def test_a_memory_of_what_was_asked_before_shows(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "work").configure({"step": STEP})
    ended = bench.evaluate(f"{HERE}:Remembers", more=("--isolation", "process"))
    assert ended.code == 0, ended.err
    (record, *_) = bench.cell("step", "isolated.Remembers")
    assert record.asked_again is not None
    assert record.asked_again.differing > 0
    (found,) = bench.summary.defenses
    assert "inconsistent" in [flag.id for flag in found.flags] and found.isolation == "process"


def test_a_level_that_cannot_be_had_is_an_error_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.isolation.bubblewrap.program", lambda: None)
    bench = Bench(tmp_path / "work").configure({"step": STEP})
    ended = bench.evaluate(f"{HERE}:Honest", more=("--isolation", "bubblewrap"))
    assert ended.code == 2
    assert "isolation bubblewrap: cannot be had here: no bwrap on the path" in ended.err
    assert not bench.results.exists()


def test_a_server_that_dies_is_a_failed_shard_with_its_reason(tmp_path: Path) -> None:
    # In the backward pass of the second shard's clean inputs, which only an attack asks for in this order.
    second = load_data("digits").test.x[4:8].flatten(1).sum(1).tolist()
    (tmp_path / "dies.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(HERE).parent)!r})\nimport os\nfrom isolated import Honest\n"
        "class Dies(Honest):\n    version = 1\n"
        "    def forward(self, x):\n        out = super().forward(x)\n"
        f"        if x.flatten(1).sum(1).tolist() == {second}: out.register_hook(lambda grad: os._exit(7))\n"
        "        return out\n"
    )
    bench = Bench(tmp_path / "work").configure({"step": STEP})
    ended = bench.evaluate(f"{tmp_path}/dies.py:Dies", more=("--isolation", "process"))
    assert ended.code == 1
    assert bench.status("step", "dies.Dies") == "partial"
    first, second, third = bench.cell("step", "dies.Dies")
    assert (first.status, second.status, third.status) == ("ok", "failed", "ok")  # the third has a new server
    assert "the defense's model server died (exit code 7)" in second.error


def test_the_contract_is_checked_through_the_door(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(HERE).parent)!r})\nfrom isolated import Honest\n"
        "import bench.judging.check\nbench.judging.check.check_contract = None\n"
        "class Mine(Honest):\n    version = 1\n"
    )
    where = ("--suite", "demo", "--isolation", "process")
    checked = run_bench("check", f"{tmp_path}/mine.py:Mine", *where)
    assert checked.code == 0, checked.out
    assert "✓ Building it twice gives the same weights" in checked.out
    assert "✓ Each declared approximation" in checked.out


_TRAINED = """
from pathlib import Path
from isolated import Honest

class Learns(Honest):
    version = 1
    trainable = True
    trains_in_ball = False

    def fit(self, run):
        assert len(run.train) > 1000
        for name in ({outside!r}, "in-the-judge-s-folder"):
            try:
                Path(name).write_text("was here")
            except OSError:
                pass
        self.classifier[1].bias.data += 0.001 * run.seed
"""


def test_the_copy_for_attacks_of_the_transfer_tier_is_trained_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = strongest(DefenseSpec(f"{HERE}:Honest"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plugin").mkdir()
    outside = tmp_path / "plugin" / "outside"
    file = tmp_path / "plugin" / "learns.py"
    file.write_text(_TRAINED.format(outside=str(outside)))
    shutil.copy(HERE, file.parent)
    reached = {}
    for name in ("none", level):
        bench = Bench(tmp_path / name).configure({"step": STEP, "copy": {**STEP, "tier": "transfer"}}, reference="none")
        where = ["--suite", "tiny", "--config", str(bench.folder / "bench.yaml"), "--checkpoints", str(tmp_path / "ck")]
        if not (tmp_path / "ck").exists():
            trained = run_bench("train", "--defense", f"{file}:Learns", *where)
            assert trained.code == 0, trained.err
        outside.unlink(missing_ok=True)
        Path("in-the-judge-s-folder").unlink(missing_ok=True)
        more = ("--isolation", name, "--checkpoints", str(tmp_path / "ck"))
        ended = bench.evaluate(f"{file}:Learns", more=more)
        assert ended.code == 0, ended.err
        reached[name] = outside.exists(), Path("in-the-judge-s-folder").exists()
        assert all(shard.status == "ok" and shard.prepare_seconds > 0 for shard in bench.cell("copy", "learns.Learns"))
    assert reached["none"] == (True, True)
    assert reached[level] == ((False, False) if level != "process" else (True, True))
    rows = [_rows(Bench(tmp_path / name), "copy", "learns.Learns") for name in ("none", level)]
    assert rows[0] == rows[1]
