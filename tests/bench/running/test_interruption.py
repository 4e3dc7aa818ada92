"""Ctrl-C, kill -9 and more than one worker: nothing finished is lost, and the rows are always the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from small_bench import Bench, points
from stand_ins import Ended, essence, plugin, shards

pytestmark = pytest.mark.slow


def start(bench: Bench) -> subprocess.Popen[str]:
    """The real command in a process of its own, with one worker."""
    program = [sys.executable, "-c", "from bench.cli.main import main; main()"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*program, *bench.arguments(), "--workers", "1"],
        env=environment,
        cwd=bench.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background lets its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def stored(bench: Bench) -> dict[str, int]:
    """Modification times of the records of finished shards."""
    files = (bench.results / "tiny").glob("*/*/[0-9]*.json")
    return {str(path.relative_to(bench.results)): path.stat().st_mtime_ns for path in files}


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@dataclass
class Interrupted:
    """What the stages of one evaluation left behind: Ctrl-C, kill -9, and the same command once more."""

    bench: Bench
    undisturbed: Bench
    ctrl_c_code: int
    ctrl_c_err: str
    after_ctrl_c: dict[str, int]
    after_kill: dict[str, int]
    final: Ended


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interrupted]:
    folder = tmp_path_factory.mktemp("interrupted")
    attacks = {"slow": {"attack": plugin("slow"), "seconds": 0.4}, "noise": {"draws": 2}}
    bench, undisturbed = (Bench(folder / name).configure(attacks, shard_size=1) for name in ("killed", "whole"))
    running = []
    try:
        running.append(start(bench))
        wait_for(lambda: len(stored(bench)) >= 4, running[0])
        running[0].send_signal(signal.SIGINT)
        _, err = running[0].communicate(timeout=30)
        after_ctrl_c = stored(bench)
        running.append(start(bench))
        wait_for(lambda: len(stored(bench)) >= len(after_ctrl_c) + 4, running[1])
        running[1].kill()
        running[1].communicate(timeout=30)
        after_kill = stored(bench)
        time.sleep(1.2)  # its worker notices within half a second, and stores nothing by itself
        assert stored(bench) == after_kill
    finally:
        for process in running:
            process.kill()
            process.wait()
    final = bench.evaluate(workers=2)
    assert undisturbed.evaluate().code == 0
    yield Interrupted(bench, undisturbed, running[0].returncode, err, after_ctrl_c, after_kill, final)


def test_ctrl_c_keeps_finished_shards_and_says_how_to_go_on(interrupted: Interrupted) -> None:
    assert interrupted.ctrl_c_code == 130
    last = interrupted.ctrl_c_err.strip().splitlines()[-1]
    assert last == "interrupted: what is finished is kept; run the same command again to go on"
    assert "Traceback" not in interrupted.ctrl_c_err
    assert 4 <= len(interrupted.after_ctrl_c) < 36


def test_after_a_kill_the_same_command_gives_the_rows_of_an_undisturbed_run(interrupted: Interrupted) -> None:
    """Also: two workers, one worker and no worker process at all give the same rows and the same images."""
    assert len(interrupted.after_ctrl_c) < len(interrupted.after_kill) < 36
    assert interrupted.final.code == 0
    assert len(essence(interrupted.bench.results)) == 36
    assert essence(interrupted.bench.results) == essence(interrupted.undisturbed.results)


def test_finished_shards_are_not_run_twice(interrupted: Interrupted) -> None:
    now = stored(interrupted.bench)
    for before in (interrupted.after_ctrl_c, interrupted.after_kill):
        assert {name: now[name] for name in before} == before


def test_a_killed_run_leaves_no_half_written_record(interrupted: Interrupted) -> None:
    for record in shards(interrupted.bench.results).values():
        if record.attack != "clean":
            assert torch.isfinite(points(interrupted.bench.store, record)).all()


def test_time_was_measured_by_the_run_that_finished(interrupted: Interrupted) -> None:
    record = interrupted.bench.store.defense("stand_ins.Means")
    assert record is not None and record.timing is not None
    assert record.timing.seconds_per_1000 > 0
