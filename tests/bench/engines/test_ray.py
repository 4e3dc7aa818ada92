"""A Ray cluster of three machines, all of them this one: the rows of the local engine, whatever happens to one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stand_ins
from small_bench import Bench
from stand_ins import essence, plugin

from bench.engines.graph import Job, Outcome
from bench.engines.ray_engine import RayEngine

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")]
pytest.importorskip("ray", reason="the extra ray is not installed")

ATTACKS = {
    "step": {"attack": plugin("one_step")},
    "of-defense": {"attack": plugin("of_defense")},
    "slow": {"attack": plugin("slow"), "seconds": 0.3},
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    where = os.pathsep.join(filter(None, sys.path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", where)
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        for _ in range(2):
            made.add_node(num_cpus=1)
        made.wait_for_nodes()
        yield made
        made.shutdown()


def on_ray(bench: Bench, cluster: Any) -> Any:
    return bench.evaluate("Means", "Noisy", more=("--engine", "ray", "--address", cluster.address), workers=3)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    bench = Bench(tmp_path_factory.mktemp("local") / "work").configure(ATTACKS, shard_size=2)
    assert bench.evaluate("Means", "Noisy").code == 0
    return essence(bench.results)


def test_three_machines_give_the_rows_of_one_though_one_is_lost_and_another_joins(
    cluster: Any, expected: dict[str, Any], tmp_path: Path
) -> None:
    bench = Bench(tmp_path / "work").configure(ATTACKS, shard_size=2)
    changed = []

    def change() -> None:
        while len(list(bench.results.glob("*/*/*/*.json"))) < 6:
            time.sleep(0.05)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        changed.append(len(list(bench.results.glob("*/*/*/*.json"))))

    ray_start = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={cluster.address}", "--num-cpus=1"]
    changing = threading.Thread(target=change, daemon=True)
    changing.start()
    joining = subprocess.Popen([*ray_start, "--block"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ended = on_ray(bench, cluster)
    finally:
        joining.terminate()
        joining.wait(30)
    assert ended.code == 0, ended.err
    changing.join(30)
    assert changed and changed[0] < len(expected)
    assert essence(bench.results) == expected
    for name in ("Means", "Noisy"):
        record = bench.store.defense(f"stand_ins.{name}")
        assert record is not None and record.gallery and record.timing is not None


def test_a_driver_that_was_killed_goes_on_where_it_stopped(
    cluster: Any, expected: dict[str, Any], tmp_path: Path
) -> None:
    bench = Bench(tmp_path / "work").configure(ATTACKS, shard_size=2)

    def stored() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in bench.results.glob("tiny/*/*/[0-9]*.json")}

    program = [sys.executable, "-c", "from bench.cli.main import main; main()"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(
        [*program, *bench.arguments("Means", "Noisy"), "--engine", "ray", "--address", cluster.address],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while len(stored()) < 4:
            assert driver.poll() is None, f"ended with {driver.returncode}"
            time.sleep(0.02)
    finally:
        driver.kill()
        driver.wait()
    finished = stored()
    assert 4 <= len(finished) < len(expected)
    ended = on_ray(bench, cluster)
    assert ended.code == 0, ended.err
    assert essence(bench.results) == expected
    assert {path: stored()[path] for path in finished} == finished  # none was written, so none run, twice


def test_a_machine_that_joins_is_given_work(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.engines import ray_engine

    worked = set()
    start = ray_engine._Slot.start

    def noting(slot: Any, *arguments: Any) -> None:
        worked.add(slot.node)
        start(slot, *arguments)

    monkeypatch.setattr(ray_engine._Slot, "start", noting)
    with RayEngine(cluster.address) as engine:
        running = engine.run([Job(f"wait {n}", stand_ins.pid_after, (0.2,)) for n in range(1000)])
        assert next(running).status == "ok"
        joined = cluster.add_node(num_cpus=1)
        try:
            assert joined.node_id not in worked
            assert any(joined.node_id in worked for _ in running)
        finally:
            running.close()
    cluster.remove_node(joined)


def test_how_jobs_end(cluster: Any) -> None:
    jobs = [
        *(Job(f"square {n}", stand_ins.square, (n,)) for n in range(4)),
        Job("divide", stand_ins.divide, (1, 0)),
        Job("big", stand_ins.run_out_of_memory, ()),
        Job("killed", stand_ins.kill_self, ()),
        Job("stuck", time.sleep, (600,), timeout=1.0),
    ]
    with RayEngine(cluster.address) as engine:
        outcomes: dict[str, Outcome] = {outcome.job.name: outcome for outcome in engine.run(jobs)}
    assert [outcomes[f"square {n}"].value for n in range(4)] == [0, 1, 4, 9]
    assert outcomes["divide"].error.strip().splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert outcomes["big"].status == "out-of-memory"
    assert outcomes["killed"].status == "failed" and outcomes["killed"].error.endswith("died, 2 times")
    assert (outcomes["stuck"].status, outcomes["stuck"].error) == ("timeout", "stopped after 1 s")


def test_without_an_address_it_is_a_cluster_of_its_own(cluster: Any) -> None:
    program = """
from operator import add
from bench.engines.graph import Job
from bench.engines.ray_engine import RayEngine
with RayEngine(workers=2) as engine:
    print(engine.workers, *(outcome.value for outcome in engine.run([Job("add", add, (3, 4))])))
"""
    # RAY_ADDRESS names another; so does a file that `ray start` leaves.
    beside = {**os.environ, "RAY_ADDRESS": cluster.address, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run([sys.executable, "-c", program], env=beside, capture_output=True, text=True)
    assert ended.stdout.split() == ["2", "7"], ended.stderr


def test_a_token_that_is_missing_is_one_line(tmp_path: Path) -> None:
    asked = {**os.environ, "RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
    asked["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    program = """
from bench.contracts.errors import InputError
from bench.engines.ray_engine import RayEngine
try:
    RayEngine("127.0.0.1:1").__enter__()
except InputError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", program], env=asked, capture_output=True, text=True)
    assert ended.stdout.startswith("engine ray: 127.0.0.1:1: ") and len(ended.stdout.splitlines()) == 1, ended.stderr


def test_a_worker_with_other_code_is_refused_with_a_line(
    cluster: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from bench.contracts.errors import InputError
    from bench.engines import ray_engine

    here = {**ray_engine.facts(), "torch": "1.0"}
    monkeypatch.setattr(ray_engine, "facts", lambda: here)
    with RayEngine(cluster.address, patience=3) as engine, pytest.raises(InputError, match="no machine"):
        list(engine.run([Job("square", stand_ins.square, (2,))]))
    lines = [record.getMessage() for record in caplog.records]
    assert lines and all("refused: torch is " in line and line.endswith(" there, 1.0 here") for line in lines)
