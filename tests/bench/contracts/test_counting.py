"""Passes are counted for the rows that were asked about, in whatever order calls come and counts are read."""

from __future__ import annotations

import torch

from bench.contracts.counting import no_counts


def test_calls_for_one_tensor_of_rows_add_up() -> None:
    counts, rows = no_counts(4), torch.tensor([3, 1, 3])
    for _ in range(5):
        counts.add("forward", rows)
    counts.add("forward", None, times=2)
    counts.add("backward", rows, times=7)
    assert counts.forward.tolist() == [2, 7, 2, 12]
    assert counts.forward.tolist() == [2, 7, 2, 12]  # reading counts nothing
    assert counts.backward.tolist() == [0, 7, 0, 14]


def test_a_tensor_of_rows_that_its_owner_writes_into_is_counted_as_it_was() -> None:
    counts, rows = no_counts(3), torch.tensor([0, 0])
    counts.add("forward", rows)
    rows += 1
    counts.add("forward", rows)
    rows += 1
    assert counts.forward.tolist() == [2, 2, 0]


def test_rows_that_tell_nothing_of_being_written_into_are_counted_one_call_at_a_time() -> None:
    counts = no_counts(3)
    with torch.inference_mode():
        rows = torch.tensor([0, 0])
        counts.add("forward", rows)
        rows += 2
        counts.add("forward", rows)
    assert counts.forward.tolist() == [2, 0, 2]


def test_rows_of_different_subsets_are_not_taken_for_each_other() -> None:
    counts, rows = no_counts(5), torch.tensor([0, 1])
    first, second = torch.tensor([4, 3]), torch.tensor([2, 0])
    counts.add("forward", rows, first)
    counts.add("forward", rows, second)
    counts.add("forward", None, second)
    counts.add("forward", None, first)
    assert counts.forward.tolist() == [2, 0, 2, 2, 2]
