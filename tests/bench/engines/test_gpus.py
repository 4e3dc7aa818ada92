"""Which worker gets which GPU, how many share one, and what happens where its memory runs out. No GPU is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import stand_ins
import torch

from bench.engines import gpus
from bench.engines.gpus import Gpu, GpuSlots, gpus_here
from bench.engines.graph import Job, Outcome
from bench.engines.local import LocalEngine

GIB = 2**30


def slots(count: int = 2, per_gpu: int = 1, memory: int = 10) -> GpuSlots:
    return GpuSlots([Gpu(str(n), memory * GIB) for n in range(count)], per_gpu)


def placed(slots: GpuSlots) -> list[str]:
    """Workers until there is no room."""
    found = []
    while (place := slots.place()) is not None:
        found.append(place)
    return found


# -- which there are --------------------------------------------------------------------------------------------


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda n: SimpleNamespace(total_memory=(n + 1) * GIB)
    )


def test_gpus_are_numbered_where_all_may_be_used(three_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus_here() == [Gpu("0", GIB), Gpu("1", 2 * GIB), Gpu("2", 3 * GIB)]


def test_gpus_keep_the_names_by_which_they_were_given(three_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-8f2c,7")
    assert [gpu.name for gpu in gpus_here()] == ["4", "GPU-8f2c", "7"]


def test_a_process_that_has_used_no_gpu_has_taken_nothing_of_one() -> None:
    assert gpus.peak_memory() == 0


def test_what_a_process_took_counts_its_context_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3 * GIB)
    assert gpus.peak_memory() > 3 * GIB


# -- who gets which ---------------------------------------------------------------------------------------------


def test_each_gpu_is_given_once() -> None:
    some = slots(3)
    assert some.most == 3
    assert placed(some) == ["0", "1", "2"]


def test_none_is_shared_before_a_job_has_told_what_it_takes() -> None:
    some = slots(2, per_gpu=3)
    assert some.most == 6
    assert placed(some) == ["0", "1"]
    some.seen(GIB)
    assert placed(some) == ["0", "1", "0", "1"]  # the emptiest first


def test_as_many_share_one_as_fit_by_the_most_that_any_took() -> None:
    some = slots(1, per_gpu=8)
    some.seen(1 * GIB)
    some.seen(3 * GIB)
    some.seen(2 * GIB)
    assert placed(some) == ["0"] * 3  # of 10 GiB nine are filled


def test_a_gpu_too_small_for_two_takes_one_however_much_that_took() -> None:
    some = slots(1, per_gpu=4)
    some.seen(30 * GIB)
    assert placed(some) == ["0"]


def test_the_place_of_a_worker_that_has_ended_is_given_again() -> None:
    some = slots(2)
    placed(some)
    some.leave("1")
    assert placed(some) == ["1"]


def test_where_memory_ran_out_one_fewer_shares_from_then_on() -> None:
    some = slots(2, per_gpu=3, memory=100)
    some.seen(GIB)
    assert sorted(placed(some)) == ["0"] * 3 + ["1"] * 3
    assert some.too_many("0")
    some.leave("0")
    assert placed(some) == []  # there are two, and no third any more
    assert some.most == 5
    some.leave("1")
    assert placed(some) == ["1"]  # the other GPU is as it was


def test_one_alone_that_runs_out_of_memory_is_not_the_others_fault() -> None:
    some = slots(1, per_gpu=2)
    assert placed(some) == ["0"]
    assert not some.too_many("0")
    some.leave("0")
    assert placed(some) == ["0"]


# -- in the engine ----------------------------------------------------------------------------------------------


class Told(GpuSlots):
    """Slots that say of every job that it took so much, as CPU jobs take nothing of a GPU."""

    def __init__(self, per_gpu: int, peak: int) -> None:
        super().__init__([Gpu("7", 10 * GIB)], per_gpu)
        self.told = peak
        self.crowded: list[bool] = []

    def seen(self, peak: int) -> None:
        super().seen(self.told)

    def too_many(self, name: str) -> bool:
        self.crowded.append(super().too_many(name))
        return self.crowded[-1]


def outcomes(slots: GpuSlots, jobs: Sequence[Job]) -> Iterator[Outcome]:
    with LocalEngine(4, slots) as engine:
        yield from engine.run(jobs)


def test_a_worker_sees_its_gpu_alone() -> None:
    seen = {o.value for o in outcomes(slots(2), [Job(f"job {n}", stand_ins.visible_gpus, (0.3,)) for n in range(4)])}
    assert seen == {"0", "1"}


def test_a_job_that_ran_out_of_memory_beside_another_is_run_again_with_fewer_beside_it(tmp_path: Any) -> None:
    shared = Told(per_gpu=2, peak=GIB)
    jobs = [
        Job("first", stand_ins.square, (2,), cost=9),
        Job("long", stand_ins.pid_after, (3.0,), cost=8),
        Job("crowded", stand_ins.run_out_of_memory_once, (str(tmp_path / "ran out"),), cost=7),
    ]
    ended = {o.job.name: o for o in outcomes(shared, jobs)}
    assert shared.crowded == [True]
    assert ended["crowded"].status == "ok" and shared.most == 1


def test_a_job_that_runs_out_of_memory_alone_has_ended_that_way() -> None:
    alone = Told(per_gpu=2, peak=GIB)
    (ended,) = outcomes(alone, [Job("big", stand_ins.run_out_of_memory, ())])
    assert (ended.status, alone.crowded) == ("out-of-memory", [False])
