"""One evaluation of the stand-ins by the command, and what a refusal looks like."""

from __future__ import annotations

from pathlib import Path

from stand_ins import Ended, plugin, run_bench, write_config

STEP = {"step": {"attack": plugin("one_step")}}


def evaluate(folder: Path, *more: object, defense: str = plugin("Means"), config: Path | None = None) -> Ended:
    config = config or write_config(folder / "bench.yaml", STEP)
    where = ["--suite", "tiny", "--config", config, "--results", folder / "results", "--device", "cpu"]
    return run_bench("evaluate", *where, *(("--defense", defense) if defense else ()), *more)


def assert_refused(ended: Ended, *fragments: str) -> None:
    """Exit code 2 and exactly one line on standard error, with all of the fragments."""
    assert ended.code == 2, ended
    assert ended.out == ""
    assert len(ended.err.splitlines()) == 1, ended.err
    for fragment in ("error: ", *fragments):
        assert fragment in ended.err
