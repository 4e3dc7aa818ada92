"""Disks that are really full and folders that really become read-only: one line, nothing lost, and it goes on after."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from small_bench import Bench
from stand_ins import Ended, SerialEngine, essence, plugin, run_bench

from bench.engines.graph import Job, Outcome
from bench.storing.patience import Patience

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts of Linux")

ATTACKS = {"step": {"attack": plugin("one_step")}, "of-defense": {"attack": plugin("of_defense")}}


def mount(*arguments: object) -> None:
    """Mount something, or skip: that takes rights that not every machine gives."""
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")


def unmount(path: Path) -> None:
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own for results, of one mebibyte."""
    path = tmp_path / "work" / "results"
    path.mkdir(parents=True)
    try:
        mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", path)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    yield path
    unmount(path)


def fill(disk: Path, leave: int) -> Path:
    """A file that takes what is free but for so many KiB."""
    filler = disk / "somebody-else's"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - leave * 1024))
    return filler


@pytest.fixture
def bench(disk: Path) -> Bench:
    made = Bench(disk.parent).configure(ATTACKS, shard_size=2)
    assert made.results == disk
    return made


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    made = Bench(tmp_path_factory.mktemp("undisturbed") / "work").configure(ATTACKS, shard_size=2)
    assert made.evaluate().code == 0
    return essence(made.results)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.running.evaluate.Patience", partial(Patience, seconds=0.5, every=0.05))


class Disturbed(SerialEngine):
    """Does something after so many shards."""

    def __init__(self, after: int, disturb: partial[None]) -> None:
        super().__init__()
        self.after, self.disturb = after, disturb

    def outcome(self, job: Job) -> Outcome:
        if len(self.ran) == self.after + 1 and job.name.endswith(self.ran[-1]):  # its shard is not yet stored
            self.disturb()
        return super().outcome(job)


def evaluate(bench: Bench, engine: SerialEngine | None = None) -> Ended:
    return run_bench(*bench.arguments("Means"), engine=engine)


def times(bench: Bench) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in bench.results.glob("tiny/*/*/[0-9]*.json")}


def assert_stopped(bench: Bench, ended: Ended, why: str, expected: dict[str, object]) -> dict[Path, int]:
    """It ended with one line; what is stored is whole. Returns that, with its times."""
    assert ended.code == 2
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert errors == [
        f"error: results folder {bench.results}: {why}; what was stored before is whole, "
        "and the same command goes on from there"
    ]
    assert "Traceback" not in ended.err
    stored = essence(bench.results)
    assert stored.items() <= expected.items() and len(stored) < len(expected)
    assert not list(bench.results.rglob("*.part"))
    return times(bench)


def assert_goes_on(bench: Bench, finished: dict[Path, int], expected: dict[str, object]) -> None:
    ended = evaluate(bench)
    assert ended.code == 0, ended.err
    assert essence(bench.results) == expected
    assert {path: times(bench)[path] for path in finished} == finished  # none was run, so none written, twice
    assert len(ended.ran) == len(expected) - len(finished)


def test_a_full_disk_in_the_middle(bench: Bench, disk: Path, expected: dict[str, object]) -> None:
    filler = fill(disk, 72)
    ended = evaluate(bench)
    finished = assert_stopped(bench, ended, "No space left on device", expected)
    assert finished
    filler.unlink()
    assert_goes_on(bench, finished, expected)


def test_a_disk_that_is_full_from_the_start(bench: Bench, disk: Path, expected: dict[str, object]) -> None:
    filler = fill(disk, 0)
    ended = evaluate(bench)
    assert ended.code == 2 and not (disk / "tiny").exists()
    assert ended.err == f"error: results folder {disk}: {disk} is not writable (No space left on device)\n"
    filler.unlink()
    assert_goes_on(bench, {}, expected)


def test_a_disk_that_is_full_for_a_moment(
    bench: Bench,
    disk: Path,
    expected: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    filler = fill(disk, 72)
    told = threading.Event()

    class Told(Patience):
        def __call__(self, write):  # type: ignore[no-untyped-def]
            def watched() -> None:
                try:
                    write()
                except OSError:
                    told.set()
                    raise

            super().__call__(watched)

    monkeypatch.setattr("bench.running.evaluate.Patience", partial(Told, seconds=60, every=0.05))

    def make_room() -> None:
        assert told.wait(60)
        time.sleep(0.2)
        filler.unlink()

    helper = threading.Thread(target=make_room)
    helper.start()
    ended = evaluate(bench)
    helper.join()
    assert told.is_set() and ended.code == 0
    assert "No space left on device; trying for 60 s" in caplog.text
    assert essence(bench.results) == expected


def test_a_folder_that_becomes_read_only_in_the_middle(
    bench: Bench, disk: Path, expected: dict[str, object]
) -> None:
    def protect() -> None:
        # On top of the disk: what is open there stays open, as when the system itself turns a disk read-only.
        mount("--bind", disk, disk)
        mount("-o", "remount,ro,bind", disk)

    try:
        ended = evaluate(bench, Disturbed(5, partial(protect)))
        finished = assert_stopped(bench, ended, "Read-only file system", expected)
    finally:
        unmount(disk)
    assert len(finished) == 5
    assert_goes_on(bench, finished, expected)


def test_a_disk_that_fills_up_while_results_are_compacted(disk: Path) -> None:
    bench = Bench(disk.parent).configure({"step": ATTACKS["step"]}, shard_size=2)
    assert evaluate(bench).code == 0
    before, rows = bench.summary.defenses, essence(disk)
    shutil.rmtree(disk / "tiny" / ".headers")  # which compacting removes: that would make room
    filler = fill(disk, 0)
    ended = run_bench("compact", "--results", disk)
    assert ended.code == 2 and ended.err == (
        f"error: results folder {disk}: No space left on device; what is stored is whole, "
        "and the same command goes on from there\n"
    )
    assert bench.summary.defenses == before and essence(disk) == rows
    filler.unlink()
    assert run_bench("compact", "--results", disk).code == 0
    assert bench.summary.defenses == before and not essence(disk)
