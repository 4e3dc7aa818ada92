"""Worker processes: what one job does to another, to its worker, and to the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import stand_ins

from bench.contracts.reporting import Report, listening
from bench.engines.graph import Job, Outcome
from bench.engines.local import LocalEngine

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    """Two workers for all tests here; those that a test kills are replaced in the next."""
    with LocalEngine(2) as shared:
        yield shared


def run(engine: LocalEngine, *jobs: Job) -> dict[str, Outcome]:
    return {outcome.job.name: outcome for outcome in engine.run(jobs)}


def squares(n: int) -> list[Job]:
    return [Job(f"square {i}", stand_ins.square, (i,)) for i in range(n)]


def assert_all_squares(outcomes: dict[str, Outcome], n: int) -> None:
    assert {name: (o.status, o.value) for name, o in outcomes.items() if name.startswith("square")} == {
        f"square {i}": ("ok", i * i) for i in range(n)
    }


def test_values_do_not_depend_on_the_order_of_the_jobs(engine: LocalEngine) -> None:
    forward = run(engine, *squares(6))
    backward = run(engine, *reversed(squares(6)))
    assert_all_squares(forward, 6)
    assert_all_squares(backward, 6)


def test_outcomes_come_as_they_are_ready(engine: LocalEngine) -> None:
    jobs = [Job("long", stand_ins.pid_after, (1.0,)), Job("short", stand_ins.pid_after, (0.0,))]
    outcomes = list(engine.run(jobs))
    assert [outcome.job.name for outcome in outcomes] == ["short", "long"]
    assert outcomes[0].value != outcomes[1].value  # two processes, and neither is this one
    assert os.getpid() not in (outcomes[0].value, outcomes[1].value)
    assert outcomes[1].seconds >= 1.0 > outcomes[0].seconds


def test_an_exception_is_reported_with_its_traceback_and_costs_one_job(engine: LocalEngine) -> None:
    outcomes = run(engine, Job("divide", stand_ins.divide, (1, 0)), *squares(3))
    failed = outcomes["divide"]
    assert (failed.status, failed.value) == ("failed", None)
    assert "Traceback" in failed.error and "in divide" in failed.error
    assert failed.error.strip().splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert_all_squares(outcomes, 3)


def test_memory_that_runs_out_has_a_status_of_its_own(engine: LocalEngine) -> None:
    outcome = run(engine, Job("big", stand_ins.run_out_of_memory, ()))["big"]
    assert outcome.status == "out-of-memory"
    assert "CUDA out of memory" in outcome.error


def test_a_killed_worker_costs_its_job_and_is_replaced(engine: LocalEngine) -> None:
    outcomes = run(engine, *squares(2), Job("killed", stand_ins.kill_self, ()), *squares(6)[2:])
    assert outcomes["killed"].status == "out-of-memory"
    assert "killed (signal 9)" in outcomes["killed"].error
    assert_all_squares(outcomes, 6)
    assert_all_squares(run(engine, *squares(3)), 3)


def test_a_worker_that_exits_is_a_failure_with_its_exit_code(engine: LocalEngine) -> None:
    outcomes = run(engine, Job("leaves", stand_ins.leave, (7,)), *squares(1))
    assert outcomes["leaves"].status == "failed"
    assert outcomes["leaves"].error == "worker process died (exit code 7), 2 times"
    assert_all_squares(outcomes, 1)


def test_a_job_past_its_timeout_is_stopped_and_the_others_finish(engine: LocalEngine, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    run(engine, *(Job(f"warm {i}", stand_ins.pid_after, (0.2,)) for i in range(2)))  # both have started
    stuck = Job("stuck", stand_ins.sleep_and_tell, (str(pid_file),), timeout=1.5)
    outcomes = run(engine, stuck, *squares(4))
    assert outcomes["stuck"].status == "timeout"
    assert outcomes["stuck"].error == "stopped after 1.5 s"
    assert_all_squares(outcomes, 4)
    with pytest.raises(ProcessLookupError):  # killed, and waited for
        os.kill(int(pid_file.read_text()), 0)
    assert_all_squares(run(engine, *squares(2)), 2)


def test_a_job_starts_when_those_it_waits_for_have_ended(engine: LocalEngine) -> None:
    first = Job("first", stand_ins.pid_after, (0.3,))
    second = Job("second", stand_ins.square, (3,), after=("first",))
    outcomes = list(engine.run([second, first, *squares(2)]))
    assert [outcome.job.name for outcome in outcomes][-2:] == ["first", "second"]
    assert all(outcome.status == "ok" for outcome in outcomes)


def test_behind_a_job_that_failed_none_is_run_and_each_is_told_why(engine: LocalEngine, tmp_path: Path) -> None:
    never = tmp_path / "never"
    outcomes = run(
        engine,
        Job("divide", stand_ins.divide, (1, 0)),
        Job("behind", Path.touch, (never,), after=("divide",)),
        Job("last", Path.touch, (never,), after=("behind",)),
        Job("anyway", stand_ins.square, (2,), after=("last",), anyway=True),
        *squares(2),
    )
    assert [outcomes[name].status for name in ("divide", "behind", "last", "anyway")] == ["failed"] * 3 + ["ok"]
    for name in ("behind", "last"):
        assert outcomes[name].error.startswith("waited for divide (failed):\nTraceback")
        assert outcomes[name].error.strip().splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert not never.exists()
    assert_all_squares(outcomes, 2)


def test_what_a_job_reports_is_heard_here_with_its_name(engine: LocalEngine) -> None:
    heard: list[Report] = []
    with listening(heard.append):
        assert run(engine, Job("training", stand_ins.report_twice, (0.3,)))["training"].status == "ok"
    assert heard == [Report(0.0, "epoch 0/2", "training"), Report(0.5, "epoch 1/2", "training")]
    run(engine, Job("unheard", stand_ins.report_twice, (0.3,)))
    assert len(heard) == 2


def test_reports_in_quick_succession_are_not_all_passed_on(engine: LocalEngine) -> None:
    heard: list[Report] = []
    with listening(heard.append):
        run(engine, Job("hasty", stand_ins.report_twice, (0.0,)))
    assert heard == [Report(0.0, "epoch 0/2", "hasty")]


def test_a_worker_is_given_jobs_of_what_it_has_loaded(engine: LocalEngine) -> None:
    jobs = [Job(f"{what}/{n}", stand_ins.pid_after, (0.02,), loads=what) for n in range(6) for what in "ab"]
    outcomes = run(engine, *jobs)
    by = {what: {o.value for o in outcomes.values() if o.job.loads == what} for what in "ab"}
    assert min(len(pids) for pids in by.values()) == 1  # the faster worker may help the other at the end


def test_nothing_runs_beside_a_job_that_wants_to_be_alone(engine: LocalEngine) -> None:
    alone = [Job(f"alone {n}", stand_ins.from_to, (0.1,), alone=True) for n in range(2)]
    others = [Job(f"other {n}", stand_ins.from_to, (0.1,)) for n in range(4)]
    outcomes = run(engine, *alone, *others)
    spans = sorted(outcome.value for outcome in outcomes.values())
    assert [outcomes[f"alone {n}"].value for n in range(2)] == spans[-2:]
    assert all(before[1] <= after[0] for before, after in zip(spans[-3:], spans[-2:], strict=False))


def test_a_worker_killed_before_it_has_read_its_job_is_noticed() -> None:
    """The job lies unread in the pipe: the other end then sees a reset connection instead of its end."""
    others = {child.pid for child in multiprocessing.active_children()}

    def kill_the_new_one() -> None:
        while not (new := {child.pid for child in multiprocessing.active_children()} - others):
            time.sleep(0.001)
        time.sleep(0.05)  # the job has been sent; the worker is still importing
        os.kill(new.pop() or 0, signal.SIGKILL)

    killer = threading.Thread(target=kill_the_new_one)
    with LocalEngine(1) as engine:
        killer.start()
        outcomes = run(engine, *squares(1))
        killer.join()
    assert_all_squares(outcomes, 1)  # on another worker


def test_workers_end_with_the_engine() -> None:
    before = {child.pid for child in multiprocessing.active_children()}
    with LocalEngine(1) as engine:
        assert_all_squares(run(engine, *squares(1)), 1)
        assert {child.pid for child in multiprocessing.active_children()} - before
    assert not {child.pid for child in multiprocessing.active_children()} - before


def test_workers_die_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    pid_file = tmp_path / "pid"
    script.write_text(
        "import sys\n"
        "import stand_ins\n"
        "from bench.engines.local import LocalEngine\n"
        "from bench.engines.graph import Job\n"
        "if __name__ == '__main__':\n"
        "    with LocalEngine(1) as engine:\n"
        "        list(engine.run([Job('sleep', stand_ins.sleep_and_tell, (sys.argv[1],))]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen([sys.executable, str(script), str(pid_file)], env=environment)
    try:
        _wait_for(lambda: pid_file.exists() and pid_file.read_text() != "", 60)
        worker = int(pid_file.read_text())
        os.kill(worker, 0)  # it is there
    finally:
        parent.kill()
        parent.wait()
    _wait_for(lambda: not _runs(worker), 20)


def _runs(pid: int) -> bool:
    """Whether a process is there and not merely a zombie that nobody has waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def _wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
