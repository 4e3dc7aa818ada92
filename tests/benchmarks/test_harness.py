"""The part on the harness in docs/benchmarks.md: made of what was measured, and of nothing else."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from harness import __main__ as command
from harness.figures import Collector, Figure, Measured, read
from harness.page import BEGIN, END, part, part_of, with_part
from peers import __main__ as compare
from peers.comparisons import COMPARISONS

MACHINE = {"cpu": "a processor", "cores": "2", "memory": "8 GiB"}
FIGURE = Figure("Jobs", "local engine, 2 workers", 1.0123, "time over the ideal", "100 jobs", "1 ms", 1.1, True)


def measured(test: str, status: str = "passed", message: str = "", *figures: Figure, commit: str = "abc") -> Measured:
    return Measured(test, status, message, list(figures), "2026-01-02T03:04:05+00:00", commit, MACHINE, 1.25)


def test_a_row_has_its_ratio_its_goal_and_its_sample() -> None:
    text = part([measured("test_jobs", "passed", "", FIGURE)])
    row = "| local engine, 2 workers | 1.01 (goal 1.1) | time over the ideal | 1 ms | yes | 100 jobs | 1.2 |"
    assert row in text.splitlines()
    assert "Goals met in 1 of 1 rows that have one." in text
    assert "Measured 2026-01-02 on a processor (2 cores, 8 GiB of memory), code at commit `abc`." in text


@pytest.mark.parametrize(
    ("ratio", "goal", "met", "shown"),
    [(1.2, 1.1, True, "**no**"), (1.0, 1.1, False, "**no**"), (1.2, None, True, "yes"), (1.2, None, None, "–")],
)
def test_a_goal_that_is_missed_says_so(ratio: float, goal: float | None, met: bool | None, shown: str) -> None:
    figure = dataclasses.replace(FIGURE, ratio=ratio, goal=goal, met=met)
    line = next(line for line in part([measured("test", "passed", "", figure)]).splitlines() if "local engine" in line)
    assert line.split(" | ")[4] == shown


def test_what_failed_or_was_not_measured_is_named_and_shows_no_figure() -> None:
    text = part(
        [
            measured("test_broken", "failed", "AssertionError: a | b", FIGURE),
            measured("test_ray", "skipped", "the extra ray is not installed"),
            measured("test_jobs", "passed", "", dataclasses.replace(FIGURE, what="local engine, 4 workers")),
        ]
    )
    assert "| `test_broken` | AssertionError: a \\| b | 2026-01-02 |" in text
    assert "| `test_ray` | the extra ray is not installed | 2026-01-02 |" in text
    assert "2 workers" not in text and "4 workers" in text
    assert "1 of 3 benchmarks failed" in text


def test_measurements_of_two_commits_are_told_apart() -> None:
    text = part([measured("test_a", "passed", "", FIGURE), measured("test_b", "passed", "", FIGURE, commit="def")])
    assert "commit `abc` (1 of 2 benchmarks)" in text and "commit `def` (1 of 2 benchmarks)" in text


def test_each_part_of_the_page_survives_when_the_other_is_made_again() -> None:
    page = with_part("# Attacks\n\nrows\n", "ours\n")
    assert page == f"# Attacks\n\nrows\n\n{BEGIN}\nours\n{END}\n" and part_of(page) == "ours\n"
    assert with_part(page, "new\n") == page.replace("ours", "new")
    between = f"before\n\n{BEGIN}\nours\n{END}\n\nafter\n"
    assert with_part(between, "new\n") == between.replace("ours", "new")
    assert with_part("# Attacks anew\n", part_of(page)) == f"# Attacks anew\n\n{BEGIN}\nours\n{END}\n"
    assert part_of("# Attacks\n") is None and with_part("# Attacks\n", None) == "# Attacks\n"


_BENCHMARKS = '''
import pytest
from harness.figures import Figure

def test_good(benchmark, measured):
    benchmark.pedantic(int, rounds=1)
    measured(Figure("Table", "good", 0.5, "of", "sample", goal=1.0))

def test_bad(benchmark, measured):
    measured(Figure("Table", "bad", 0.5, "of", "sample"))
    benchmark.pedantic(int, rounds=1)
    raise RuntimeError("the cable fell out")

def test_absent(benchmark):
    pytest.skip("no such machine")

def test_that_is_no_benchmark():
    raise RuntimeError("never run")
'''


def test_the_command_writes_what_its_benchmarks_measured(tmp_path: Path) -> None:
    """In a process of its own, as pytest inside pytest would share its state."""
    here = Path(__file__).parent
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_some.py").write_text(_BENCHMARKS)
    (tmp_path / "tests" / "conftest.py").write_text((here / "conftest.py").read_text())
    page, store = tmp_path / "page.md", tmp_path / "kept" / "harness.jsonl"
    page.write_text("# Attacks\n")
    code = (
        f"import sys; sys.path[:0] = [{str(here)!r}]\n"
        "from pathlib import Path\nfrom harness import __main__ as command\n"
        f"command._BENCHMARKS = Path({str(tmp_path / 'tests')!r}); command.main()"
    )
    arguments = ["--out", str(page), "--store", str(store)]
    # Under pytest-xdist, pytest-benchmark would measure nothing.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command_line = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(command_line, capture_output=True, text=True, cwd=tmp_path, env=alone)
    assert ended.returncode == 1, ended.stderr
    text = page.read_text()
    assert text.startswith("# Attacks\n") and "| good | 0.5 (goal 1) | of |  | yes | sample |" in text
    assert "| `test_some.py::test_bad` | RuntimeError: the cable fell out |" in text and "| bad |" not in text
    assert "no such machine" in text and "never run" not in text
    assert [(one.test.partition("::")[2], one.status) for one in read(store)] == [
        ("test_absent", "skipped"),
        ("test_bad", "failed"),
        ("test_good", "passed"),
    ]
    again = subprocess.run([*command_line, "-k", "good"], capture_output=True, text=True, cwd=tmp_path, env=alone)
    assert again.returncode == 0 and len(read(store)) == 3  # the others are as they were
    assert len(store.read_text().splitlines()) == 4


def test_the_comparison_keeps_the_part_on_the_harness(tmp_path: Path) -> None:
    out = tmp_path / "page.md"
    out.write_text(with_part("# Old\n", "figures\n"))
    slow = next(comparison.name for comparison in COMPARISONS if comparison.slow)  # with --quick nothing is measured
    options = ["--cache", str(tmp_path / "none"), "--quick", "--only", slow]
    ended = CliRunner().invoke(compare.main, ["--out", str(out), *options])
    assert ended.exit_code == 0, ended.output
    text = out.read_text()
    assert "# Old" not in text and text.startswith("# Our attacks") and part_of(text) == "figures\n"


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    out = tmp_path / "page.md"
    ended = CliRunner().invoke(command.main, ["--page-only", "--out", str(out), "--store", str(tmp_path / "none")])
    assert ended.exit_code == 0 and "Nothing has been measured yet." in out.read_text()
    assert Collector(tmp_path / "none").failed == []
