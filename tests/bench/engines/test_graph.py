"""Which job is started next: what waits, what fails with another, the longest first, and what is loaded."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bench.engines.graph import Graph, Job, Outcome, Status


def job(name: str, cost: float = 1.0, after: Sequence[str] = (), loads: str = "", **fields: bool) -> Job:
    return Job(name, print, (), after=tuple(after), cost=cost, loads=loads, **fields)


def ended(job: Job, status: Status = "ok", error: str = "") -> Outcome:
    return Outcome(job, status, None, error, job.cost)


def order(jobs: Sequence[Job]) -> list[str]:
    """The order in which one worker runs them, keeping what it has loaded last."""
    graph, names = Graph(jobs), list[str]()
    while (taken := graph.take()) is not None:
        names.append(taken.name)
        graph.end(ended(taken))
    assert not graph.left
    return names


def simulate(jobs: Sequence[Job], workers: int, loading: float = 0.0) -> tuple[float, int]:
    """The time until all have ended if each takes its cost, and how often a worker loads something."""
    graph = Graph(jobs, workers)
    now, loads = 0.0, 0
    loaded = [""] * workers
    running: dict[int, tuple[float, Job]] = {}
    while graph.left:
        for worker in range(workers):
            if worker not in running and (taken := graph.take(loaded[worker])) is not None:
                loads += (fresh := taken.loads not in ("", loaded[worker]))
                loaded[worker] = taken.loads or loaded[worker]
                running[worker] = (now + taken.cost + loading * fresh, taken)
        worker, (now, done) = min(running.items(), key=lambda item: item[1][0])
        del running[worker]
        graph.end(ended(done))
    return now, loads


def test_jobs_run_after_those_they_wait_for_the_longest_chain_first() -> None:
    jobs = [job("short"), job("long", 5), job("key", 0.5), job("door", 7, ["key"]), job("end", 1, ["door", "long"])]
    assert order(jobs) == ["key", "door", "long", "short", "end"]


def test_jobs_of_equal_cost_run_in_the_order_given() -> None:
    assert order([job(name) for name in "cab"]) == ["c", "a", "b"]


def test_a_job_of_unknown_cost_starts_with_the_longest() -> None:
    jobs = [job("short", 1), job("long", 9), job("new", 0), job("middle", 5)]
    assert order(jobs) == ["long", "new", "middle", "short"]
    assert order([job("b", 0), job("a", 0)]) == ["b", "a"]


def test_what_waits_for_a_failed_job_fails_with_its_reason_and_nothing_else_does() -> None:
    jobs = [job("prepare", 9), job("x", after=["prepare"]), job("y", after=["prepare", "other"]), job("z", after=["x"])]
    jobs += [job("other"), job("sum", after=["x", "y", "z", "other"], anyway=True)]
    graph = Graph(jobs, 2)
    prepare, other = graph.take(), graph.take()
    assert prepare is jobs[0] and other is jobs[4] and graph.take() is None
    outcomes = graph.end(ended(prepare, "timeout", "stopped after 9 s"))
    assert [outcome.job.name for outcome in outcomes] == ["prepare", "x", "y", "z"]
    assert [outcome.status for outcome in outcomes] == ["timeout", "failed", "failed", "failed"]
    assert {outcome.error for outcome in outcomes[1:]} == {"waited for prepare (timeout):\nstopped after 9 s"}
    assert graph.take() is None and graph.left
    assert len(graph.end(ended(other))) == 1
    assert graph.take() is jobs[5]
    graph.end(ended(jobs[5]))
    assert not graph.left


def test_a_worker_stays_with_what_it_has_loaded() -> None:
    jobs = [job(f"{what}/{n}", 1 + n / 10, loads=what) for n in range(10) for what in "abc"]
    names = order(jobs)
    assert [name[0] for name in names] == ["a"] * 10 + ["b"] * 10 + ["c"] * 10
    assert names[:3] == ["a/9", "a/8", "a/7"]
    assert simulate(jobs, 3) == (pytest.approx(14.5), 3)


def test_workers_share_what_is_left_and_leave_no_idle_tail() -> None:
    """Three defenses on two workers: the third is split between them."""
    jobs = [job(f"{what}/{n}", loads=what) for what in "abc" for n in range(8)]
    assert simulate(jobs, 2) == (12.0, 4)


def test_a_long_job_of_another_defense_is_not_left_for_the_end() -> None:
    jobs = [job(f"a/{n}", loads="a") for n in range(40)] + [job("b", 20, loads="b"), job("c", 18, loads="c")]
    makespan, loads = simulate(jobs, 4)
    assert makespan <= 20 + 1  # 78 seconds of work for four; the longest job takes 20
    assert loads <= 6


def test_many_defenses_take_hardly_longer_than_the_work_shared_out() -> None:
    costs = [0.3, 8, 1, 2.5, 0.1, 4, 12, 0.7]
    jobs = [
        job(f"{d}/{a}/{n}", cost * (1 + d % 3), loads=f"{d}")
        for d in range(9)
        for a, cost in enumerate(costs)
        for n in (0, 1)
    ]
    work = sum(one.cost for one in jobs)
    for workers in (1, 2, 4, 7):
        makespan, loads = simulate(jobs, workers)
        assert makespan <= work / workers + 12
        assert loads <= 9 + 4 * workers


def test_jobs_without_anything_to_load_go_to_whoever_is_free() -> None:
    jobs = [job("shared", 30), *(job(f"a/{n}", loads="a", after=["shared"]) for n in range(2)), job("b", 2, loads="b")]
    assert order(jobs) == ["shared", "a/0", "a/1", "b"]


def test_a_job_that_wants_to_be_alone_comes_last_and_by_itself() -> None:
    graph = Graph([job("timing", alone=True), job("work"), job("more")], 2)
    work, more = graph.take(), graph.take()
    assert work is not None and more is not None
    assert {work.name, more.name} == {"work", "more"}
    graph.end(ended(work))
    assert graph.take() is None  # more still runs
    graph.end(ended(more))
    timing = graph.take()
    assert timing is not None and timing.name == "timing"
    assert graph.take() is None
    graph.end(ended(timing))
    assert not graph.left


def test_a_job_alone_that_others_wait_for_does_not_block_them() -> None:
    jobs = [job("timing", alone=True), job("behind", after=["timing"]), job("first")]
    assert order(jobs) == ["first", "timing", "behind"]


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ([job("a"), job("a")], "job 'a': there are two of that name"),
        ([job("a", after=["b"])], "job 'a': waits for 'b', which does not exist"),
        ([job("a", after=["b"]), job("b", after=["a"])], "job 'a': waits for itself"),
    ],
)
def test_jobs_that_could_never_run_are_refused(jobs: list[Job], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Graph(jobs)


# -- workers that die -------------------------------------------------------------------------------------------


def lose(graph: Graph, name: str, with_machine: bool = False) -> list[Outcome]:
    """Take the next job, which is ``name``, and lose it."""
    taken = graph.take()
    assert taken is not None and taken.name == name
    return graph.lost(ended(taken, "failed", "worker process died"), with_machine)


def test_a_job_that_was_lost_is_taken_again_and_what_waits_for_it_goes_on_waiting() -> None:
    graph = Graph([job("first"), job("behind", after=["first"])])
    assert lose(graph, "first") == []
    assert graph.left
    taken = graph.take()
    assert taken is not None and taken.name == "first"
    assert graph.take() is None
    assert [outcome.status for outcome in graph.end(ended(taken))] == ["ok"]
    assert (after := graph.take()) is not None and after.name == "behind"


def test_the_second_worker_that_a_job_brings_down_is_its_end_and_that_of_what_waits_for_it() -> None:
    graph = Graph([job("deadly"), job("behind", after=["deadly"])])
    assert lose(graph, "deadly") == []
    deadly, behind = lose(graph, "deadly")
    assert (deadly.status, deadly.error) == ("failed", "worker process died, 2 times")
    assert behind.error.startswith("waited for deadly (failed):\n")
    assert not graph.left and graph.take() is None


def test_machines_that_are_lost_are_held_against_a_job_only_when_it_happens_often() -> None:
    graph = Graph([job("unlucky")])
    assert [lose(graph, "unlucky", with_machine=True) for _ in range(4)] == [[]] * 4
    assert lose(graph, "unlucky") == []  # counted apart
    (end,) = lose(graph, "unlucky", with_machine=True)
    assert end.error == "worker process died, 5 times"
    assert not graph.left


def test_a_job_that_is_given_back_counts_as_never_taken() -> None:
    jobs = [job("long", 9, loads="a"), job("short", 1, loads="a")]
    graph = Graph(jobs)
    for _ in range(10):
        taken = graph.take()
        assert taken is not None and taken.name == "long"
        graph.give_back(taken)
    assert lose(graph, "long") == []  # its first death still
    assert simulate(jobs, 1) == (10, 1)


def test_the_order_after_a_loss_is_that_of_a_fresh_start() -> None:
    """What a worker stays with or leaves depends on the work that is left, which what was lost is part of again."""
    jobs = [job("a", 9, loads="a"), *(job(f"b {n}", 4, loads="b") for n in range(3)), job("c", 7, loads="c")]
    graph, names = Graph(jobs), list[str]()
    assert (lost := graph.take()) is not None and graph.lost(ended(lost, "failed")) == []
    while (taken := graph.take("" if not names else None)) is not None:
        names.append(taken.name)
        graph.end(ended(taken))
    assert names == order(jobs)


def test_a_job_alone_that_was_lost_comes_last_again() -> None:
    graph = Graph([job("alone", alone=True), job("beside")])
    first = graph.take()
    assert first is not None and first.name == "beside"
    graph.end(ended(first))
    assert lose(graph, "alone") == []
    again = graph.take()
    assert again is not None and again.name == "alone"
